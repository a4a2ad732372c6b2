//! What a detection and an object look like to the evaluation: boxes or masks, areas, overlaps.

use super::group::{Member, Ranked, Scope};
use super::warning::Warning;
use super::IouType;
use crate::error::{Error, Result};
use crate::rle::{box_iou, runs_iou, Extent, MaskError, Rle};
use crate::types::{Annotation, Dataset, Detection, Segmentation};
use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An object that a detection may match.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// Index in the group.
    pub truth: u32,
    pub iou: f64,
}

/// The overlaps of one image and category. Kept between groups for its memory.
#[derive(Default)]
pub(crate) struct Overlaps {
    /// Of each detection, the objects that it overlaps enough, in order.
    candidates: Vec<Candidate>,
    /// Where the candidates of each detection end.
    ends: Vec<u32>,
    /// Area of each detection.
    pub areas: Vec<f64>,
    boxes: Vec<[f64; 4]>,
    masks: Vec<Mask>,
    runs: Vec<u32>,
}

/// A decoded mask of an object.
struct Mask {
    size: (u32, u32),
    extent: Extent,
    runs: Vec<u32>,
}

impl Overlaps {
    /// The objects that the detection overlaps enough to match, in their order.
    pub(crate) fn candidates(&self, detection: usize) -> &[Candidate] {
        let start = if detection == 0 { 0 } else { self.ends[detection - 1] };
        &self.candidates[start as usize..self.ends[detection] as usize]
    }

    fn clear(&mut self) {
        self.candidates.clear();
        self.ends.clear();
        self.areas.clear();
        self.boxes.clear();
        self.masks.clear();
    }
}

/// Computes overlaps as one kind of shape.
pub(crate) struct Shapes<'a> {
    truth: &'a [Annotation],
    detections: &'a [Detection],
    iou_type: IouType,
    /// The first result has a box: then all areas are those of boxes, as in pycocotools' `loadRes`.
    areas_of_boxes: bool,
    /// Height and width of each image of the scope.
    sizes: Vec<(u32, u32)>,
    /// Overlaps below match nothing.
    pub least: f64,
    different_sizes: AtomicUsize,
}

