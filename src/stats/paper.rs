//! The tables of the ViG paper (Han et al., 2022) that state costs, as models that vigdet builds.

use anyhow::Result;

use super::{Cost, Options};

/// A table of the paper.
#[derive(Debug)]
pub struct Table {
    /// Its number and subject.
    pub title: &'static str,
    /// Its rows.
    pub rows: &'static [Row],
    /// Whether the paper's rows are of the same models as ours.
    pub same_models: bool,
}

/// A row of a table.
#[derive(Debug)]
pub struct Row {
    /// The paper's name.
    pub label: &'static str,
    /// vigdet's model.
    pub model: &'static str,
    /// Changes to its config.
    pub changes: &'static [&'static str],
    /// The paper's parameters, in millions; `None`: not checked against the paper yet.
    pub parameters: Option<f64>,
    /// The paper's multiply-adds ("FLOPs"), in 10⁹.
    pub macs: Option<f64>,
}

impl Row {
    /// What vigdet counts; the row's changes come before those of `options`.
    pub fn cost(&self, options: &Options) -> Result<Cost> {
        let changes = self.changes.iter().map(|c| c.to_string()).chain(options.changes.iter().cloned());
        Cost::of(self.model, &Options { changes: changes.collect(), ..options.clone() })
    }

    /// The multiply-adds that the paper counts: its detectors are counted without the distances.
    pub fn macs_of(&self, cost: &Cost) -> u64 {
        match self.model {
            "retinanet" | "mask_rcnn" => cost.macs.weights,
            _ => cost.macs.total(),
        }
    }
}

const fn row(
    label: &'static str,
    model: &'static str,
    changes: &'static [&'static str],
    parameters: Option<f64>,
    macs: Option<f64>,
) -> Row {
    Row { label, model, changes, parameters, macs }
}

/// As mmdetection trains it: with its first stage frozen, which its parameter count leaves out.
const RESNET: [&str; 2] = ["model.backbone.name=resnet50", "model.backbone.frozen_stages=1"];

/// Tables 1, 2, 6, 7, 9 and 10.
pub const TABLES: &[Table] = &[
    Table {
        title: "Table 1: isotropic ViG, 224×224",
        rows: &[
            row("ViG-Ti", "vig_ti", &[], Some(7.1), Some(1.3)),
            row("ViG-S", "vig_s", &[], Some(22.7), Some(4.5)),
            row("ViG-B", "vig_b", &[], Some(86.8), Some(17.7)),
        ],
        same_models: true,
    },
    Table {
        title: "Table 2: Pyramid ViG, 224×224 (the paper's 51.7 M include constants)",
        rows: &[
            row("Pyramid ViG-Ti", "pvig_ti", &[], Some(10.7), Some(1.7)),
            row("Pyramid ViG-S", "pvig_s", &[], Some(27.3), Some(4.6)),
            row("Pyramid ViG-M", "pvig_m", &[], Some(51.7), Some(8.9)),
            row("Pyramid ViG-B", "pvig_b", &[], Some(92.6), Some(16.8)),
        ],
        same_models: true,
    },
    Table {
        title: "Table 6: graph convolutions of ViG-Ti",
        rows: &[
            row("EdgeConv", "vig_ti", &["model.backbone.conv=edge"], Some(7.2), Some(2.4)),
            row("GIN", "vig_ti", &["model.backbone.conv=gin"], Some(7.0), Some(1.3)),
            row("GraphSAGE", "vig_ti", &["model.backbone.conv=sage"], Some(7.3), Some(1.6)),
            row("Max-Relative", "vig_ti", &["model.backbone.conv=mr"], Some(7.1), Some(1.3)),
        ],
        same_models: true,
    },
    Table {
        title: "Table 7: modules of ViG-Ti, all at its width (the paper's rows with fewer modules and more parameters are of other widths)",
        rows: &[
            row(
                "graph convolution alone (ResGCN)",
                "vig_ti",
                &["model.backbone.grapher_fc=false", "model.backbone.ffn=false"],
                Some(5.8),
                Some(1.4),
            ),
            row("with FC in Grapher", "vig_ti", &["model.backbone.ffn=false"], Some(4.4), Some(1.4)),
            row("with FFN", "vig_ti", &["model.backbone.grapher_fc=false"], Some(7.7), Some(1.3)),
            row("with both", "vig_ti", &[], Some(7.1), Some(1.3)),
        ],
        same_models: false,
    },
    Table {
        title: "Table 9: heads of ViG-Ti",
        rows: &[
            row("1 head", "vig_ti", &["model.backbone.heads=1"], None, Some(1.6)),
            row("2 heads", "vig_ti", &["model.backbone.heads=2"], None, Some(1.4)),
            row("4 heads", "vig_ti", &["model.backbone.heads=4"], None, Some(1.3)),
            row("6 heads", "vig_ti", &["model.backbone.heads=6"], None, None),
            row("8 heads", "vig_ti", &["model.backbone.heads=8"], None, None),
        ],
        same_models: true,
    },
    Table {
        title: "Table 10: RetinaNet, 1280×800, 80 classes (without the distances)",
        rows: &[
            row("ResNet-50", "retinanet", &RESNET, Some(37.7), Some(239.3)),
            row("Pyramid ViG-S", "retinanet", &["model.backbone.name=pvig_s"], Some(36.2), Some(240.0)),
        ],
        same_models: true,
    },
    Table {
        title: "Table 10: Mask R-CNN, 1280×800, 80 classes, 1000 proposals, 100 masks (without the distances)",
        rows: &[
            row("ResNet-50", "mask_rcnn", &RESNET, Some(44.2), Some(260.1)),
            row("Pyramid ViG-S", "mask_rcnn", &["model.backbone.name=pvig_s"], Some(45.8), Some(258.8)),
        ],
        same_models: true,
    },
];
