//! Where pycocotools' rules surprise. The numbers follow them; the user is told.

use std::fmt;

/// Something in the data that changes the result in a way that is easy to overlook. `Display` is one line.
#[derive(Clone, Debug, PartialEq)]
pub enum Warning {
    /// Annotations whose `ignore` differs from `iscrowd`, which replaces it.
    IgnoreOverwritten {
        /// How many.
        annotations: usize,
    },
    /// An annotation with id 0: pycocotools takes its matches for none, so detections of it count as wrong.
    IdZero,
    /// Results with a category that the ground truth does not have, left out.
    UnknownCategory {
        /// How many.
        detections: usize,
        /// One of them.
        category_id: i64,
    },
    /// Results with a box and a mask in a mask evaluation: the area of the box decides between small, medium and large.
    AreaOfBox {
        /// How many.
        detections: usize,
    },
    /// Results without a mask in a mask evaluation, evaluated as rectangles.
    BoxesAsMasks {
        /// How many.
        detections: usize,
    },
    /// Masks whose size differs from that of a ground truth of their image: they match nothing.
    SizesDiffer {
        /// How many pairs.
        pairs: usize,
    },
    /// There are no results: every number is 0 (or −1 where there are no objects either).
    NoResults,
    /// The first line of the summary is always for 100 detections, which is not among `max_dets`.
    NoHundred,
    /// Area ranges of the summary that are not among the parameters: their lines are −1.
    NoAreas {
        /// Their names.
        labels: Vec<String>,
    },
}

impl Warning {
    /// Whether it is about the results, rather than about the ground truth or the parameters.
    pub fn is_of_results(&self) -> bool {
        match self {
            Warning::UnknownCategory { .. }
            | Warning::AreaOfBox { .. }
            | Warning::BoxesAsMasks { .. }
            | Warning::SizesDiffer { .. }
            | Warning::NoResults => true,
            Warning::IgnoreOverwritten { .. } | Warning::IdZero | Warning::NoHundred | Warning::NoAreas { .. } => false,
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::IgnoreOverwritten { annotations } => {
                write!(f, "`ignore` of {annotations} annotations is not used: `iscrowd` takes its place")
            }
            Warning::IdZero => {
                write!(f, "the annotation with id 0 never counts as found: number annotations from 1")
            }
            Warning::UnknownCategory { detections, category_id } => write!(
                f,
                "{detections} results are left out: their category (such as {category_id}) is not in the ground truth"
            ),
            Warning::AreaOfBox { detections } => write!(
                f,
                "{detections} results have a box and a mask: the area of the box decides whether they are small or \
                 large"
            ),
            Warning::BoxesAsMasks { detections } => {
                write!(f, "{detections} results have no mask: they are evaluated as rectangles")
            }
            Warning::SizesDiffer { pairs } => {
                write!(f, "{pairs} pairs of result and annotation have masks of different sizes: they do not match")
            }
            Warning::NoResults => write!(f, "there are no results"),
            Warning::NoHundred => {
                write!(f, "the first line is for 100 detections, which is not among the numbers of detections: -1")
            }
            Warning::NoAreas { labels } => {
                write!(f, "no area range is named {}: their lines are -1", labels.join(" or "))
            }
        }
    }
}
