//! Where the panels of a picture go, and how large they are.

use super::links::Links;

/// Pixels between things.
pub const GAP: i32 = 20;
/// Sizes of letters in pixels: title, panel heads, legend.
pub const TITLE: f64 = 26.0;
pub const HEAD: f64 = 20.0;
pub const SMALL: f64 = 16.0;
/// Height of the title's two lines, of a panel's head, of a line of the legend.
const TITLE_ROOM: i32 = 76;
pub const HEAD_ROOM: i32 = 54;
pub const LEGEND_ROOM: i32 = 34;
/// A picture is at most about so wide, in pixels.
const WIDEST: f64 = 2700.0;
/// The longer side of a panel is at least this, in pixels.
const LEAST_PANEL: f64 = 560.0;
/// And at most this, of one panel, of two, of more: letters stay legible where the whole picture is shown.
const MOST_PANEL: [f64; 3] = [1280.0, 900.0, 720.0];
/// Room for a panel's head, however narrow the panel, in pixels.
const LEAST_PITCH: i32 = 540;

/// A picture's measures, in pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Pixels of the picture per pixel of the network's input.
    pub scale: f64,
    /// (width, height) of the image in a panel.
    pub panel: (i32, i32),
    /// Panels in a row.
    pub columns: usize,
    /// (width, height) of everything.
    pub size: (u32, u32),
    /// Upper left corner of each panel's image.
    pub corners: Vec<(i32, i32)>,
    /// Where the legend starts.
    pub legend: i32,
}

impl Layout {
    /// For the panels of `links` and a legend of `lines` lines; no picture is narrower than `least` pixels.
    pub fn new(links: &Links, lines: usize, least: i32) -> Self {
        let (height, width) = (f64::from(links.input.0), f64::from(links.input.1));
        let count = links.blocks.len();
        let most = MOST_PANEL[count.clamp(1, 3) - 1];
        let scale = height.max(width).clamp(LEAST_PANEL, most) / height.max(width);
        let panel = ((width * scale).round().max(1.0) as i32, (height * scale).round().max(1.0) as i32);
        let fit = ((WIDEST - f64::from(GAP)) / f64::from(panel.0.max(LEAST_PITCH) + GAP)).floor().max(1.0) as usize;
        // Rows as even as they can be.
        let rows = count.div_ceil(fit);
        let columns = count.div_ceil(rows);
        let step = (panel.0.max(LEAST_PITCH) + GAP, panel.1 + HEAD_ROOM + GAP);
        let corner = |i: usize| {
            let (column, row) = ((i % columns) as i32, (i / columns) as i32);
            (GAP + column * step.0, GAP + TITLE_ROOM + HEAD_ROOM + row * step.1)
        };
        let legend = GAP + TITLE_ROOM + rows as i32 * step.1;
        let width = (GAP + columns as i32 * step.0).max(least);
        let height = legend + lines as i32 * LEGEND_ROOM + GAP / 2;
        Self {
            scale,
            panel,
            columns,
            size: (width as u32, height as u32),
            corners: (0..count).map(corner).collect(),
            legend,
        }
    }

    /// Corners of a patch on a panel whose image is at `corner`: left, top, right, bottom, the last two excluded.
    pub fn patch(&self, corner: (i32, i32), [x, y, w, h]: [u32; 4]) -> [i32; 4] {
        let at = |v: u32| (f64::from(v) * self.scale).round() as i32;
        [corner.0 + at(x), corner.1 + at(y), corner.0 + at(x + w), corner.1 + at(y + h)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::links::BlockLinks;
    use super::*;

    fn links(input: (u32, u32), blocks: usize) -> Links {
        let block = BlockLinks {
            block: 1,
            stage: 1,
            stride: 4,
            nodes: (1, 1),
            candidates: (1, 1),
            k: 1,
            varies: false,
            centers: Vec::new(),
        };
        Links {
            model: String::new(),
            weights: String::new(),
            image: String::new(),
            input,
            seen: input,
            centers: Vec::new(),
            blocks: vec![block; blocks],
        }
    }

    #[test]
    fn panels_lie_side_by_side_inside_the_picture_and_apart() {
        for (input, blocks) in [((224, 224), 2), ((800, 1280), 2), ((64, 2000), 3), ((480, 640), 12), ((1, 1), 1)] {
            let layout = Layout::new(&links(input, blocks), 2, 500);
            let (w, h) = layout.panel;
            assert_eq!(layout.corners.len(), blocks);
            for (i, a) in layout.corners.iter().enumerate() {
                assert!(a.0 + w <= layout.size.0 as i32 && a.1 + h <= layout.legend, "{input:?} {layout:?}");
                for b in &layout.corners[..i] {
                    let apart = (a.0 - b.0).abs() >= w + GAP || (a.1 - b.1).abs() >= h + HEAD_ROOM;
                    assert!(apart, "{input:?} {a:?} {b:?}");
                }
            }
            assert!(layout.size.0 <= 2800, "{layout:?}");
        }
        let two = Layout::new(&links((224, 224), 2), 2, 0);
        assert_eq!((two.columns, two.corners[0].1), (2, two.corners[1].1));
        assert_eq!(Layout::new(&links((480, 640), 12), 2, 0).columns, 4);
    }

    #[test]
    fn neighbouring_patches_share_their_edge() {
        // Drawn at their own size, and larger by a fraction.
        for (width, height) in [(640, 480), (400, 304)] {
            let layout = Layout::new(&links((height, width), 3), 1, 0);
            let patch = |x| layout.patch((7, 9), [x, 16, 16, 16]);
            assert_eq!(patch(0)[0], 7);
            for x in (0..width - 16).step_by(16) {
                assert_eq!(patch(x)[2], patch(x + 16)[0]);
            }
        }
    }
}
