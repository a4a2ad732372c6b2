//! Non-maximum suppression, class by class.

use std::collections::HashMap;

use super::boxes::{area, intersection, Box4};

/// Indices of the boxes that stay, best first.
///
/// Going from the highest score down, a box stays unless a box of the same class that stayed overlaps it by an IoU above `threshold`.
/// Of equal scores the earlier box goes first.
pub fn batched_nms(boxes: &[Box4], scores: &[f32], labels: &[i64], threshold: f32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut kept: HashMap<i64, Vec<(Box4, f32)>> = HashMap::new();
    order.retain(|&i| {
        let (b, own) = (&boxes[i], area(&boxes[i]));
        let same_class = kept.entry(labels[i]).or_default();
        let free = same_class.iter().all(|(other, other_area)| {
            let shared = intersection(b, other);
            // A box is a duplicate when shared / (own + other − shared) > threshold; written so that empty boxes stay.
            shared <= 0.0 || shared / (own + other_area - shared) <= threshold
        });
        if free {
            same_class.push((*b, own));
        }
        free
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_boxes_of_one_class_suppress_each_other() {
        let boxes =
            [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 9.0, 10.0], [20.0, 0.0, 30.0, 10.0]];
        let scores = [0.6, 0.9, 0.8, 0.1];
        assert_eq!(batched_nms(&boxes, &scores, &[0, 0, 0, 0], 0.5), [1, 3]);
        assert_eq!(batched_nms(&boxes, &scores, &[0, 0, 1, 0], 0.5), [1, 2, 3]);
    }

    #[test]
    fn the_threshold_itself_stays() {
        let boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]];
        assert_eq!(batched_nms(&boxes, &[0.9, 0.8], &[0, 0], 0.5).len(), 2);
        assert_eq!(batched_nms(&boxes, &[0.9, 0.8], &[0, 0], 0.49).len(), 1);
    }
}
