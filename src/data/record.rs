//! Batches as files: everything that a network's loss takes from them, so that a step can be done again elsewhere.

use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use tch::{Kind, Tensor};
use vigdet_coco::rle::Rle;
use vigdet_coco::types::Segmentation;

use super::affine_map::AffineMap;
use super::classify::ClassBatch;
use super::mask::Mask;
use super::sample::{Batch, ImageInfo, Target};

/// A batch that can be written and read.
pub trait Record: Sized {
    /// Its tensors by name, and all else.
    fn record(&self) -> (Vec<(&'static str, Tensor)>, Value);

    /// The batch that [`Record::record`] gave, of objects of so many classes.
    ///
    /// # Errors
    /// If something is missing or of another kind, or does not fit the rest.
    fn from_record(tensor: &dyn Fn(&str) -> Result<Tensor>, rest: &Value, classes: usize) -> Result<Self>;
}

/// Refuses what is not float32 `[count, 3, H, W]`.
fn check_images(images: &Tensor, count: usize) -> Result<()> {
    let fits = matches!(images.size()[..], [n, 3, h, w] if n == count as i64 && h > 0 && w > 0);
    ensure!(
        fits && images.kind() == Kind::Float,
        "`{IMAGES}` must be float32 [{count}, 3, H, W], not {:?} {:?}",
        images.kind(),
        images.size()
    );
    Ok(())
}

const IMAGES: &str = "images";
const TARGETS: &str = "targets";

/// An object of a detector's batch.
#[derive(Debug, Serialize, Deserialize)]
struct ObjectRecord {
    corners: [f32; 4],
    label: i64,
    crowd: bool,
    mask: Option<MaskRecord>,
}

/// Its mask: polygons, or (height, width, compressed runs), and where it is.
#[derive(Debug, Serialize, Deserialize)]
struct MaskRecord {
    polygons: Option<Vec<Vec<f64>>>,
    runs: Option<(u32, u32, String)>,
    size: (u32, u32),
    across: [f64; 3],
    down: [f64; 3],
    window: Option<[f32; 4]>,
}

impl MaskRecord {
    fn of(mask: &Mask) -> Self {
        let (polygons, runs) = match &*mask.source {
            Segmentation::Polygons(polygons) => (Some(polygons.clone()), None),
            Segmentation::Rle(rle) => (None, Some((rle.height(), rle.width(), rle.compressed().to_owned()))),
        };
        let AffineMap { across, down } = mask.affine;
        Self { polygons, runs, size: mask.size, across, down, window: mask.window }
    }

    fn mask(self) -> Result<Mask> {
        let source = match (self.polygons, self.runs) {
            (Some(polygons), _) => Segmentation::Polygons(polygons),
            (None, Some((height, width, text))) => Segmentation::Rle(Rle::from_compressed(height, width, &text)?),
            (None, None) => anyhow::bail!("a mask without an outline"),
        };
        let affine = AffineMap { across: self.across, down: self.down };
        Ok(Mask { source: Arc::new(source), size: self.size, affine, window: self.window })
    }
}

/// An image of a detector's batch.
#[derive(Debug, Serialize, Deserialize)]
struct ImageRecord {
    id: i64,
    file: String,
    width: u32,
    height: u32,
    size: (i64, i64),
    padded: (i64, i64),
    objects: Vec<ObjectRecord>,
}

impl Record for Batch {
    fn record(&self) -> (Vec<(&'static str, Tensor)>, Value) {
        let objects = |target: &Target| -> Vec<ObjectRecord> {
            let object = |i: usize| ObjectRecord {
                corners: target.boxes[i],
                label: target.labels[i],
                crowd: target.crowd[i],
                mask: target.masks[i].as_ref().map(MaskRecord::of),
            };
            (0..target.boxes.len()).map(object).collect()
        };
        let image = |i: usize| {
            let ImageInfo { id, file, width, height } = self.infos[i].clone();
            let (size, padded) = (self.sizes[i], self.padded[i]);
            ImageRecord { id, file, width, height, size, padded, objects: objects(&self.targets[i]) }
        };
        let images: Vec<ImageRecord> = (0..self.len()).map(image).collect();
        (vec![(IMAGES, self.images.shallow_clone())], json!(images))
    }

    fn from_record(tensor: &dyn Fn(&str) -> Result<Tensor>, rest: &Value, classes: usize) -> Result<Self> {
        let records = Vec::<ImageRecord>::deserialize(rest).context("the images of a batch")?;
        let images = tensor(IMAGES)?;
        check_images(&images, records.len())?;
        let mut batch = Self { images, sizes: vec![], padded: vec![], targets: vec![], infos: vec![] };
        for ImageRecord { id, file, width, height, size, padded, objects } in records {
            let mut target = Target::default();
            for object in objects {
                let label = object.label;
                ensure!(
                    (0..classes as i64).contains(&label),
                    "label {label} in {file} is none of the {classes} classes"
                );
                target.boxes.push(object.corners);
                target.labels.push(object.label);
                target.crowd.push(object.crowd);
                target.masks.push(object.mask.map(MaskRecord::mask).transpose()?);
            }
            batch.infos.push(ImageInfo { id, file, width, height });
            batch.sizes.push(size);
            batch.padded.push(padded);
            batch.targets.push(target);
        }
        Ok(batch)
    }
}

impl Record for ClassBatch {
    fn record(&self) -> (Vec<(&'static str, Tensor)>, Value) {
        let tensors = vec![(IMAGES, self.images.shallow_clone()), (TARGETS, self.targets.shallow_clone())];
        (tensors, json!({ "labels": self.labels, "names": self.names }))
    }

    fn from_record(tensor: &dyn Fn(&str) -> Result<Tensor>, rest: &Value, classes: usize) -> Result<Self> {
        #[derive(Deserialize)]
        struct Rest {
            labels: Vec<usize>,
            names: Vec<String>,
        }
        let Rest { labels, names } = Rest::deserialize(rest).context("the images of a batch")?;
        let (images, targets) = (tensor(IMAGES)?, tensor(TARGETS)?);
        check_images(&images, labels.len())?;
        ensure!(
            targets.kind() == Kind::Float && targets.size() == [labels.len() as i64, classes as i64],
            "`{TARGETS}` must be float32 [{}, {classes}], not {:?} {:?}",
            labels.len(),
            targets.kind(),
            targets.size()
        );
        Ok(Self { images, targets, labels, names })
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn a_detectors_batch_reads_itself_back_with_its_masks() {
        let polygon = Segmentation::Polygons(vec![vec![1.0, 1.0, 9.5, 1.0, 5.0, 7.25]]);
        let runs = Segmentation::Rle(Rle::from_runs(10, 12, &[30, 40, 50]).unwrap());
        let mut masks = [polygon, runs].map(|source| Mask::new(&source, 10, 12)).to_vec();
        masks[0].as_mut().unwrap().change(&AffineMap::scale(1.5, 0.1));
        masks.push(None);
        let target = Target {
            boxes: vec![[0.1, 0.2, 3.3, 4.7], [1.0, 2.0, 3.0, 4.0], [0.0; 4]],
            labels: vec![2, 0, 1],
            crowd: vec![false, true, false],
            masks,
        };
        let batch = Batch {
            images: Tensor::arange(24, (Kind::Float, Device::Cpu)).view([1, 3, 2, 4]),
            sizes: vec![(2, 3)],
            padded: vec![(2, 4)],
            targets: vec![target],
            infos: vec![ImageInfo { id: 7, file: "a b.png".into(), width: 12, height: 10 }],
        };
        let (tensors, rest) = batch.record();
        let text = rest.to_string();
        let tensor = |name: &str| {
            let found = tensors.iter().find(|(own, _)| *own == name);
            found.map(|(_, tensor)| tensor.shallow_clone()).context("missing")
        };
        let again = Batch::from_record(&tensor, &serde_json::from_str(&text).unwrap(), 3).unwrap();
        assert_eq!((&again.sizes, &again.padded, &again.infos), (&batch.sizes, &batch.padded, &batch.infos));
        assert_eq!((again.targets, again.images), (batch.targets, batch.images));
        assert!(Batch::from_record(&tensor, &json!([{ "id": 1 }]), 3).is_err());
        // A label that is no class, and images that are none of its images.
        let error = |rest: &Value, tensor: &dyn Fn(&str) -> Result<Tensor>, classes| {
            format!("{:#}", Batch::from_record(tensor, rest, classes).unwrap_err())
        };
        assert!(error(&rest, &tensor, 2).contains("label 2 in a b.png is none of the 2 classes"));
        for shape in [&[2, 3, 2, 2][..], &[1, 4, 2, 3], &[24]] {
            let other = |name: &str| Ok(tensor(name)?.view(shape));
            assert!(error(&rest, &other, 3).contains("[1, 3, H, W]"), "{shape:?}");
        }
        let whole = |name: &str| Ok(tensor(name)?.to_kind(Kind::Int));
        assert!(error(&rest, &whole, 3).contains("must be float32"));
    }
}
