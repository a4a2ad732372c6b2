//! Where pycocotools' rules surprise. The numbers follow them; the user is told.

/// Something in the data that changes the result in a way that is easy to overlook. `Display` is one line.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Warning {
    /// Annotations whose `ignore` differs from `iscrowd`, which replaces it.
    #[error("`ignore` of {annotations} annotations is not used: `iscrowd` takes its place")]
    IgnoreOverwritten {
        /// How many.
        annotations: usize,
    },
    /// Annotations whose `segmentation` is none. Their boxes are used.
    #[error(
        "`segmentation` of {annotations} annotations is left out, boxes are used (annotation {annotation}: {reason})"
    )]
    SegmentationLeftOut {
        /// How many.
        annotations: usize,
        /// The id of the first.
        annotation: i64,
        /// Why it is none.
        reason: String,
    },
    /// An annotation with id 0: pycocotools takes its matches for none, so detections of it count as wrong.
    #[error("the annotation with id 0 never counts as found: number annotations from 1")]
    IdZero,
    /// Results with a category that the ground truth does not have, left out.
    #[error("{detections} results are left out: their category (such as {category_id}) is not in the ground truth")]
    UnknownCategory {
        /// How many.
        detections: usize,
        /// One of them.
        category_id: i64,
    },
    /// Results with a box and a mask in a mask evaluation: the area of the box decides between small, medium and large.
    #[error("{detections} results have a box and a mask: the area of the box decides whether they are small or large")]
    AreaOfBox {
        /// How many.
        detections: usize,
    },
    /// Results without a mask in a mask evaluation, evaluated as rectangles.
    #[error("{detections} results have no mask: they are evaluated as rectangles")]
    BoxesAsMasks {
        /// How many.
        detections: usize,
    },
    /// Masks whose size differs from that of a ground truth of their image: they match nothing.
    #[error("{pairs} pairs of result and annotation have masks of different sizes: they do not match")]
    SizesDiffer {
        /// How many pairs.
        pairs: usize,
    },
    /// There are no results: every number is 0 (or −1 where there are no objects either).
    #[error("there are no results")]
    NoResults,
    /// The first line of the summary is always for 100 detections, which is not among `max_dets`.
    #[error("the first line is for 100 detections, which is not among the numbers of detections: -1")]
    NoHundred,
    /// Area ranges of the summary that are not among the parameters: their lines are −1.
    #[error("no area range is named {}: their lines are -1", labels.join(" or "))]
    NoAreas {
        /// Their names.
        labels: Vec<String>,
    },
}

impl Warning {
    /// Whether it is about the results, rather than about the ground truth or the parameters.
    pub fn is_of_results(&self) -> bool {
        use Warning::{IdZero, IgnoreOverwritten, NoAreas, NoHundred, SegmentationLeftOut};
        !matches!(self, IgnoreOverwritten { .. } | SegmentationLeftOut { .. } | IdZero | NoHundred | NoAreas { .. })
    }
}
