//! A detector in an ONNX file that vigdet wrote, run by ONNX Runtime. The runtime's library is not part of vigdet:
//! `ORT_DYLIB_PATH` says where it is.

use std::cell::RefCell;
use std::fmt::Display;
use std::path::Path;

use anyhow::{anyhow, bail, ensure, Context, Result};
use ort::logging::LogLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::{Tensor as OrtTensor, TensorElementType, ValueType};
use tch::{Kind, Tensor};

use super::detector::{Detections, Detector, Losses};
use super::instance_mask::InstanceMask;
use crate::backbone::Pass;
use crate::config::MaskHeadConfig;
use crate::data::Batch;
use crate::nn::cost::{Layer, Size};

/// Where the runtime's library is.
const LIBRARY: &str = "ORT_DYLIB_PATH";

/// A session of the runtime, and what its model takes.
pub struct Exported {
    session: RefCell<Session>,
    /// Images are uint8, not float32.
    takes_bytes: bool,
    /// Images of a batch, if they must be so many.
    batch: Option<i64>,
    /// (height, width) of the images, if they must be that large.
    size: Option<(i64, i64)>,
    mask_head: MaskHeadConfig,
    has_masks: bool,
}

/// An error of the runtime, which may not leave its thread.
fn failed(error: impl Display) -> anyhow::Error {
    anyhow!("ONNX Runtime: {error}")
}

impl Exported {
    /// Opens a file, and gives the config and the classes in its metadata, as JSON.
    ///
    /// # Errors
    /// If the runtime's library or the file cannot be loaded, or is not a detector that vigdet wrote.
    pub fn open(path: &Path) -> Result<(Self, String, String)> {
        let library = std::env::var_os(LIBRARY).filter(|library| !library.is_empty()).with_context(|| {
            format!(
                "{LIBRARY} does not name ONNX Runtime's library: the wheel `onnxruntime` has it, as \
                 onnxruntime/capi/libonnxruntime.so.VERSION"
            )
        })?;
        let library = Path::new(&library);
        let environment =
            ort::init_from(library).map_err(|error| anyhow!("cannot load {}: {error}", library.display()));
        // False where there is one already.
        let _ = environment?.commit();
        // It warns that `sizes` can be given, which is what it is for.
        let builder = Session::builder().map_err(failed)?;
        let mut builder = builder.with_log_level(LogLevel::Error).map_err(failed)?;
        let session = builder.commit_from_file(path).map_err(failed)?;
        let entry = |key: &str| session.metadata().ok().and_then(|metadata| metadata.custom(key));
        let (Some(config), Some(classes)) = (entry("config"), entry("classes")) else {
            bail!("its metadata lack `config` and `classes`: vigdet runs what `vigdet export` wrote");
        };
        let images = session.inputs().iter().find(|input| input.name() == "images").context("it takes no `images`")?;
        let ValueType::Tensor { ty, shape, .. } = images.dtype() else { bail!("its `images` are not a tensor") };
        let [batch, _, height, width] = shape[..] else { bail!("its `images` have {} dimensions", shape.len()) };
        let is = |name: &str| session.outputs().iter().any(|output| output.name() == name);
        ensure!(is("boxes") && is("counts"), "it is not a detector");
        let exported = Self {
            takes_bytes: *ty == TensorElementType::Uint8,
            batch: (batch > 0).then_some(batch),
            size: (height > 0 && width > 0).then_some((height, width)),
            mask_head: MaskHeadConfig::default(),
            has_masks: is("mask_grids"),
            session: RefCell::new(session),
        };
        Ok((exported, config, classes))
    }

    /// How its masks are put into their images.
    pub fn set_mask_head(&mut self, config: &MaskHeadConfig) {
        self.mask_head = config.clone();
    }

    /// (height, width) of its images, if they must be that large.
    pub fn size(&self) -> Option<(i64, i64)> {
        self.size
    }

