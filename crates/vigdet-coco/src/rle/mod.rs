//! Run-length-coded masks, equal to the C code of pycocotools (`maskApi.c`) bit for bit.
//!
//! A mask is read column by column, from the top left; its runs are alternately background and object, background first
//! (so the first may be 0). [`Rle`] holds the runs in COCO's compressed text form, a few bytes a run, which is what
//! files hold and what stays small; every operation reads them from there.

mod encode;
mod overlap;
mod polygon;
mod text;

pub use overlap::{box_iou, iou};
pub(crate) use overlap::{runs_iou, Extent};
pub use text::Runs;

use serde::{Serialize, Serializer};

/// A binary mask of `height` × `width` pixels.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Rle {
    height: u32,
    width: u32,
    /// Apart, so that results without masks, which are the most, stay small.
    content: Box<Content>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Content {
    /// COCO's compressed runs. Checked when made: they decode, and add up to the pixels of the mask.
    text: Box<str>,
    /// Kept, since the runs are all read when a mask is made, and most masks are asked for nothing else.
    extent: Extent,
}

/// Why something is not a mask.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MaskError {
    /// More than 2³² − 1 pixels.
    #[error("a mask of {height} x {width} pixels is too large")]
    TooLarge {
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
    },
    /// A character outside of the 64 that the compressed form uses.
    #[error("the compressed mask has a wrong character {character:?} at {position}")]
    WrongCharacter {
        /// What is there.
        character: char,
        /// Byte offset in the text.
        position: usize,
    },
    /// The last number of the text goes on after its end.
    #[error("the compressed mask is cut off")]
    CutOff,
    /// A run that is negative or longer than 2³² − 1.
    #[error("run {index} of the mask is out of range ({value})")]
    RunOutOfRange {
        /// Which run, from 0.
        index: usize,
        /// Its length as coded.
        value: i64,
    },
    /// The runs do not cover the mask, or more than the mask.
    #[error(
        "the runs of the mask add up to {sum}, but {height} x {width} pixels are {}",
        u64::from(*height) * u64::from(*width)
    )]
    WrongSum {
        /// Sum of all runs.
        sum: u64,
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
    },
    /// A coordinate that is not finite, or beyond ±2 × 10⁸ pixels.
    #[error("polygon {polygon} has a coordinate out of range ({value:?})")]
    Coordinate {
        /// Which polygon, from 0.
        polygon: usize,
        /// The coordinate.
        value: f64,
    },
    /// No polygon at all, or a first one of at most two points: pycocotools refuses both (it takes four numbers for a
    /// box, and then cannot read it).
    #[error(
        "the first polygon has {numbers} numbers: a segmentation must begin with one of three points (6 numbers) or \
         more"
    )]
    TooFewPoints {
        /// Numbers of the first polygon, two a point.
        numbers: usize,
    },
    /// Masks of different sizes cannot be joined.
    #[error("masks of {} x {} and {} x {} pixels cannot be joined", a.0, a.1, b.0, b.1)]
    SizesDiffer {
        /// Height and width of one.
        a: (u32, u32),
        /// Height and width of the other.
        b: (u32, u32),
    },
}

impl Rle {
    /// From COCO's compressed text. Fails unless it decodes to runs that add up to `height` × `width`.
    pub fn from_compressed(height: u32, width: u32, text: &str) -> Result<Rle, MaskError> {
        check_size(height, width)?;
        let mut sum = 0u64;
        let mut measure = overlap::Measure::new(height, width);
        let mut runs = Runs::new(text.as_bytes());
        while let Some(background) = runs.checked_next().transpose()? {
            sum += u64::from(background);
            measure.skip(background);
            let Some(object) = runs.checked_next().transpose()? else { break };
            sum += u64::from(object);
            measure.cover(object);
        }
        check_sum(height, width, sum)?;
        Ok(Rle::new(height, width, text.into(), measure.extent()))
    }

    /// From the lengths of the runs, background first. Fails unless they add up to `height` × `width`.
    pub fn from_runs(height: u32, width: u32, runs: &[u32]) -> Result<Rle, MaskError> {
        check_size(height, width)?;
        check_sum(height, width, runs.iter().map(|&run| u64::from(run)).sum())?;
        Ok(Rle::from_sound_runs(height, width, runs))
    }

    /// The union of polygons, each [x₀, y₀, x₁, y₁, …] in pixels, drawn as pycocotools' `frPyObjects` and `merge` do: a
    /// last odd number is left out, and after the first a polygon may have any number of points. Fails where
    /// `frPyObjects` does, at a first polygon of fewer than five numbers.
    ///
    /// ```
    /// let mask = vigdet_coco::rle::Rle::from_polygons(4, 5, &[vec![1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]])?;
    /// assert_eq!(mask.area(), 6);
    /// # Ok::<(), vigdet_coco::rle::MaskError>(())
    /// ```
    pub fn from_polygons(height: u32, width: u32, polygons: &[Vec<f64>]) -> Result<Rle, MaskError> {
        check_size(height, width)?;
        let numbers = polygons.first().map_or(0, Vec::len);
        if numbers < 5 {
            return Err(MaskError::TooFewPoints { numbers });
        }
        let mut runs = Vec::new();
        let mut union: Vec<u32> = Vec::new();
        for (index, polygon) in polygons.iter().enumerate() {
            polygon::fill(&mut runs, polygon, index, height, width)?;
            union = if index == 0 { runs.clone() } else { overlap::merge(&union, &runs, |a, b| a || b) };
        }
        Ok(Rle::from_sound_runs(height, width, &union))
    }

