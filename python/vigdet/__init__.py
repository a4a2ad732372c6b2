"""vigdet: object detection with Vision GNN backbones. This package holds the programs; see `vigdet --help`."""
