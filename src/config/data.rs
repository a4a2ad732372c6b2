//! Settings of a detector's data: where images come from, and what happens to them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where images come from, and what happens to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Folder that the paths below are relative to. Null: it must come from `--data`.
    pub root: Option<PathBuf>,
    /// Built-in data to draw into `root` when it is not there yet. Null: none.
    pub builtin: Option<ShapesConfig>,
    /// Training split.
    pub train: SplitConfig,
    /// Validation split.
    pub val: SplitConfig,
    /// Shorter side, and the most that the longer side may have, in pixels.
    pub size: [u32; 2],
    /// The same for validation, testing and detection; null: `size`. Larger than in training, it finds more small objects at no cost in training.
    pub test_size: Option<[u32; 2]>,
    /// Sides are padded to a multiple of this, in pixels.
    pub pad: u32,
    /// How images are resized.
    pub resize: ResizeKind,
    /// Probability of a left-right flip in training.
    pub flip: f64,
    /// Probability of an upside-down flip in training.
    pub flip_vertical: f64,
    /// Training: the size is multiplied by a random factor of this range, drawn evenly in logarithm; [1, 1] is off.
    pub scale: [f64; 2],
    /// Training: brightness, contrast and saturation change by up to this share; 0 is off.
    pub color: f64,
    /// Training: cutting out parts of images.
    pub crop: CropConfig,
    /// Training: probability of a quarter turn. With both flips at 0.5 all eight positions come equally often.
    pub rotate: f64,
    /// Training: probability that an image is put together from parts of four.
    pub mosaic: f64,
    /// Channel means (red, green, blue) of images in 0–1.
    pub mean: [f32; 3],
    /// Channel standard deviations.
    pub std: [f32; 3],
    /// Honour the EXIF orientation (torchvision and pycocotools users expect: no).
    pub exif: bool,
    /// Threads that decode and transform ahead of the training step; 0: one per core.
    pub workers: usize,
    /// What an unreadable image does.
    pub on_error: OnError,
    /// Batches of images of like aspect ratio.
    pub group_by_aspect: bool,
}

impl DataConfig {
    /// Shorter side, and the most that the longer side may have, of images that are not trained on, in pixels.
    pub fn size_in_test(&self) -> [u32; 2] {
        self.test_size.unwrap_or(self.size)
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            root: None,
            builtin: None,
            train: SplitConfig::coco("train"),
            val: SplitConfig::coco("val"),
            size: [800, 1333],
            test_size: None,
            pad: 32,
            resize: ResizeKind::Antialias,
            flip: 0.5,
            flip_vertical: 0.0,
            scale: [1.0, 1.0],
            color: 0.0,
            crop: CropConfig::default(),
            rotate: 0.0,
            mosaic: 0.0,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            exif: false,
            workers: 0,
            on_error: OnError::Skip,
            group_by_aspect: true,
        }
    }
}

/// Cutting out a part of an image in training; at least one object stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CropConfig {
    /// How often; 0 is off.
    pub probability: f64,
    /// Least share of each side that stays.
    pub scale: f64,
    /// Objects with less than this share of their box left are ignored in training (by the mosaic too).
    pub visible: f64,
}

impl Default for CropConfig {
    fn default() -> Self {
        Self { probability: 0.0, scale: 0.5, visible: 0.3 }
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
    fn coco(split: &str) -> Self {
        Self {
            images: format!("{split}2017").into(),
            annotations: format!("annotations/instances_{split}2017.json").into(),
            limit: None,
        }
    }
}

/// Built-in data (`shapes`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapesConfig {
    /// Images of the training split.
    pub train: usize,
    /// Images of the validation split.
    pub val: usize,
    /// Longest side that an image may have, in pixels; sizes and aspect ratios vary.
    pub side: u32,
    /// Seed of the training split; the validation split takes another one made from it.
    pub seed: u64,
}

impl Default for ShapesConfig {
    fn default() -> Self {
        Self { train: 1000, val: 200, side: 256, seed: 0 }
    }
}

/// How images are resized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeKind {
    /// Bilinear whose support grows when shrinking (Pillow, detectron2).
    #[default]
    Antialias,
    /// Two-by-two bilinear (torchvision's detection transform, OpenCV).
    Bilinear,
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
