//! One image with its objects, and a batch of them: what `data` hands to a detector.

use anyhow::Result;
use image::RgbImage;
use tch::Tensor;

use super::affine_map::AffineMap;
use super::mask::Mask;
use crate::config::Padding;
use crate::nn::padding::Extents;

/// An image as decoded, with its objects in the pixels of that image.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which image this is.
    pub info: ImageInfo,
    /// 8-bit RGB, rows from the top.
    pub image: RgbImage,
    /// Its objects.
    pub target: Target,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The annotation file's image id.
    pub id: i64,
    /// File name as in the annotation file.
    pub file: String,
    /// Width of the original image, in pixels.
    pub width: u32,
    /// Height of the original image, in pixels.
    pub height: u32,
}

/// The objects of an image. All vectors have one entry per object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    /// Corners x1, y1, x2, y2 in pixels of the image that the target belongs to.
    pub boxes: Vec<[f32; 4]>,
    /// Class index from 0, in the order of [`super::detection_dataset::DetectionDataset::classes`].
    pub labels: Vec<i64>,
    /// Whether the object is a crowd region: neither positive nor negative in training.
    pub crowd: Vec<bool>,
    /// Masks as annotated, with their way to the pixels of this image. `None` where there is none.
    pub masks: Vec<Option<Mask>>,
}

impl Target {
    /// Indices of the objects, and of the crowd regions.
    pub fn split_crowds(&self) -> (Vec<usize>, Vec<usize>) {
        (0..self.boxes.len()).partition(|&i| !self.crowd[i])
    }

    /// Whether there is an object that is not a crowd region.
    pub fn has_countable(&self) -> bool {
        self.crowd.iter().any(|crowd| !crowd)
    }

    /// Takes masks along with a change of the image, and boxes as `moved` says.
    pub(super) fn change(&mut self, change: &AffineMap, moved: impl Fn(&[f32; 4]) -> [f32; 4]) {
        self.boxes.iter_mut().for_each(|b| *b = moved(b));
        self.change_masks(change);
    }

    /// Takes masks along with a change of the image. The boxes are the caller's.
    pub(super) fn change_masks(&mut self, change: &AffineMap) {
        self.masks.iter_mut().flatten().for_each(|mask| mask.change(change));
    }
}

/// Images of a training or inference step.
#[derive(Debug)]
pub struct Batch {
    /// Float32 `[B, 3, H, W]`: normalised, padded with zeros at the right and bottom.
    pub images: Tensor,
    /// (height, width) of each image inside `images`, in pixels, without the padding.
    pub sizes: Vec<(i64, i64)>,
    /// (height, width) in pixels that each image would be padded to if it were alone: what lies beyond is there because
    /// another image is larger.
    pub padded: Vec<(i64, i64)>,
    /// Objects, in pixels of `images`.
    pub targets: Vec<Target>,
    /// Which images these are; their width and height are those before resizing.
    pub infos: Vec<ImageInfo>,
}

impl Batch {
    /// Where its images end, if some end before it does and `padding` says that this matters.
    ///
    /// # Errors
    /// If `images` has not four dimensions.
    pub fn extents(&self, padding: Padding) -> Result<Option<Extents>> {
        let (_, _, height, width) = self.images.size4()?;
        Ok((padding == Padding::Masked).then(|| Extents::new((height, width), &self.padded)).flatten())
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.infos.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.infos.is_empty()
    }

    /// File names, for messages.
    pub fn names(&self) -> String {
        self.infos.iter().map(|i| i.file.as_str()).collect::<Vec<_>>().join(", ")
    }
}
