//! Which anchors of a detector stand for which objects of an image, to look at.

use super::anchors::AnchorGenerator;
use super::boxes::Box4;
use super::dense_losses::Assigner;
use super::matcher::Match;
use crate::config::{DetectorKind, ModelConfig};
use crate::data::Target;

/// An anchor that stands for an object in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatchedAnchor {
    /// The pyramid level, from 0, the finest.
    pub level: usize,
    /// Corners in pixels of the padded image.
    pub anchor: Box4,
    /// Entry of the target.
    pub object: usize,
}

/// The anchors that stand for objects of `target` in an image of `size` = (height, width) pixels, padding included: the
/// dense head's, or those of the region proposal network.
pub fn matched_anchors(config: &ModelConfig, size: (i64, i64), target: &Target) -> Vec<MatchedAnchor> {
    let mut map = (0, 0);
    let maps: Vec<(i64, i64)> = (0..config.anchors.strides.len())
        .map(|level| {
            map = match level {
                0 => (size.0 / config.anchors.strides[0].max(1), size.1 / config.anchors.strides[0].max(1)),
                // A convolution of stride 2 that pads.
                _ => ((map.0 + 1) / 2, (map.1 + 1) / 2),
            };
            map
        })
        .collect();
    let levels = AnchorGenerator::new(&config.anchors).anchors(&maps, size);
    let matching = match config.detector {
        DetectorKind::Retinanet => &config.matching,
        DetectorKind::MaskRcnn => &config.rpn.matching,
    };
    let locations: Vec<usize> = maps.iter().map(|&(height, width)| (height * width) as usize).collect();
    let (matches, objects) = Assigner::new(matching).assign(&levels.concat(), &locations, target);
    let anchors = levels.iter().enumerate().flat_map(|(level, anchors)| anchors.iter().map(move |a| (level, *a)));
    anchors
        .zip(matches)
        .filter_map(|((level, anchor), found)| match found {
            Match::Object(i) => Some(MatchedAnchor { level, anchor, object: objects[i as usize] }),
            Match::Background | Match::Ignored => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::boxes::iou;
    use super::*;

    #[test]
    fn matched_anchors_overlap_their_object_on_the_level_of_its_size() {
        let boxes = vec![[20.0, 20.0, 54.0, 52.0], [100.0, 90.0, 112.0, 110.0], [30.0, 70.0, 190.0, 230.0]];
        let target =
            Target { boxes, labels: vec![0, 1, 0], crowd: vec![false, true, false], masks: vec![None, None, None] };
        let found = matched_anchors(&ModelConfig::default(), (256, 320), &target);
        for matched in &found {
            assert!(iou(&matched.anchor, &target.boxes[matched.object]) >= 0.5, "{matched:?}");
        }
        let levels = |object: usize| -> Vec<usize> {
            let mut levels: Vec<usize> = found.iter().filter(|m| m.object == object).map(|m| m.level).collect();
            levels.dedup();
            levels
        };
        // √area 33 and 160; anchors of a level are 4 to 6.3 strides of 8, 16, 32, …
        assert_eq!(levels(0), [0]);
        assert_eq!(levels(2), [2]);
        assert!(levels(1).is_empty(), "a crowd has no anchors");
    }
}
