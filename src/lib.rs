//! vigdet: object detection with Vision GNN backbones.
