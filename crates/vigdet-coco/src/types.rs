//! The COCO data model: what an annotation file and a results file hold.

use crate::rle::{MaskError, Rle};
use serde::{Serialize, Serializer};

/// A ground truth: images, their annotated objects, and the classes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Dataset {
    /// The images, in file order.
    pub images: Vec<Image>,
    /// The objects of all images, in file order.
    pub annotations: Vec<Annotation>,
    /// The classes, in file order. Ids may be anything, with gaps.
    pub categories: Vec<Category>,
}

/// One image.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Image {
    /// Unique in the file.
    pub id: i64,
    /// Relative to the image folder. Empty where the file gives none.
    pub file_name: String,
    /// In pixels. 0 where the file gives none: boxes can be evaluated without.
    pub width: u32,
    /// In pixels. 0 where the file gives none.
    pub height: u32,
}

/// One class.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Category {
    /// Unique in the file, any number.
    pub id: i64,
    /// For people. Empty where the file gives none.
    pub name: String,
    /// A wider class that this one belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supercategory: Option<String>,
}

/// One annotated object.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Annotation {
    /// Unique in the file.
    pub id: i64,
    /// The image that the object is in.
    pub image_id: i64,
    /// The class of the object.
    pub category_id: i64,
    /// x, y (top left corner), width, height, in pixels. Where a file gives none it is the extent of the segmentation.
    pub bbox: [f64; 4],
    /// In pixels; of the mask, in COCO's own files. Where a file gives none it is width × height.
    pub area: f64,
    /// The annotation covers a group: detections in it are neither right nor wrong.
    #[serde(serialize_with = "as_number")]
    pub iscrowd: bool,
    /// The outline, where annotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<Segmentation>,
}

/// An outline, as annotated or detected.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Segmentation {
    /// The union of polygons, each [x₀, y₀, x₁, y₁, …] in pixels.
    Polygons(Vec<Vec<f64>>),
    /// A run-length-coded mask. Files may hold it compressed or as a list of runs.
    Rle(Rle),
}

impl Segmentation {
    /// The mask on an image of `height` × `width` pixels; a mask that has its own size keeps it.
    ///
    /// Polygons are drawn as `annToRLE` of pycocotools draws them, and joined.
    pub fn to_rle(&self, height: u32, width: u32) -> Result<Rle, MaskError> {
        match self {
            Segmentation::Rle(rle) => Ok(rle.clone()),
            Segmentation::Polygons(polygons) => Rle::from_polygons(height, width, polygons),
        }
    }
}

/// One detected object.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Detection {
    /// The image that it is in.
    pub image_id: i64,
    /// Its class.
    pub category_id: i64,
    /// x, y (top left corner), width, height, in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bbox: Option<[f64; 4]>,
    /// Higher is surer. Only the order matters to the evaluation.
    pub score: f64,
    /// Its mask, from a detector that gives masks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<Segmentation>,
}

/// COCO's files have 0 and 1 here.
fn as_number<S: Serializer>(flag: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(u8::from(*flag))
}
