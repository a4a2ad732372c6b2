//! ResNets of other projects: which one it is, and how its images are prepared.

use super::renaming::Renaming;
use crate::weights::WeightFile;

/// What a network's images are normalised with, in the order of its channels and for values of 0 to 255, and where its
/// blocks halve their maps. Published ResNets come in two kinds, which have the same names.
#[derive(Clone, Debug, PartialEq)]
pub struct Style {
    /// Means of the channels.
    pub mean: [f64; 3],
    /// Their deviations.
    pub std: [f64; 3],
    /// The first channel is blue.
    pub bgr: bool,
    /// The first 1×1 convolution of a block halves the map, not the 3×3.
    pub stride_in_1x1: bool,
}

/// ImageNet's means: red, green, blue.
const MEAN: [f64; 3] = [123.675, 116.28, 103.53];

impl Style {
    /// torchvision's: mmdetection calls it `pytorch`.
    pub fn torchvision() -> Self {
        Self { mean: MEAN, std: [58.395, 57.12, 57.375], bgr: false, stride_in_1x1: false }
    }

    /// That of Microsoft's models of 2015 in Caffe, which Detectron and detectron2 go on from.
    pub fn caffe() -> Self {
        let [red, green, blue] = MEAN;
        Self { mean: [blue, green, red], std: [1.0; 3], bgr: true, stride_in_1x1: true }
    }

    /// What the numbers tell where nothing else does: Microsoft's models were published with their statistics taken
    /// into scale and shift, so that the first running means are all 0.
    pub fn of_numbers(file: &WeightFile, running_mean: &str) -> Self {
        let all_zero = |t: &tch::Tensor| t.numel() > 0 && t.abs().max().double_value(&[]) == 0.0;
        match file.tensor(running_mean) {
            Ok(mean) if all_zero(&mean) => Self::caffe(),
            _ => Self::torchvision(),
        }
    }

    /// What to say where nothing but the numbers told.
    pub fn guess(&self) -> String {
        let (order, whose) = match self.bgr {
            true => ("blue, green, red", "Caffe"),
            false => ("red, green, blue", "torchvision"),
        };
        format!(
            "the file does not say how its images were prepared: it is taken for {whose}'s way ({order}, deviations \
             {:?}, stride in the {}); --set data.mean, data.std and model.backbone.stride_in_1x1 say otherwise",
            self.std,
            if self.stride_in_1x1 { "1×1" } else { "3×3" }
        )
    }

    /// As changes to a config: vigdet's images are red, green, blue, from 0 to 1.
    pub fn changes(&self) -> Vec<String> {
        let list = |mut values: [f64; 3]| {
            if self.bgr {
                values.reverse();
            }
            // As many digits as float32 has.
            format!("[{}]", values.map(|v| ((v / 255.0 * 1e9).round() / 1e9).to_string()).join(","))
        };
        let [mean, std] = [("mean", self.mean), ("std", self.std)].map(|(key, v)| format!("data.{key}={}", list(v)));
        vec![mean, std, format!("model.backbone.stride_in_1x1={}", self.stride_in_1x1)]
    }
}

/// vigdet's name of the ResNet whose tensors have torchvision's names under `prefix`; `None`: vigdet does not have it.
pub fn resnet_of(renaming: &Renaming, file: &WeightFile, prefix: &str) -> Option<&'static str> {
    let shape = |name: &str| renaming.shape(file, &format!("{prefix}{name}.weight"));
    let blocks = [1, 2, 3, 4].map(|s| renaming.count(|i| format!("{prefix}layer{s}.{i}.conv1.weight")));
    let stem = shape("conv1")? == [64, 3, 7, 7];
    let second = shape("layer1.0.conv2")?;
    let bottleneck = shape("layer1.0.conv3").is_some();
    match (blocks, bottleneck, &second[..]) {
        _ if !stem => None,
        ([2, 2, 2, 2], false, [64, 64, 3, 3]) => Some("resnet18"),
        ([3, 4, 6, 3], true, [64, 64, 3, 3]) => Some("resnet50"),
        ([3, 4, 23, 3], true, [64, 64, 3, 3]) => Some("resnet101"),
        ([3, 4, 6, 3], true, [128, 4, 3, 3]) => Some("resnext50_32x4d"),
        ([3, 4, 23, 3], true, [128, 4, 3, 3]) => Some("resnext101_32x4d"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_are_red_green_blue_in_a_config() {
        assert_eq!(
            Style::torchvision().changes(),
            ["data.mean=[0.485,0.456,0.406]", "data.std=[0.229,0.224,0.225]", "model.backbone.stride_in_1x1=false"]
        );
        let caffe = Style::caffe().changes();
        assert_eq!(caffe[0], "data.mean=[0.485,0.456,0.406]");
        assert!(caffe[1].starts_with("data.std=[0.003921569,"), "{caffe:?}");
        assert_eq!(caffe[2], "model.backbone.stride_in_1x1=true");
    }
}
