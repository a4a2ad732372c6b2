//! Settings of a detector's data: where images come from, and what happens to them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

section! {
    /// Where images come from, and what happens to them.
    pub struct DataConfig {
        /// Folder that the paths below are relative to. Null: it must come from `--data`.
        pub root: Option<PathBuf> = None,
        /// Built-in data to draw into `root` when it is not there yet. Null: none.
        pub builtin: Option<ShapesConfig> = None,
        /// Training split.
        pub train: SplitConfig = SplitConfig::coco("train"),
        /// Validation split.
        pub val: SplitConfig = SplitConfig::coco("val"),
        /// Shorter side, and the most that the longer side may have, in pixels.
        pub size: [u32; 2] = [800, 1333],
        /// The same for validation, testing and detection; null: `size`. Larger than in training, it finds more small
        /// objects at no cost in training.
        pub test_size: Option<[u32; 2]> = None,
        /// Sides are padded to a multiple of this, in pixels.
        pub pad: u32 = 32,
        /// How images are resized.
        pub resize: ResizeKind = ResizeKind::Antialias,
        /// Probability of a left-right flip in training.
        pub flip: f64 = 0.5,
        /// Probability of an upside-down flip in training.
        pub flip_vertical: f64 = 0.0,
        /// Training: the size is multiplied by a random factor of this range, drawn evenly in logarithm; [1, 1] is off.
        pub scale: [f64; 2] = [1.0, 1.0],
        /// Training: what the factor is drawn for. One factor for a batch wastes nothing on padding.
        pub scale_per: ScalePer = ScalePer::Image,
        /// Training: brightness, contrast and saturation change by up to this fraction; 0 is off.
        pub color: f64 = 0.0,
        /// Training: the hue turns by up to this fraction of the colour circle, at most 0.5; 0 is off.
        pub hue: f64 = 0.0,
        /// Training: cutting out parts of images.
        pub crop: CropConfig = CropConfig::default(),
        /// Training: probability of a quarter turn. With both flips at 0.5 all eight positions come equally often.
        pub rotate: f64 = 0.0,
        /// Training: probability that an image is put together from parts of four.
        pub mosaic: f64 = 0.0,
        /// Training: probability that an image is blended with another.
        pub mixup: f64 = 0.0,
        /// Training: size, turn and shear on an image's own canvas.
        pub affine: AffineConfig = AffineConfig::default(),
        /// Mosaic, mixup and affine changes end with this fraction of the training's steps, but not before epochs that
        /// begin after step 50: the last epochs see images as they are.
        pub strong_until: f64 = 1.0,
        /// Channel means (red, green, blue) of images in 0–1.
        pub mean: [f32; 3] = [0.485, 0.456, 0.406],
        /// Channel standard deviations.
        pub std: [f32; 3] = [0.229, 0.224, 0.225],
        /// Honour the EXIF orientation (torchvision and pycocotools users expect: no).
        pub exif: bool = false,
        /// Threads that decode and transform ahead of the training step; 0: one per core.
        pub workers: usize = 0,
        /// What an unreadable image does.
        pub on_error: OnError = OnError::Skip,
        /// Follow links out of the image folder, which `vigdet dataset export` makes too. False: for data of strangers.
        pub links: bool = true,
        /// Batches of images of like aspect ratio.
        pub group_by_aspect: bool = true,
    }
}

impl DataConfig {
    /// Shorter side, and the most that the longer side may have, of images that are not trained on, in pixels.
    pub fn size_in_test(&self) -> [u32; 2] {
        self.test_size.unwrap_or(self.size)
    }
}

section! {
    /// Cutting out a part of an image in training; at least one object stays.
    pub struct CropConfig {
        /// How often; 0 is off.
        pub probability: f64 = 0.0,
        /// Least fraction of each side that stays.
        pub scale: f64 = 0.5,
        /// Objects with less than this fraction of their box left are ignored in training (by the mosaic too).
        pub visible: f64 = 0.3,
    }
}

section! {
    /// Size, turn and shear of an image on its own canvas in training; at least one object stays.
    pub struct AffineConfig {
        /// How often; 0 is off.
        pub probability: f64 = 0.0,
        /// The image's size is multiplied by a factor of this range, drawn evenly in logarithm. Smaller images lie
        /// anywhere on the canvas, of larger ones any part is seen.
        pub scale: [f64; 2] = [1.0, 1.0],
        /// Most degrees of a turn, either way.
        pub degrees: f64 = 0.0,
        /// Most degrees of a shear, either way.
        pub shear: f64 = 0.0,
    }
}

/// One split of a data set in COCO's layout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SplitConfig {
    /// Folder of the images.
    pub images: PathBuf,
    /// COCO annotation file.
    pub annotations: PathBuf,
    /// Use only the first so many images (of those that the split keeps).
    pub limit: Option<usize>,
}

impl SplitConfig {
    /// Whether the paths are those of COCO's layout: nobody has named others.
    pub fn has_usual_names(&self) -> bool {
        ["train", "val"].iter().any(|split| {
            let usual = Self::coco(split);
            (&self.images, &self.annotations) == (&usual.images, &usual.annotations)
        })
    }

    fn coco(split: &str) -> Self {
        Self {
            images: format!("{split}2017").into(),
            annotations: format!("annotations/instances_{split}2017.json").into(),
            limit: None,
        }
    }
}

section! {
    /// Built-in data (`shapes`).
    pub struct ShapesConfig {
        /// Images of the training split.
        pub train: usize = 1000,
        /// Images of the validation split.
        pub val: usize = 200,
        /// Longest side that an image may have, in pixels; sizes and aspect ratios vary.
        pub side: u32 = 256,
        /// Seed of the training split; the validation split takes another one made from it.
        pub seed: u64 = 0,
    }
}

/// What a random factor of the size is drawn for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScalePer {
    /// Each image: a batch has many sizes, and is padded to the largest.
    #[default]
    Image,
    /// Each batch (micro batch): its images have one.
    Batch,
}

/// How images are resized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeKind {
    /// Bilinear whose support grows when shrinking (Pillow, detectron2).
    #[default]
    Antialias,
    /// Two-by-two bilinear in float (torchvision's detection transform).
    Bilinear,
    /// Two-by-two bilinear in whole numbers (OpenCV, mmdetection).
    Opencv,
}

/// What an unreadable image does to a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It is named, counted and left out.
    #[default]
    Skip,
    /// It ends the run.
    Stop,
}
