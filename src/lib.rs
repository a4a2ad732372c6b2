//! vigdet: object detection with Vision GNN backbones.

pub mod graph;
