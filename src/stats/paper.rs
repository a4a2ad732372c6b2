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

    /// The multiply-adds that the paper counts: its detectors are counted without the distances.
    pub fn macs_of(&self, cost: &Cost) -> u64 {
        match self.model {
            "retinanet" | "mask_rcnn" => cost.macs.weights,
            _ => cost.macs.total(),
        }
    }

    const fn parameters(mut self, millions: f64) -> Self {
        self.paper.parameters = Some(millions);
        self
    }

    const fn macs(mut self, billions: f64) -> Self {
        self.paper.macs = Some(billions);
        self
    }

    const fn top1(mut self, percent: f64) -> Self {
        self.paper.top1 = Some(percent);
        self
    }

    const fn box_ap(mut self, percent: f64) -> Self {
        self.paper.box_ap = Some(percent);
        self
    }

    const fn mask_ap(mut self, percent: f64) -> Self {
        self.paper.mask_ap = Some(percent);
        self
    }
}

const fn row(label: &'static str, model: &'static str, changes: &'static [&'static str]) -> Row {
    let paper = Figures { parameters: None, macs: None, top1: None, box_ap: None, mask_ap: None };
    Row { label, model, changes, paper }
}

const fn vig_ti(label: &'static str, changes: &'static [&'static str]) -> Row {
    row(label, "vig_ti", changes)
}

/// As mmdetection trains it: with its first stage frozen, which its parameter count leaves out.
const RESNET: [&str; 2] = ["model.backbone.name=resnet50", "model.backbone.frozen_stages=1"];
const PVIG_S: [&str; 1] = ["model.backbone.name=pvig_s"];

/// Tables 1, 2, 6 to 10; top-1 of Tables 1 and 2 is that of Tables 4 and 5.
pub const TABLES: &[Table] = &[
    Table {
        title: "Table 1: isotropic ViG, 224×224",
        rows: &[
            row("ViG-Ti", "vig_ti", &[]).parameters(7.1).macs(1.3).top1(73.9),
            row("ViG-S", "vig_s", &[]).parameters(22.7).macs(4.5).top1(80.4),
            row("ViG-B", "vig_b", &[]).parameters(86.8).macs(17.7).top1(82.3),
        ],
        same_models: true,
    },
    Table {
        title: "Table 2: Pyramid ViG, 224×224 (the paper's 51.7 M include constants)",
        rows: &[
            row("Pyramid ViG-Ti", "pvig_ti", &[]).parameters(10.7).macs(1.7).top1(78.2),
            row("Pyramid ViG-S", "pvig_s", &[]).parameters(27.3).macs(4.6).top1(82.1),
            row("Pyramid ViG-M", "pvig_m", &[]).parameters(51.7).macs(8.9).top1(83.1),
            row("Pyramid ViG-B", "pvig_b", &[]).parameters(92.6).macs(16.8).top1(83.7),
        ],
        same_models: true,
    },
    Table {
        title: "Table 6: graph convolutions of ViG-Ti",
        rows: &[
            vig_ti("EdgeConv", &["model.backbone.conv=edge"]).parameters(7.2).macs(2.4).top1(74.3),
            vig_ti("GIN", &["model.backbone.conv=gin"]).parameters(7.0).macs(1.3).top1(72.8),
            vig_ti("GraphSAGE", &["model.backbone.conv=sage"]).parameters(7.3).macs(1.6).top1(74.0),
            vig_ti("Max-Relative", &["model.backbone.conv=mr"]).parameters(7.1).macs(1.3).top1(73.9),
        ],
        same_models: true,
    },
    Table {
        title: "Table 7: modules of ViG-Ti, all at its width \
                (the paper's first three are of widths that it does not print)",
        rows: &[
            vig_ti(
                "graph convolution alone (ResGCN)",
                &["model.backbone.grapher_fc=false", "model.backbone.ffn=false"],
            )
            .parameters(5.8)
            .macs(1.4)
            .top1(67.0),
            vig_ti("with FC in Grapher", &["model.backbone.ffn=false"]).parameters(4.4).macs(1.4).top1(73.4),
            vig_ti("with FFN", &["model.backbone.grapher_fc=false"]).parameters(7.7).macs(1.3).top1(73.6),
            vig_ti("with both", &[]).parameters(7.1).macs(1.3).top1(73.9),
        ],
        same_models: false,
    },
    Table {
        title: "Table 8: neighbours of ViG-Ti",
        rows: &[
            vig_ti("3 neighbours", &["model.backbone.k=3", "model.backbone.k_last=3"]).top1(72.2),
            vig_ti("6 neighbours", &["model.backbone.k=6", "model.backbone.k_last=6"]).top1(73.4),
            vig_ti("9 neighbours", &["model.backbone.k=9", "model.backbone.k_last=9"]).top1(73.6),
            vig_ti("12 neighbours", &["model.backbone.k=12", "model.backbone.k_last=12"]).top1(73.6),
            vig_ti("15 neighbours", &["model.backbone.k=15", "model.backbone.k_last=15"]).top1(73.5),
            vig_ti("20 neighbours", &["model.backbone.k=20", "model.backbone.k_last=20"]).top1(73.3),
            vig_ti("9 to 18 neighbours", &["model.backbone.k=9", "model.backbone.k_last=18"]).top1(73.9),
        ],
        same_models: true,
    },
    Table {
        title: "Table 9: heads of ViG-Ti",
        rows: &[
            vig_ti("1 head", &["model.backbone.heads=1"]).macs(1.6).top1(74.2),
            vig_ti("2 heads", &["model.backbone.heads=2"]).macs(1.4).top1(74.0),
            vig_ti("4 heads", &["model.backbone.heads=4"]).macs(1.3).top1(73.9),
            vig_ti("6 heads", &["model.backbone.heads=6"]).macs(1.2).top1(73.7),
            vig_ti("8 heads", &["model.backbone.heads=8"]).macs(1.2).top1(73.7),
        ],
        same_models: true,
    },
    Table {
        title: "Table 10: RetinaNet, 1280×800, 80 classes (without the distances)",
        rows: &[
            row("ResNet-50", "retinanet", &RESNET).parameters(37.7).macs(239.3).box_ap(36.3),
            row("Pyramid ViG-S", "retinanet", &PVIG_S).parameters(36.2).macs(240.0).box_ap(41.8),
        ],
        same_models: true,
    },
    Table {
        title: "Table 10: Mask R-CNN, 1280×800, 80 classes, 1000 proposals, 100 masks (without the distances)",
        rows: &[
            row("ResNet-50", "mask_rcnn", &RESNET).parameters(44.2).macs(260.1).box_ap(38.0).mask_ap(34.4),
            row("Pyramid ViG-S", "mask_rcnn", &PVIG_S).parameters(45.8).macs(258.8).box_ap(42.6).mask_ap(39.4),
        ],
        same_models: true,
    },
];