    /// Detections on images `[B, 3, H, W]` of pixels in 0–255, of these (height, width).
    fn run(&self, images: &Tensor, sizes: &[(i64, i64)]) -> Result<Vec<Detections>> {
        let count = sizes.len();
        let missing = self.batch.map_or(0, |batch| batch - count as i64);
        ensure!(missing >= 0, "the model takes {} images at a time", count as i64 + missing);
        let mut images = images.shallow_clone();
        if let Some((height, width)) = self.size {
            let size = images.size();
            images = images.constant_pad_nd([0, width - size[3], 0, height - size[2]]);
        }
        images = images.constant_pad_nd([0, 0, 0, 0, 0, 0, 0, missing]);
        let shape = images.size();
        let flat = images.contiguous().view(-1);
        let images: SessionInputValue = if self.takes_bytes {
            let bytes = Vec::<u8>::try_from(flat.round().to_kind(Kind::Uint8))?;
            OrtTensor::from_array((shape.clone(), bytes)).map_err(failed)?.into()
        } else {
            OrtTensor::from_array((shape.clone(), Vec::<f32>::try_from(flat)?)).map_err(failed)?.into()
        };
        let mut flat: Vec<i64> = sizes.iter().flat_map(|&(height, width)| [height, width]).collect();
        flat.resize(2 * shape[0] as usize, 1);
        let sizes: SessionInputValue = OrtTensor::from_array((vec![shape[0], 2], flat)).map_err(failed)?.into();
        let mut session = self.session.borrow_mut();
        let outputs = session.run(vec![("images", images), ("sizes", sizes)]).map_err(failed)?;
        let floats = |name: &str| -> Result<Vec<f32>> {
            let output = outputs.get(name).with_context(|| format!("the model gives no `{name}`"))?;
            Ok(output.try_extract_tensor::<f32>().map_err(failed)?.1.to_vec())
        };
        let ints = |name: &str| -> Result<Vec<i64>> {
            let output = outputs.get(name).with_context(|| format!("the model gives no `{name}`"))?;
            Ok(output.try_extract_tensor::<i64>().map_err(failed)?.1.to_vec())
        };
        let (boxes, scores, labels, counts) = (floats("boxes")?, floats("scores")?, ints("labels")?, ints("counts")?);
        let grids = if self.has_masks { floats("mask_grids")? } else { Vec::new() };
        let rows = scores.len() / shape[0] as usize;
        let area = grids.len() / scores.len().max(1);
        let side = area.isqrt();
        let mask = |values: &[f32]| InstanceMask {
            values: values.to_vec(),
            side,
            paste: self.mask_head.paste,
            threshold: self.mask_head.threshold as f32,
        };
        let of_image = |(image, found): (usize, &i64)| {
            let (from, to) = (image * rows, image * rows + (*found).clamp(0, rows as i64) as usize);
            Detections {
                boxes: boxes[4 * from..4 * to].chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect(),
                scores: scores[from..to].to_vec(),
                labels: labels[from..to].to_vec(),
                masks: if area > 0 {
                    grids[area * from..area * to].chunks_exact(area).map(mask).collect()
                } else {
                    vec![]
                },
            }
        };
        Ok(counts.iter().take(count).enumerate().map(of_image).collect())
    }
}

impl Detector for Exported {
    fn losses(&self, _batch: &Batch, _pass: &mut Pass) -> Result<Losses> {
        bail!("an ONNX file cannot be trained: train the weights that it was exported from")
    }

    /// The batch's images are pixels in 0–255: the model normalises them.
    fn detect(&self, batch: &Batch) -> Result<Vec<Detections>> {
        let at_once = self.batch.map_or(batch.len(), |images| images as usize).max(1);
        let mut all = Vec::with_capacity(batch.len());
        for (from, sizes) in (0..batch.len()).step_by(at_once).zip(batch.sizes.chunks(at_once)) {
            let images = batch.images.narrow(0, from as i64, sizes.len() as i64);
            all.extend(self.run(&images, sizes)?);
        }
        for ((found, &size), info) in all.iter_mut().zip(&batch.sizes).zip(&batch.infos) {
            found.rescale(size, (i64::from(info.height), i64::from(info.width)));
        }
        Ok(all)
    }

    fn has_masks(&self) -> bool {
        self.has_masks
    }

    /// Nothing: the file does not tell its layers.
    fn flops(&self, _image: Size, _visit: &mut dyn FnMut(Layer)) {}
}
