//! What the named models cost, as `model_stats` prints it.

pub mod paper;

use std::path::PathBuf;

use anyhow::{bail, ensure, Result};
use tch::{nn, Device};

use crate::backbone::{self, Classifier};
use crate::classes::Classes;
use crate::config::{Config, DetectorKind, Experiment};
use crate::detect;
use crate::nn::cost::{parameters, Flops, Macs, Size};
use crate::weights::IMAGENET_CLASSES;

/// The image that classifiers are counted for, in pixels.
const CLASSIFIER_SIZE: Size = (224, 224);
/// The image that detectors are counted for: the paper's 1280×800.
const DETECTOR_SIZE: Size = (800, 1280);
/// Classes of COCO.
const DETECTOR_CLASSES: i64 = 80;

/// What to count otherwise than by default.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// (height, width) of the image in pixels.
    pub size: Option<Size>,
    /// Number of classes.
    pub classes: Option<i64>,
    /// A detector's config: a file or the name of a built-in one.
    pub config: Option<PathBuf>,
    /// Changes to the config, in `--set`'s form.
    pub changes: Vec<String>,
}

/// What a model costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Its name.
    pub model: String,
    /// (height, width) of the image in pixels.
    pub size: Size,
    /// Parameters that it learns.
    pub parameters: u64,
    /// Multiply-adds for one image.
    pub macs: Macs,
}

impl Cost {
    /// Builds a model and counts: a backbone by its name, with its classifier, a detector, or the detector of a
    /// built-in config.
    ///
    /// # Errors
    /// If there is no such model, or the config cannot be built.
    pub fn of(model: &str, options: &Options) -> Result<Self> {
        let store = nn::VarStore::new(Device::Cpu);
        let mut macs = Macs::default();
        let mut add = |layer| macs.add(layer);
        let classes = |usual| options.classes.unwrap_or(usual);
        let size;
        let kind = DetectorKind::parse(model).ok();
        if kind.is_some() || Config::preset_names().any(|preset| preset == model) {
            size = checked(options.size.unwrap_or(DETECTOR_SIZE))?;
            let config = match (&options.config, kind) {
                (Some(path), Some(_)) => Config::load(path, &options.changes)?,
                (Some(_), None) => bail!("{model} is a config itself: leave --config out"),
                (None, Some(kind)) => Config::preset(&format!("{}_pvig_s_fpn_1x_coco", kind.name()), &options.changes)?,
                (None, None) => Config::preset(model, &options.changes)?,
            };
            let own = config.model.detector;
            ensure!(kind.is_none_or(|kind| kind == own), "the config is of {}, not of {model}", own.name());
            let counted = match options.classes {
                None if config.model.outputs.is_some() => {
                    detect::classes_of_outputs(&config.model, &Classes::default())?.len() as i64
                }
                _ => classes(DETECTOR_CLASSES),
            };
            detect::build(&store.root(), &config.model, counted)?.flops(size, &mut add);
        } else if backbone::NAMES.contains(&model) {
            ensure!(options.config.is_none(), "--config is of a detector, and {model} is a backbone: use --set");
            size = checked(options.size.unwrap_or(CLASSIFIER_SIZE))?;
            let changes = [&[format!("model.backbone.name={model}")], &options.changes[..]].concat();
            let config = Config::from_json_with("{}", &changes)?;
            let classes = classes(IMAGENET_CLASSES);
            Classifier::new(&store.root(), &config.model.backbone, classes)?.flops(size, &mut add);
        } else {
            bail!(
                "there is no model `{model}`; there are {}, the detectors retinanet and mask_rcnn, and their built-in \
                 configs",
                backbone::NAMES.join(", ")
            );
        }
        Ok(Self { model: model.into(), size, parameters: parameters(&store), macs })
    }
}

