//! The tables of the ViG paper (Han et al., 2022), as models that vigdet builds.

use anyhow::Result;

use super::{Cost, Options};

/// A table of the paper.
#[derive(Debug)]
pub struct Table {
    /// Its number and subject.
    pub title: &'static str,
    /// Its rows.
    pub rows: &'static [Row],
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
    /// What the paper prints.
    pub paper: Figures,
}

/// What the paper prints of a model; `None` where it does not.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Parameters, in millions.
    pub parameters: Option<f64>,
    /// Multiply-adds ("FLOPs"), in 10⁹.
    pub macs: Option<f64>,
    /// Top-1 accuracy on ImageNet's validation images, in percent.
    pub top1: Option<f64>,
    /// AP of boxes on COCO val2017, in percent.
    pub box_ap: Option<f64>,
    /// AP of masks on COCO val2017, in percent.
    pub mask_ap: Option<f64>,
}

impl Row {
    /// What vigdet counts; the row's changes come before those of `options`.
    ///
    /// # Errors
    /// Those of [`Cost::of`].
    pub fn cost(&self, options: &Options) -> Result<Cost> {
        let changes = self.changes.iter().map(|c| c.to_string()).chain(options.changes.iter().cloned());
        Cost::of(self.model, &Options { changes: changes.collect(), ..options.clone() })
    }

    /// The multiply-adds that the paper counts: its detectors are counted without distances and attention's products.
    pub fn macs_of(&self, cost: &Cost) -> u64 {
        match self.model {
            "retinanet" | "mask_rcnn" => cost.macs.weights,
            _ => cost.macs.total(),
        }
    }
}

/// What the paper does not print.
const NO: f64 = f64::NAN;

const fn printed(figure: f64) -> Option<f64> {
    if figure.is_nan() {
        None
    } else {
        Some(figure)
    }
}

/// `figures`: those of [`Figures`], in their order.
const fn row(label: &'static str, model: &'static str, changes: &'static [&'static str], figures: [f64; 5]) -> Row {
    let [parameters, macs, top1, box_ap, mask_ap] = figures;
    let paper = Figures {
        parameters: printed(parameters),
        macs: printed(macs),
        top1: printed(top1),
        box_ap: printed(box_ap),
        mask_ap: printed(mask_ap),
    };
    Row { label, model, changes, paper }
}

