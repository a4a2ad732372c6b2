//! What was found in an annotation file.

use std::fmt;

/// Counts of [`super::DetectionDataset::open`]. Its `Display` is one line for what is used, then one for each thing
/// worth knowing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Images in the annotation file.
    pub images_in_file: usize,
    /// Images that are used.
    pub images: usize,
    /// Classes in the annotation file.
    pub classes: usize,
    /// Objects of the used images, without crowds and degenerate boxes.
    pub objects: usize,
    /// Crowd regions of the used images.
    pub crowds: usize,
    /// Images of the file that have no usable object.
    pub without_objects: usize,
    /// How many of them are left out (in training).
    pub dropped: usize,
    /// Images left out by `limit`.
    pub over_limit: usize,
    /// Boxes that left their image and were clipped to it.
    pub clipped: usize,
    /// Boxes less than a pixel wide or high inside their image: dropped.
    pub degenerate: usize,
    /// Images without width and height in the file: taken from the image itself.
    pub sizes_missing: usize,
    /// Objects of the used images without a mask that training can use; 0 until
    /// [`super::DetectionDataset::count_masks`].
    pub without_mask: usize,
    /// What else in the file is not used as one might think, each a line.
    pub notes: Vec<String>,
}

impl fmt::Display for OpenReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} images, {} objects, {} classes", self.images, self.objects, self.classes)?;
        if self.crowds > 0 {
            write!(f, ", {} crowd regions", self.crowds)?;
        }
        let mut line = |count: usize, text: &str| if count > 0 { write!(f, "\n{count} {text}") } else { Ok(()) };
        line(self.dropped, "images without objects are left out")?;
        line(self.without_objects - self.dropped, "images without objects")?;
        line(self.over_limit, "images are left out by data's `limit`")?;
        line(self.clipped, "boxes left their image and were clipped to it")?;
        line(self.degenerate, "boxes less than a pixel wide or high inside their image were dropped")?;
        line(self.sizes_missing, "images have no size in the file: it was read from the image")?;
        line(
            self.without_mask,
            "objects have no mask (none given, no polygon of three points, or run lengths of another size than the \
             image): they train boxes only",
        )?;
        self.notes.iter().try_for_each(|note| write!(f, "\n{note}"))
    }
}
