//! COCO types, masks and evaluation.
