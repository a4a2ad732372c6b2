//! Which class an output of the classifier stands for.

use anyhow::{ensure, Result};

use crate::config::{DetectorKind, ModelConfig};

/// Outputs of torchvision's models of COCO.
pub const COCO_OUTPUTS: i64 = 91;

/// (category id, name) of each label of the detector, for data with these categories.
///
/// Without `outputs` in the config, each category is a label, in their order. With it, labels stand for ids: from 0 in
/// RetinaNet, from 1 in Mask R-CNN, whose output 0 is background. Ids that no category has get an empty name.
///
/// # Errors
/// If an id has no output.
pub fn classes_of_outputs(config: &ModelConfig, categories: Vec<(i64, String)>) -> Result<Vec<(i64, String)>> {
    let Some(outputs) = config.outputs else { return Ok(categories) };
    let first = match config.detector {
        DetectorKind::Retinanet => 0,
        DetectorKind::MaskRcnn => 1,
    };
    let mut classes: Vec<(i64, String)> = (first..outputs).map(|id| (id, String::new())).collect();
    for (id, name) in categories {
        ensure!(
            (first..outputs).contains(&id),
            "category id {id} ({name}) has no output: model.outputs is {outputs}, for ids {first} to {} \
             (null: one output for each category, whatever its id)",
            outputs - 1
        );
        classes[(id - first) as usize].1 = name;
    }
    Ok(classes)
}

/// The categories of COCO's detection task.
pub fn coco_classes() -> Vec<(i64, String)> {
    COCO.iter().map(|(id, name)| (*id, (*name).to_string())).collect()
}

const COCO: [(i64, &str); 80] = [
    (1, "person"),
    (2, "bicycle"),
    (3, "car"),
    (4, "motorcycle"),
    (5, "airplane"),
    (6, "bus"),
    (7, "train"),
    (8, "truck"),
    (9, "boat"),
    (10, "traffic light"),
    (11, "fire hydrant"),
    (13, "stop sign"),
    (14, "parking meter"),
    (15, "bench"),
    (16, "bird"),
    (17, "cat"),
    (18, "dog"),
    (19, "horse"),
    (20, "sheep"),
    (21, "cow"),
    (22, "elephant"),
    (23, "bear"),
    (24, "zebra"),
    (25, "giraffe"),
    (27, "backpack"),
    (28, "umbrella"),
    (31, "handbag"),
    (32, "tie"),
    (33, "suitcase"),
    (34, "frisbee"),
    (35, "skis"),
    (36, "snowboard"),
    (37, "sports ball"),
    (38, "kite"),
    (39, "baseball bat"),
    (40, "baseball glove"),
    (41, "skateboard"),
    (42, "surfboard"),
    (43, "tennis racket"),
    (44, "bottle"),
    (46, "wine glass"),
    (47, "cup"),
    (48, "fork"),
    (49, "knife"),
    (50, "spoon"),
    (51, "bowl"),
    (52, "banana"),
    (53, "apple"),
    (54, "sandwich"),
    (55, "orange"),
    (56, "broccoli"),
    (57, "carrot"),
    (58, "hot dog"),
    (59, "pizza"),
    (60, "donut"),
    (61, "cake"),
    (62, "chair"),
    (63, "couch"),
    (64, "potted plant"),
    (65, "bed"),
    (67, "dining table"),
    (70, "toilet"),
    (72, "tv"),
    (73, "laptop"),
    (74, "mouse"),
    (75, "remote"),
    (76, "keyboard"),
    (77, "cell phone"),
    (78, "microwave"),
    (79, "oven"),
    (80, "toaster"),
    (81, "sink"),
    (82, "refrigerator"),
    (84, "book"),
    (85, "clock"),
    (86, "vase"),
    (87, "scissors"),
    (88, "teddy bear"),
    (89, "hair drier"),
    (90, "toothbrush"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn config(detector: DetectorKind, outputs: Option<i64>) -> ModelConfig {
        ModelConfig { detector, outputs, ..ModelConfig::default() }
    }

    #[test]
    fn labels_stand_for_ids_where_the_config_says_so() {
        let categories = || vec![(1, "person".to_string()), (90, "toothbrush".to_string())];
        let of = |detector, outputs| classes_of_outputs(&config(detector, outputs), categories());
        assert_eq!(of(DetectorKind::MaskRcnn, None).unwrap(), categories());
        let retinanet = of(DetectorKind::Retinanet, Some(91)).unwrap();
        assert_eq!((retinanet.len(), retinanet[90].1.as_str(), retinanet[0].1.as_str()), (91, "toothbrush", ""));
        let mask = of(DetectorKind::MaskRcnn, Some(91)).unwrap();
        assert_eq!((mask.len(), &mask[0], mask[89].0), (90, &categories()[0], 90));
        assert!(of(DetectorKind::MaskRcnn, Some(80)).unwrap_err().to_string().contains("90 (toothbrush)"));
        // What was made once is not changed by making it again.
        let again = classes_of_outputs(&config(DetectorKind::MaskRcnn, Some(91)), mask.clone()).unwrap();
        assert_eq!(again, mask);
        assert_eq!(coco_classes().len(), 80);
    }
}