const fn vig_ti(label: &'static str, changes: &'static [&'static str], figures: [f64; 5]) -> Row {
    row(label, "vig_ti", changes, figures)
}

/// As mmdetection trains it: with its first stage frozen, which its parameter count leaves out.
const RESNET: [&str; 2] = ["model.backbone.name=resnet50", "model.backbone.frozen_stages=1"];
const RESNEXT: [&str; 2] = ["model.backbone.name=resnext101_32x4d", "model.backbone.frozen_stages=1"];
const PVT: [&str; 1] = ["model.backbone.name=pvt_small"];
const CYCLE_MLP: [&str; 1] = ["model.backbone.name=cyclemlp_b2"];
const POOLFORMER: [&str; 1] = ["model.backbone.name=poolformer_s24"];
const SWIN: [&str; 1] = ["model.backbone.name=swin_t"];
const PVIG_S: [&str; 1] = ["model.backbone.name=pvig_s"];

/// Tables 1, 2, 6 to 10; top-1 of Tables 1 and 2 is that of Tables 4 and 5.
pub const TABLES: &[Table] = &[
    Table {
        title: "Table 1: isotropic ViG, 224×224",
        rows: &[
            row("ViG-Ti", "vig_ti", &[], [7.1, 1.3, 73.9, NO, NO]),
            row("ViG-S", "vig_s", &[], [22.7, 4.5, 80.4, NO, NO]),
            row("ViG-B", "vig_b", &[], [86.8, 17.7, 82.3, NO, NO]),
        ],
    },
    Table {
        title: "Table 2: Pyramid ViG, 224×224 (the paper's 51.7 M include constants)",
        rows: &[
            row("Pyramid ViG-Ti", "pvig_ti", &[], [10.7, 1.7, 78.2, NO, NO]),
            row("Pyramid ViG-S", "pvig_s", &[], [27.3, 4.6, 82.1, NO, NO]),
            row("Pyramid ViG-M", "pvig_m", &[], [51.7, 8.9, 83.1, NO, NO]),
            row("Pyramid ViG-B", "pvig_b", &[], [92.6, 16.8, 83.7, NO, NO]),
        ],
    },
    Table {
        title: "Table 6: graph convolutions of ViG-Ti",
        rows: &[
            vig_ti("EdgeConv", &["model.backbone.conv=edge"], [7.2, 2.4, 74.3, NO, NO]),
            vig_ti("GIN", &["model.backbone.conv=gin"], [7.0, 1.3, 72.8, NO, NO]),
            vig_ti("GraphSAGE", &["model.backbone.conv=sage"], [7.3, 1.6, 74.0, NO, NO]),
            vig_ti("Max-Relative", &["model.backbone.conv=mr"], [7.1, 1.3, 73.9, NO, NO]),
        ],
    },
    Table {
        title: "Table 7: modules of ViG-Ti, all at its width \
                (the paper's first three are of widths that it does not print)",
        rows: &[
            vig_ti(
                "graph convolution alone (ResGCN)",
                &["model.backbone.grapher_fc=false", "model.backbone.ffn=false"],
                [5.8, 1.4, 67.0, NO, NO],
            ),
            vig_ti("with FC in Grapher", &["model.backbone.ffn=false"], [4.4, 1.4, 73.4, NO, NO]),
            vig_ti("with FFN", &["model.backbone.grapher_fc=false"], [7.7, 1.3, 73.6, NO, NO]),
            vig_ti("with both", &[], [7.1, 1.3, 73.9, NO, NO]),
        ],
    },
    Table {
        title: "Table 8: neighbours of ViG-Ti",
        rows: &[
            vig_ti("3 neighbours", &["model.backbone.k=3", "model.backbone.k_last=3"], [NO, NO, 72.2, NO, NO]),
            vig_ti("6 neighbours", &["model.backbone.k=6", "model.backbone.k_last=6"], [NO, NO, 73.4, NO, NO]),
            vig_ti("9 neighbours", &["model.backbone.k=9", "model.backbone.k_last=9"], [NO, NO, 73.6, NO, NO]),
            vig_ti("12 neighbours", &["model.backbone.k=12", "model.backbone.k_last=12"], [NO, NO, 73.6, NO, NO]),
            vig_ti("15 neighbours", &["model.backbone.k=15", "model.backbone.k_last=15"], [NO, NO, 73.5, NO, NO]),
            vig_ti("20 neighbours", &["model.backbone.k=20", "model.backbone.k_last=20"], [NO, NO, 73.3, NO, NO]),
            vig_ti("9 to 18 neighbours", &["model.backbone.k=9", "model.backbone.k_last=18"], [NO, NO, 73.9, NO, NO]),
        ],
    },
    Table {
        title: "Table 9: heads of ViG-Ti",
        rows: &[
            vig_ti("1 head", &["model.backbone.heads=1"], [NO, 1.6, 74.2, NO, NO]),
            vig_ti("2 heads", &["model.backbone.heads=2"], [NO, 1.4, 74.0, NO, NO]),
            vig_ti("4 heads", &["model.backbone.heads=4"], [NO, 1.3, 73.9, NO, NO]),
            vig_ti("6 heads", &["model.backbone.heads=6"], [NO, 1.2, 73.7, NO, NO]),
            vig_ti("8 heads", &["model.backbone.heads=8"], [NO, 1.2, 73.7, NO, NO]),
        ],
    },
    Table {
        title: "Table 10: RetinaNet, 1280×800, 80 classes (without distances and attention)",
        rows: &[
            row("ResNet-50", "retinanet", &RESNET, [37.7, 239.3, NO, 36.3, NO]),
            row("ResNeXt-101-32x4d", "retinanet", &RESNEXT, [56.4, 319.0, NO, 39.9, NO]),
            row("PVT-Small", "retinanet", &PVT, [34.2, 226.5, NO, 40.4, NO]),
            row("CycleMLP-B2", "retinanet", &CYCLE_MLP, [36.5, 230.9, NO, 40.6, NO]),
            row("Swin-T", "retinanet", &SWIN, [38.5, 244.8, NO, 41.5, NO]),
            row("Pyramid ViG-S", "retinanet", &PVIG_S, [36.2, 240.0, NO, 41.8, NO]),
        ],
    },
    Table {
        title: "Table 10: Mask R-CNN, 1280×800, 80 classes, 1000 proposals, 100 masks \
                (without distances and attention)",
        rows: &[
            row("ResNet-50", "mask_rcnn", &RESNET, [44.2, 260.1, NO, 38.0, 34.4]),
            row("PVT-Small", "mask_rcnn", &PVT, [44.1, 245.1, NO, 40.4, 37.8]),
            row("CycleMLP-B2", "mask_rcnn", &CYCLE_MLP, [46.5, 249.5, NO, 42.1, 38.9]),
            row("PoolFormer-S24", "mask_rcnn", &POOLFORMER, [41.0, NO, NO, 40.1, 37.0]),
            row("Swin-T", "mask_rcnn", &SWIN, [47.8, 264.0, NO, 42.2, 39.1]),
            row("Pyramid ViG-S", "mask_rcnn", &PVIG_S, [45.8, 258.8, NO, 42.6, 39.4]),
        ],
    },
];
