//! Which patches a picture of the graph is drawn around.

use anyhow::{bail, ensure, Context, Result};

use super::patches::PatchGraph;
use super::viewer::GraphView;

/// A patch to look at, as a user names it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Center {
    /// The patch that holds this pixel of the original image.
    Pixel {
        /// Column, from 0.
        x: f64,
        /// Row, from 0.
        y: f64,
    },
    /// The patch at this location of the grid of the first block that is drawn.
    Cell {
        /// From 0.
        row: usize,
        /// From 0.
        column: usize,
    },
}

impl Center {
    /// `x,y` in pixels.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn pixel(text: &str) -> Result<Self> {
        pair(text)
            .filter(|(x, y): &(f64, f64)| x.is_finite() && y.is_finite())
            .map(|(x, y)| Self::Pixel { x, y })
            .with_context(|| format!("a centre is x,y in pixels, as in 120,80, not `{text}`"))
    }

    /// `row,column` of the grid of patches.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn cell(text: &str) -> Result<Self> {
        pair(text).map(|(row, column)| Self::Cell { row, column }).with_context(|| {
            format!("a cell is row,column of the grid of patches, counted from 0, as in 3,7, not `{text}`")
        })
    }
}

fn pair<T: std::str::FromStr>(text: &str) -> Option<(T, T)> {
    let (a, b) = text.split_once(',')?;
    Some((a.trim().parse().ok()?, b.trim().parse().ok()?))
}

/// Block numbers as users write them: `1,12`, `1-4,12` or `all`, of a model with `count` blocks. Gives indices from 0,
/// in the order written, each once.
///
/// # Errors
/// If it is anything else, or there is no such block.
pub fn parse_blocks(text: &str, count: usize) -> Result<Vec<usize>> {
    if text.trim() == "all" {
        return Ok((0..count).collect());
    }
    let mut blocks = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse::<usize>()) else {
            bail!("--blocks takes block numbers, as in 1,12 or 1-4, or all, not `{text}`");
        };
        for number in [first, last] {
            ensure!((1..=count).contains(&number), "there is no block {number}: the model has blocks 1 to {count}");
        }
        ensure!(first <= last, "--blocks {part} goes backwards");
        blocks.extend((first..=last).map(|number| number - 1).filter(|b| !blocks.contains(b)).collect::<Vec<_>>());
    }
    Ok(blocks)
}

/// The locations of centres, x and y in pixels of the image as the network got it. `first` is the block whose grid
/// cells count.
///
/// # Errors
/// If one is outside of the image or of the grid.
pub fn locations(view: &GraphView, first: &PatchGraph, centers: &[Center]) -> Result<Vec<(f64, f64)>> {
    let location = |center: &Center| match *center {
        Center::Pixel { x, y } => {
            let (width, height) = view.image.dimensions();
            ensure!(
                x >= 0.0 && y >= 0.0 && x < f64::from(width) && y < f64::from(height),
                "the centre {x},{y} is outside the image, which has {width}×{height} pixels"
            );
            let (across, down) = view.scale();
            // The middle of the pixel, and never past the edge by rounding.
            let within = |v: f64, most: u32| v.min(f64::from(most) - 1e-6);
            Ok((within((x.floor() + 0.5) * across, view.seen.1), within((y.floor() + 0.5) * down, view.seen.0)))
        }
        Center::Cell { row, column } => {
            let (rows, columns) = first.nodes;
            ensure!(
                row < rows && column < columns,
                "the cell {row},{column} is outside the grid of block {}, which has {rows} rows and {columns} columns",
                first.number
            );
            Ok(first.node_patch(row * columns + column).middle())
        }
    };
    centers.iter().map(location).collect()
}