    /// The rectangle x, y, width, height, in pixels, as a polygon of four points.
    pub fn from_box(height: u32, width: u32, bbox: [f64; 4]) -> Result<Rle, MaskError> {
        Rle::from_polygons(height, width, &[polygon::of_box(bbox)])
    }

    /// From pixels column by column (pixel (x, y) at `x * height + y`), where other than 0 is object.
    ///
    /// # Panics
    /// If there are not `height` × `width` pixels.
    pub fn from_columns(height: u32, width: u32, pixels: &[u8]) -> Result<Rle, MaskError> {
        check_size(height, width)?;
        assert_eq!(pixels.len() as u64, u64::from(height) * u64::from(width), "one byte a pixel");
        Ok(Rle::from_sound_runs(height, width, &encode::runs_of(pixels.iter().map(|&pixel| pixel != 0))))
    }

    /// From pixels row by row (pixel (x, y) at `y * width + x`), as images are kept.
    ///
    /// # Panics
    /// If there are not `height` × `width` pixels.
    pub fn from_rows(height: u32, width: u32, pixels: &[bool]) -> Result<Rle, MaskError> {
        check_size(height, width)?;
        let (rows, columns) = (height as usize, width as usize);
        assert_eq!(pixels.len(), rows * columns, "one flag a pixel");
        let by_column = (0..columns).flat_map(|x| (0..rows).map(move |y| pixels[y * columns + x]));
        Ok(Rle::from_sound_runs(height, width, &encode::runs_of(by_column)))
    }

    /// Pixels column by column, 0 background and 1 object.
    pub fn to_columns(&self) -> Vec<u8> {
        let mut pixels = Vec::with_capacity(self.height as usize * self.width as usize);
        for (index, run) in self.runs().enumerate() {
            pixels.resize(pixels.len() + run as usize, (index % 2) as u8);
        }
        pixels
    }

    /// Pixels row by row, as images are kept.
    pub fn to_rows(&self) -> Vec<bool> {
        let (height, width) = (self.height as usize, self.width as usize);
        let columns = self.to_columns();
        (0..height * width).map(|i| columns[(i % width) * height + i / width] != 0).collect()
    }

    /// The mask of the pixels in any of the masks (`merge` of pycocotools). The empty mask of 0 × 0 for none.
    pub fn union(masks: &[Rle]) -> Result<Rle, MaskError> {
        Rle::join(masks, |a, b| a || b)
    }

    /// The mask of the pixels in all of the masks (`merge` of pycocotools with `intersect`).
    pub fn intersection(masks: &[Rle]) -> Result<Rle, MaskError> {
        Rle::join(masks, |a, b| a && b)
    }

    fn join(masks: &[Rle], how: impl Fn(bool, bool) -> bool) -> Result<Rle, MaskError> {
        let Some(first) = masks.first() else { return Ok(Rle::from_sound_runs(0, 0, &[])) };
        let mut runs: Vec<u32> = first.runs().collect();
        for mask in &masks[1..] {
            if mask.size() != first.size() {
                return Err(MaskError::SizesDiffer { a: first.size(), b: mask.size() });
            }
            runs = overlap::merge(&runs, &mask.runs().collect::<Vec<_>>(), &how);
        }
        Ok(Rle::from_sound_runs(first.height, first.width, &runs))
    }

    /// Runs that are known to be right.
    fn from_sound_runs(height: u32, width: u32, runs: &[u32]) -> Rle {
        let extent = Extent::of(runs, height, width);
        Rle::new(height, width, text::compress(runs).into(), extent)
    }

    fn new(height: u32, width: u32, text: Box<str>, extent: Extent) -> Rle {
        Rle { height, width, content: Box::new(Content { text, extent }) }
    }

    /// Rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Columns.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height and width.
    pub fn size(&self) -> (u32, u32) {
        (self.height, self.width)
    }

    /// COCO's compressed text, as in files.
    pub fn compressed(&self) -> &str {
        &self.content.text
    }

    /// The lengths of the runs, background first.
    pub fn runs(&self) -> Runs<'_> {
        Runs::new(self.content.text.as_bytes())
    }

    /// Number of object pixels.
    pub fn area(&self) -> u32 {
        self.content.extent.area
    }

    /// Smallest box around the object pixels: x, y, width, height. All 0 for a mask of one run.
    pub fn bbox(&self) -> [f64; 4] {
        self.content.extent.bbox()
    }

    pub(crate) fn extent(&self) -> Extent {
        self.content.extent
    }
}

impl std::fmt::Debug for Rle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rle({} x {}, {:?})", self.height, self.width, self.content.text)
    }
}

/// As in COCO's files: `{"size": [height, width], "counts": "…"}`.
impl Serialize for Rle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("Rle", 2)?;
        fields.serialize_field("size", &[self.height, self.width])?;
        fields.serialize_field("counts", &*self.content.text)?;
        fields.end()
    }
}

fn check_size(height: u32, width: u32) -> Result<(), MaskError> {
    match height.checked_mul(width) {
        Some(pixels) if pixels < u32::MAX => Ok(()),
        _ => Err(MaskError::TooLarge { height, width }),
    }
}

fn check_sum(height: u32, width: u32, sum: u64) -> Result<(), MaskError> {
    let right = sum == u64::from(height) * u64::from(width);
    right.then_some(()).ok_or(MaskError::WrongSum { sum, height, width })
}
