//! Boxes as corners x1, y1, x2, y2 in pixels: overlap, and their coding as deltas against anchors (Girshick et al.,
//! 2014).

/// Corners x1, y1, x2, y2 in pixels.
pub type Box4 = [f32; 4];

/// Largest change of log size that a delta may ask for: 16 becomes 1000 pixels.
pub(super) const MAX_LOG_SCALE: f32 = 4.135_166_6;

/// Width × height; 0 for a box that is turned inside out.
pub fn area(b: &Box4) -> f32 {
    (b[2] - b[0]).max(0.0) * (b[3] - b[1]).max(0.0)
}

/// Area that two boxes share.
pub fn intersection(a: &Box4, b: &Box4) -> f32 {
    let width = a[2].min(b[2]) - a[0].max(b[0]);
    let height = a[3].min(b[3]) - a[1].max(b[1]);
    width.max(0.0) * height.max(0.0)
}

/// Intersection over union; 0 for two empty boxes.
pub fn iou(a: &Box4, b: &Box4) -> f32 {
    let shared = intersection(a, b);
    fraction(shared, area(a) + area(b) - shared)
}

/// What fraction of `whole` an area is; 0 where `whole` is nothing.
pub fn fraction(area: f32, whole: f32) -> f32 {
    if whole > 0.0 {
        area / whole
    } else {
        0.0
    }
}

/// Cuts a box to an image of `height` × `width` pixels.
pub fn clip(b: &Box4, height: f32, width: f32) -> Box4 {
    [b[0].clamp(0.0, width), b[1].clamp(0.0, height), b[2].clamp(0.0, width), b[3].clamp(0.0, height)]
}

/// Codes boxes as deltas (dx, dy, dw, dh) against anchors, each scaled by a weight.
///
/// ```
/// let coder = vigdet::detect::boxes::BoxCoder::default();
/// let anchor = [0.0, 0.0, 10.0, 10.0];
/// let deltas = coder.encode(&[5.0, 0.0, 15.0, 10.0], &anchor);
/// assert_eq!(deltas, [0.5, 0.0, 0.0, 0.0]);
/// assert_eq!(coder.decode(&deltas, &anchor), [5.0, 0.0, 15.0, 10.0]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoxCoder {
    /// Factors of dx, dy, dw, dh: 1 in RetinaNet and the RPN, 10, 10, 5, 5 in the box head of Mask R-CNN.
    pub weights: [f32; 4],
    /// Shrinking is limited as growth is (mmdetection).
    pub limit_shrinking: bool,
}

impl Default for BoxCoder {
    fn default() -> Self {
        Self { weights: [1.0; 4], limit_shrinking: false }
    }
}

impl BoxCoder {
    /// Deltas that turn `anchor` into `target`. Both must have area.
    pub fn encode(&self, target: &Box4, anchor: &Box4) -> [f32; 4] {
        let [wx, wy, ww, wh] = self.weights;
        let (aw, ah) = (anchor[2] - anchor[0], anchor[3] - anchor[1]);
        let (ax, ay) = (anchor[0] + 0.5 * aw, anchor[1] + 0.5 * ah);
        let (tw, th) = (target[2] - target[0], target[3] - target[1]);
        let (tx, ty) = (target[0] + 0.5 * tw, target[1] + 0.5 * th);
        [wx * (tx - ax) / aw, wy * (ty - ay) / ah, ww * (tw / aw).ln(), wh * (th / ah).ln()]
    }

    /// The box that `deltas` make of `anchor`; growth is limited to 1000 / 16, and shrinking too if so told.
    pub fn decode(&self, deltas: &[f32; 4], anchor: &Box4) -> Box4 {
        let [wx, wy, ww, wh] = self.weights;
        let (aw, ah) = (anchor[2] - anchor[0], anchor[3] - anchor[1]);
        let (ax, ay) = (anchor[0] + 0.5 * aw, anchor[1] + 0.5 * ah);
        let (x, y) = (deltas[0] / wx * aw + ax, deltas[1] / wy * ah + ay);
        let limit = |log: f32| match self.limit_shrinking {
            true => log.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE),
            false => log.min(MAX_LOG_SCALE),
        };
        let w = limit(deltas[2] / ww).exp() * aw;
        let h = limit(deltas[3] / wh).exp() * ah;
        [x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_of_known_boxes() {
        let (a, b) = ([0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 15.0, 15.0]);
        assert_eq!(intersection(&a, &b), 25.0);
        assert_eq!(iou(&a, &b), 25.0 / 175.0);
        assert_eq!(iou(&a, &[20.0, 0.0, 30.0, 10.0]), 0.0);
        assert_eq!(iou(&[1.0; 4], &[1.0; 4]), 0.0);
    }

    #[test]
    fn growth_is_limited_and_shrinking_where_told_to() {
        let b = BoxCoder::default().decode(&[0.0, 0.0, 50.0, 0.0], &[0.0, 0.0, 16.0, 16.0]);
        assert!((b[2] - b[0] - 1000.0).abs() < 0.01, "{b:?}");
        let width = |limit_shrinking| {
            let coder = BoxCoder { limit_shrinking, ..BoxCoder::default() };
            let b = coder.decode(&[0.0, 0.0, -50.0, 0.0], &[0.0, 0.0, 1000.0, 16.0]);
            b[2] - b[0]
        };
        assert!(width(false) == 0.0 && (width(true) - 16.0).abs() < 0.01, "{}", width(true));
    }

    #[test]
    fn clipping_keeps_boxes_inside() {
        assert_eq!(clip(&[-5.0, 3.0, 700.0, 9.0], 8.0, 600.0), [0.0, 3.0, 600.0, 8.0]);
    }
}