fn checked(size: Size) -> Result<Size> {
    ensure!(
        (1..=1 << 20).contains(&size.0) && (1..=1 << 20).contains(&size.1),
        "an image of {}×{} pixels cannot be counted",
        size.0,
        size.1
    );
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(model: &str, changes: &[&str]) -> Cost {
        let changes = changes.iter().map(|c| c.to_string()).collect();
        Cost::of(model, &Options { changes, ..Default::default() }).unwrap()
    }

    #[test]
    fn published_models_are_counted_to_the_unit() {
        for (model, parameters, weights, distances) in [
            ("vig_ti", 7_184_744, 1_212_368_896, 88_510_464),
            ("vig_s", 22_747_752, 4_320_000_000, 196_689_920),
            ("vig_b", 86_841_832, 17_249_177_600, 393_379_840),
            ("pvig_ti", 10_714_376, 1_553_963_008, 145_673_472),
            ("pvig_s", 27_251_912, 4_305_274_880, 242_789_120),
            ("pvig_m", 49_525_832, 8_428_367_872, 416_736_768),
            ("pvig_b", 92_980_328, 16_208_519_168, 594_987_008),
        ] {
            let cost = of(model, &[]);
            assert_eq!(cost.parameters, parameters, "{model}");
            assert_eq!(cost.macs, Macs { weights, distances }, "{model}");
        }
        // The plain PyTorch ViG's count with these channels and blocks.
        assert_eq!(of("pvig_n", &[]).parameters, 2_996_136);
        // torchvision's own counts
        assert_eq!(of("resnet18", &[]).parameters, 11_689_512);
        assert_eq!(of("resnet50", &[]).parameters, 25_557_032);
        assert_eq!(of("resnet50", &[]).macs.total(), 4_089_184_256);
        assert_eq!(of("mobilenet_v3_large", &[]).parameters, 5_483_032);
    }

    /// The parameters of torchvision's classifiers, and of the authors' own.
    #[test]
    fn other_backbones_are_counted_to_the_unit() {
        for (model, parameters) in [
            ("resnext50_32x4d", 25_028_904),
            ("swin_t", 28_288_354),
            ("pvt_tiny", 13_229_288),
            ("poolformer_s12", 11_915_176),
            ("cyclemlp_b1", 15_155_400),
            ("greedyvig_s", 11_983_376),
            ("adaptvig_s", 8_685_785),
        ] {
            assert_eq!(of(model, &[]).parameters, parameters, "{model}");
        }
        // Convolutions of the authors' code.
        assert_eq!(of("greedyvig_s", &[]).macs.weights, 1_580_681_472);
        assert_eq!(of("adaptvig_s", &[]).macs.weights, 1_057_648_896);
    }

    /// The larger ones with 64 channels in each stage: their blocks, without the time that their weights would take.
    #[test]
    fn larger_backbones_have_their_blocks() {
        for (model, parameters) in [
            ("swin_s", 1_326_808),
            ("swin_b", 1_326_808),
            ("pvt_small", 2_565_096),
            ("pvt_medium", 3_363_816),
            ("pvt_large", 4_557_800),
            ("poolformer_s24", 988_712),
            ("poolformer_s36", 1_390_376),
            ("poolformer_m36", 1_390_376),
            ("poolformer_m48", 1_792_040),
            ("cyclemlp_b2", 1_161_416),
            ("cyclemlp_b3", 1_934_824),
            ("cyclemlp_b4", 2_771_832),
            ("cyclemlp_b5", 2_029_000),
            ("greedyvig_m", 3_031_952),
            ("greedyvig_b", 3_378_320),
            ("adaptvig_m", 3_494_044),
            ("adaptvig_b", 3_937_503),
        ] {
            let cost = of(model, &["model.backbone.channels=[64,64,64,64]"]);
            assert_eq!(cost.parameters, parameters, "{model}");
        }
    }

    /// torchvision's `num_params`: they count what is frozen, but not the weights of frozen norms.
    #[test]
    fn torchvisions_detectors_are_counted_to_the_unit() {
        const RESNET_NORMS: u64 = 53_120;
        const MOBILENET_NORMS: u64 = 24_400;
        for (model, parameters, frozen_norms) in [
            ("retinanet_resnet50_fpn", 34_014_999, RESNET_NORMS),
            ("faster_rcnn_resnet50_fpn", 41_755_286, RESNET_NORMS),
            ("mask_rcnn_resnet50_fpn", 44_401_393, RESNET_NORMS),
            ("retinanet_resnet50_fpn_v2", 38_198_935, 0),
            ("faster_rcnn_resnet50_fpn_v2", 43_712_278, 0),
            ("mask_rcnn_resnet50_fpn_v2", 46_359_409, 0),
            ("faster_rcnn_mobilenet_v3_large_fpn", 19_386_354, MOBILENET_NORMS),
            ("faster_rcnn_mobilenet_v3_large_320_fpn", 19_386_354, MOBILENET_NORMS),
        ] {
            let cost = of(&format!("{model}_torchvision"), &["frozen_stages=0"]);
            assert_eq!(cost.parameters, parameters + frozen_norms, "{model}");
        }
    }

    #[test]
    fn other_graph_convolutions_are_the_papers() {
        for (conv, parameters, giga) in
            [("edge", 7_184_744, 2.349), ("gin", 6_963_572, 1.258), ("sage", 7_302_248, 1.584)]
        {
            let cost = of("vig_ti", &[&format!("conv={conv}")]);
            assert_eq!(cost.parameters, parameters, "{conv}");
            assert!((cost.macs.total() as f64 / 1e9 - giga).abs() < 5e-4, "{conv}: {}", cost.macs.total());
        }
    }

    #[test]
    fn retinanet_is_within_half_a_percent_of_table_10() {
        // mmdetection freezes the first stage of a ResNet and does not count it.
        for (backbone, frozen, parameters, giga) in [("pvig_s", 0, 36.2e6, 240.0), ("resnet50", 1, 37.7e6, 239.3)] {
            let changes = [format!("backbone.name={backbone}"), format!("frozen_stages={frozen}")];
            let cost = of("retinanet", &[&changes[0], &changes[1]]);
            let off = |value: f64, paper: f64| (value / paper - 1.0).abs();
            assert!(off(cost.parameters as f64, parameters) < 0.005, "{backbone}: {}", cost.parameters);
            let macs = cost.macs.weights as f64 / 1e9;
            assert!(off(macs, giga) < 0.005, "{backbone}: {macs}");
        }
    }

    #[test]
    fn mask_rcnn_is_within_half_a_percent_of_table_10() {
        for (backbone, frozen, parameters, giga) in [("pvig_s", 0, 45.8e6, 258.8), ("resnet50", 1, 44.2e6, 260.1)] {
            let changes = [format!("backbone.name={backbone}"), format!("frozen_stages={frozen}")];
            let cost = of("mask_rcnn", &[&changes[0], &changes[1]]);
            let off = |value: f64, paper: f64| (value / paper - 1.0).abs();
            assert!(off(cost.parameters as f64, parameters) < 0.005, "{backbone}: {}", cost.parameters);
            let macs = cost.macs.weights as f64 / 1e9;
            assert!(off(macs, giga) < 0.005, "{backbone}: {macs}");
        }
        let faster = of("mask_rcnn", &["model.mask=false"]);
        assert!(faster.parameters + 2_500_000 < of("mask_rcnn", &[]).parameters);
    }

    #[test]
    fn the_count_follows_the_config() {
        let base = of("retinanet", &[]);
        let options = |f: fn(&mut Options)| {
            let mut options = Options::default();
            f(&mut options);
            Cost::of("retinanet", &options).unwrap()
        };
        // The last class convolution: 256 · 3 · 3 inputs for each of 9 anchors, at all locations of P3 to P7.
        let locations: u64 = [(100, 160), (50, 80), (25, 40), (13, 20), (7, 10)].iter().map(|(h, w)| h * w).sum();
        let fewer = options(|o| o.classes = Some(3));
        assert_eq!(base.macs.weights - fewer.macs.weights, locations * 77 * 9 * 256 * 9);
        assert_eq!(base.parameters - fewer.parameters, 77 * 9 * (256 * 9 + 1));
        // A 3×3 convolution fewer in each of two branches.
        let shallow = of("retinanet", &["model.head.convs=3"]);
        assert_eq!(base.macs.weights - shallow.macs.weights, 2 * locations * 256 * 256 * 9);
        // Half as wide a head: its first convolutions read 256 channels and give 128, the other three and the outputs
        // 128.
        let narrow = of("retinanet", &["model.head.channels=128"]);
        let branch = |width: u64| 256 * width + 3 * width * width;
        let outputs = (80 + 4) * 9 * 128;
        let saved = 9 * locations * (2 * (branch(256) - branch(128)) + outputs);
        assert_eq!(base.macs.weights - narrow.macs.weights, saved);
        // Everything but the classifier is convolution on maps: four times the pixels, four times the cost.
        let large = options(|o| o.size = Some((1600, 2560)));
        let ratio = large.macs.weights as f64 / base.macs.weights as f64;
        assert!((ratio - 4.0).abs() < 0.01, "{ratio}");
        assert_eq!(large.parameters, base.parameters);
        assert!(Cost::of("vgg", &Options::default()).unwrap_err().to_string().contains("pvig_s"));
    }

    #[test]
    fn every_row_of_the_papers_tables_is_near_its_figure() {
        for table in paper::TABLES {
            for row in table.rows {
                let cost = row.cost(&Options::default()).unwrap();
                // The paper's models of this table are of widths that it does not print.
                if !table.title.starts_with("Table 7:") {
                    if let Some(paper) = row.paper.parameters {
                        // pvig_m's 51.7 M counts 2.16 M constants; other figures are rounded.
                        let found = cost.parameters as f64 / 1e6;
                        let most = match row.model {
                            "pvig_m" => 2.2,
                            "retinanet" | "mask_rcnn" => 0.05,
                            _ => 0.5,
                        };
                        assert!((found - paper).abs() < most, "{} {}: {found} M", table.title, row.label);
                    }
                    if let Some(paper) = row.paper.macs {
                        let found = row.macs_of(&cost) as f64 / 1e9;
                        // 1.27 G, which the paper prints as 1.2.
                        let most = match row.label {
                            "6 heads" => 0.061,
                            _ if table.title.starts_with("Table 10") => 0.01,
                            _ => 0.05,
                        };
                        assert!((found / paper - 1.0).abs() < most, "{} {}: {found} G", table.title, row.label);
                    }
                }
            }
        }
    }

    /// A second copy of a few rows: every column, every table.
    #[test]
    fn figures_are_those_that_the_paper_prints() {
        let of = |table: &str, label: &str| {
            let table = paper::TABLES.iter().find(|t| t.title.starts_with(table)).unwrap();
            let paper = table.rows.iter().find(|row| row.label == label).unwrap().paper;
            [paper.parameters, paper.macs, paper.top1, paper.box_ap, paper.mask_ap]
        };
        let costs = |parameters, macs, top1| [Some(parameters), Some(macs), Some(top1), None, None];
        assert_eq!(of("Table 1:", "ViG-S"), costs(22.7, 4.5, 80.4));
        assert_eq!(of("Table 2:", "Pyramid ViG-B"), costs(92.6, 16.8, 83.7));
        assert_eq!(of("Table 6:", "GIN"), costs(7.0, 1.3, 72.8));
        assert_eq!(of("Table 7:", "with FC in Grapher"), costs(4.4, 1.4, 73.4));
        assert_eq!(of("Table 8:", "20 neighbours"), [None, None, Some(73.3), None, None]);
        assert_eq!(of("Table 8:", "9 to 18 neighbours"), [None, None, Some(73.9), None, None]);
        assert_eq!(of("Table 9:", "8 heads"), [None, Some(1.2), Some(73.7), None, None]);
        let retinanet = [Some(36.2), Some(240.0), None, Some(41.8), None];
        assert_eq!(of("Table 10: RetinaNet", "Pyramid ViG-S"), retinanet);
        let mask_rcnn = [Some(44.2), Some(260.1), None, Some(38.0), Some(34.4)];
        assert_eq!(of("Table 10: Mask R-CNN", "ResNet-50"), mask_rcnn);
    }
}
