//! COCO types, masks and evaluation.

pub mod types {
    //! placeholder
    /// A mask as annotated.
    #[derive(Clone, Debug, PartialEq)]
    pub enum Segmentation {
        /// Polygons.
        Polygons(Vec<Vec<f64>>),
    }
}