impl<'a> Shapes<'a> {
    /// `least` is the smallest IoU threshold.
    pub(crate) fn new(
        truth: &'a Dataset,
        detections: &'a [Detection],
        iou_type: IouType,
        scope: &Scope,
        least: f64,
        warnings: &mut Vec<Warning>,
    ) -> Shapes<'a> {
        let areas_of_boxes = detections.first().is_some_and(|first| first.bbox.is_some());
        let mut sizes = vec![(0, 0); scope.images.len()];
        for image in &truth.images {
            if let Some(index) = scope.images.index_of(image.id) {
                sizes[index] = (image.height, image.width);
            }
        }
        if iou_type == IouType::Segm {
            let count = |with: fn(&Detection) -> bool| detections.iter().filter(|detection| with(detection)).count();
            let both = count(|detection| detection.segmentation.is_some() && detection.bbox.is_some());
            if areas_of_boxes && both > 0 {
                warnings.push(Warning::AreaOfBox { detections: both });
            }
            let boxes = count(|detection| detection.segmentation.is_none());
            if boxes > 0 {
                warnings.push(Warning::BoxesAsMasks { detections: boxes });
            }
        }
        Shapes {
            truth: &truth.annotations,
            detections,
            iou_type,
            areas_of_boxes,
            sizes,
            least,
            different_sizes: AtomicUsize::new(0),
        }
    }

    /// What was seen while computing.
    pub(crate) fn warnings(&self) -> Option<Warning> {
        let pairs = self.different_sizes.load(Ordering::Relaxed);
        (pairs > 0).then_some(Warning::SizesDiffer { pairs })
    }

    /// Areas of the detections of one image and category, and their overlaps with its objects.
    pub(crate) fn compute(&self, detections: &[Ranked], truths: &[Member], out: &mut Overlaps) -> Result<()> {
        out.clear();
        match self.iou_type {
            IouType::Bbox => self.boxes(detections, truths, out),
            IouType::Segm => self.masks(detections, truths, out),
        }
    }

    fn boxes(&self, detections: &[Ranked], truths: &[Member], out: &mut Overlaps) -> Result<()> {
        out.boxes.extend(truths.iter().map(|member| self.truth[member.index as usize].bbox));
        for ranked in detections {
            let (bbox, area) = self.box_and_area(ranked)?;
            // An overlap that is not a number (of boxes of infinite size) is below no threshold, and no later one is
            // below it: as in pycocotools all that follow can match.
            let mut all = false;
            for (member, truth) in truths.iter().zip(0..) {
                let crowd = self.truth[member.index as usize].iscrowd;
                let iou = box_iou(bbox, out.boxes[truth as usize], crowd);
                all |= iou.is_nan();
                if all || iou >= self.least {
                    out.candidates.push(Candidate { truth, iou });
                }
            }
            out.areas.push(area);
            out.ends.push(out.candidates.len() as u32);
        }
        Ok(())
    }

    fn box_and_area(&self, ranked: &Ranked) -> Result<([f64; 4], f64)> {
        let detection = &self.detections[ranked.index as usize];
        if let (true, Some(bbox)) = (self.areas_of_boxes, detection.bbox) {
            return Ok((bbox, bbox[2] * bbox[3]));
        }
        match (detection.bbox, &detection.segmentation) {
            (bbox, Some(_)) => {
                let extent = self.mask(ranked)?.extent();
                let bbox = bbox.unwrap_or(extent.bbox());
                Ok((bbox, if self.areas_of_boxes { bbox[2] * bbox[3] } else { f64::from(extent.area) }))
            }
            (Some(bbox), None) => Ok((bbox, bbox[2] * bbox[3])),
            (None, None) => Err(neither(ranked.index)),
        }
    }

    fn masks(&self, detections: &[Ranked], truths: &[Member], out: &mut Overlaps) -> Result<()> {
        // Without detections nothing has to be drawn.
        if !detections.is_empty() {
            for member in truths {
                out.masks.push(self.truth_mask(member)?);
            }
        }
        for ranked in detections {
            let detection = &self.detections[ranked.index as usize];
            let area_of_box = detection.bbox.filter(|_| self.areas_of_boxes).map(|bbox| bbox[2] * bbox[3]);
            if let (Some(area), true) = (area_of_box, truths.is_empty()) {
                out.areas.push(area);
                out.ends.push(out.candidates.len() as u32);
                continue;
            }
            let mask = self.mask(ranked)?;
            let extent = mask.extent();
            out.runs.clear();
            for (truth, object) in out.masks.iter().enumerate() {
                let crowd = self.truth[truths[truth].index as usize].iscrowd;
                let mut iou = box_iou(extent.bbox(), object.extent.bbox(), crowd);
                if iou > 0.0 && mask.size() != object.size {
                    self.different_sizes.fetch_add(1, Ordering::Relaxed);
                    iou = -1.0;
                } else if iou > 0.0 {
                    // Most masks meet no object, or not enough of one: their runs are not needed.
                    if extent.most_iou(&object.extent, crowd) < self.least {
                        continue;
                    }
                    if out.runs.is_empty() {
                        out.runs.extend(mask.runs());
                    }
                    iou = runs_iou(&out.runs, &object.runs, crowd.then_some(extent.area));
                }
                if iou >= self.least {
                    out.candidates.push(Candidate { truth: truth as u32, iou });
                }
            }
            let own_area = match (detection.bbox, &detection.segmentation) {
                (Some(bbox), None) => bbox[2] * bbox[3],
                _ => f64::from(extent.area),
            };
            out.areas.push(area_of_box.unwrap_or(own_area));
            out.ends.push(out.candidates.len() as u32);
        }
        Ok(())
    }

    /// Whether the evaluation can look at this object.
    pub(crate) fn can_draw(&self, member: &Member) -> bool {
        self.iou_type == IouType::Bbox || self.truth_mask(member).is_ok()
    }

    fn truth_mask(&self, member: &Member) -> Result<Mask> {
        let annotation = &self.truth[member.index as usize];
        let id = annotation.id;
        let Some(segmentation) = &annotation.segmentation else {
            return Err(Error::Data(format!("annotation {id} has no segmentation, which a mask evaluation needs")));
        };
        let drawn = self.draw(segmentation, member.image);
        let rle = drawn.map_err(|error| Error::Data(format!("annotation {id}, segmentation: {error}")))?;
        Ok(Mask { size: rle.size(), extent: rle.extent(), runs: rle.runs().collect() })
    }

    fn mask(&self, ranked: &Ranked) -> Result<Cow<'a, Rle>> {
        let detection = &self.detections[ranked.index as usize];
        let drawn = match (&detection.segmentation, detection.bbox) {
            (Some(segmentation), _) => self.draw(segmentation, ranked.image),
            (None, Some(bbox)) => self.on_image(ranked.image, |height, width| Rle::from_box(height, width, bbox)),
            (None, None) => return Err(neither(ranked.index)),
        };
        drawn.map_err(|error| Error::Data(format!("result {}, segmentation: {error}", ranked.index)))
    }

    fn draw<'b>(&self, segmentation: &'b Segmentation, image: u32) -> std::result::Result<Cow<'b, Rle>, String> {
        match segmentation {
            Segmentation::Rle(rle) => Ok(Cow::Borrowed(rle)),
            Segmentation::Polygons(polygons) => {
                self.on_image(image, |height, width| Rle::from_polygons(height, width, polygons))
            }
        }
    }

    /// What `draw` draws on an image of this height and width.
    fn on_image<'b>(
        &self,
        image: u32,
        draw: impl FnOnce(u32, u32) -> std::result::Result<Rle, MaskError>,
    ) -> std::result::Result<Cow<'b, Rle>, String> {
        const LACKS: &str = "to draw it the width and the height of its image are needed, which the ground truth lacks";
        match self.sizes[image as usize] {
            (0, _) | (_, 0) => Err(LACKS.to_owned()),
            (height, width) => draw(height, width).map(Cow::Owned).map_err(|error| error.to_string()),
        }
    }
}

fn neither(index: u32) -> Error {
    Error::Data(format!("result {index} has neither a box nor a segmentation"))
}