/// `count` locations that stand out in these blocks and lie apart, best first: x and y in pixels of the image as the
/// network got it.
///
/// A location's score is the mean over the blocks of its patch's [`PatchGraph::salience`], each block's divided by its
/// largest. From the best down, a location is taken if it is at least a third of the image's diagonal, divided by
/// √(count − 1), from those taken before. Patches at the border, whose features show the padding of the convolutions,
/// are passed over where the grid has others.
pub fn salient(view: &GraphView, blocks: &[&PatchGraph], count: usize) -> Vec<(f64, f64)> {
    let Some(fine) = blocks.iter().max_by_key(|b| b.len()) else { return Vec::new() };
    let most: Vec<f32> = blocks.iter().map(|b| b.salience.iter().copied().fold(f32::MIN_POSITIVE, f32::max)).collect();
    let (rows, columns) = fine.nodes;
    let inner = |at: usize, side: usize| side < 5 || (1..side - 1).contains(&at);
    let (height, width) = (f64::from(view.seen.0), f64::from(view.seen.1));
    let mut scored: Vec<(f32, (f64, f64))> = (0..fine.len())
        .filter(|node| inner(node / columns, rows) && inner(node % columns, columns))
        .map(|node| fine.node_patch(node).middle())
        .filter(|location| location.0 < width && location.1 < height)
        .map(|location| {
            let of_block = |(block, most): (&&PatchGraph, &f32)| {
                block.node_at(location).map_or(0.0, |node| block.salience[node] / most)
            };
            (blocks.iter().zip(&most).map(of_block).sum::<f32>(), location)
        })
        .collect();
    // Stable: equal ones keep the order of the grid.
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut apart = width.hypot(height) / 3.0 / (count.max(2) as f64 - 1.0).sqrt();
    let mut taken: Vec<(f64, f64)> = Vec::new();
    while taken.len() < count.min(scored.len()) {
        for (_, location) in &scored {
            if taken.len() < count && taken.iter().all(|t| (t.0 - location.0).hypot(t.1 - location.1) > apart) {
                taken.push(*location);
            }
        }
        // A crowded image: closer ones then.
        if apart < 0.5 {
            break;
        }
        apart /= 2.0;
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::super::patches::tests::pooled;
    use super::*;
    use image::RgbImage;

    fn view() -> GraphView {
        // The original is twice as large as what the network got.
        GraphView {
            model: "m".into(),
            weights: "w".into(),
            file: "f".into(),
            image: RgbImage::new(54, 36),
            seen: (18, 27),
            input: (18, 27),
            blocks: vec![pooled()],
            seconds: 0.0,
        }
    }

    fn error<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn blocks_are_numbers_ranges_or_all() {
        assert_eq!(parse_blocks("1,12", 12).unwrap(), [0, 11]);
        assert_eq!(parse_blocks("5, 2-4,3", 12).unwrap(), [4, 1, 2, 3]);
        assert_eq!(parse_blocks("all", 3).unwrap(), [0, 1, 2]);
        assert_eq!(error(parse_blocks("1,13", 12)), "there is no block 13: the model has blocks 1 to 12");
        assert!(error(parse_blocks("0", 12)).contains("blocks 1 to 12"));
        for bad in ["", "a", "1;2", "1-", "1.5"] {
            assert!(error(parse_blocks(bad, 12)).contains("--blocks takes"), "{bad}");
        }
        assert!(error(parse_blocks("4-2", 12)).contains("backwards"));
    }

    #[test]
    fn pixels_of_the_original_and_cells_of_the_grid_become_places() {
        let view = view();
        let found = locations(
            &view,
            &view.blocks[0],
            &[Center::pixel("53, 35").unwrap(), Center::pixel("8,0").unwrap(), Center::cell("4,6").unwrap()],
        )
        .unwrap();
        let nodes: Vec<_> = found.iter().map(|&p| view.blocks[0].node_at(p)).collect();
        assert_eq!(nodes, [Some(34), Some(1), Some(34)]);
        for bad in ["1", "1,b", "1,2,3", "", "nan,1"] {
            assert!(error(Center::pixel(bad)).contains("x,y in pixels"), "{bad}");
        }
        assert!(error(Center::cell("-1,2")).contains("row,column"));
        let at = |center| error(locations(&view, &view.blocks[0], &[center]));
        assert_eq!(
            at(Center::Pixel { x: 54.0, y: 3.0 }),
            "the centre 54,3 is outside the image, which has 54×36 pixels"
        );
        assert!(at(Center::Pixel { x: 3.0, y: -1.0 }).contains("outside the image"));
        assert!(at(Center::Cell { row: 5, column: 0 }).contains("5 rows and 7 columns"));
    }

    #[test]
    fn salient_places_are_spread_and_not_at_the_border() {
        let mut view = view();
        let graph = &mut view.blocks[0];
        graph.salience.fill(0.1);
        // The most salient at the border, two beside each other, one far away.
        for (node, value) in [(0, 9.0), (8, 5.0), (9, 4.0), (3 * 7 + 5, 3.0)] {
            graph.salience[node] = value;
        }
        let blocks: Vec<&PatchGraph> = view.blocks.iter().collect();
        let nodes = |count| -> Vec<usize> {
            salient(&view, &blocks, count).iter().map(|&p| blocks[0].node_at(p).unwrap()).collect()
        };
        assert_eq!(nodes(2), [8, 26]);
        // More than there is room for: all inner nodes, each once.
        let mut all = nodes(100);
        all.sort_unstable();
        assert_eq!(all, (0..35).filter(|n| (1..4).contains(&(n / 7)) && (1..6).contains(&(n % 7))).collect::<Vec<_>>());
    }
}
