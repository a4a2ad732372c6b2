//! Exact k nearest neighbours without a distance matrix: tiles of the product, and selection in the tile.

use super::top_k::{Hits, Selector};
use super::{Isa, MicroKernel, Tile, Work, MAX_ROWS, MAX_WIDTH};
use rayon::prelude::*;

/// Nodes that one job handles: packed, they fit the second-level cache together with a panel of candidates.
const BLOCK: usize = 96;
/// Packed candidates kept at a time, in bytes, where one image needs less.
const PACKED: usize = 8 << 20;
/// Bytes for the selection of one job.
const SELECTION: usize = 1 << 20;

/// One side of the search: the nodes, or their candidates.
#[derive(Clone, Copy, Debug)]
pub struct Points<'a> {
    /// `[batch, rows, channels]`
    pub features: &'a [f32],
    /// Nodes or candidates per batch item.
    pub rows: usize,
    /// Values per row of `features`.
    pub channels: usize,
    /// Divide every row by its Euclidean norm (at least 1e-12) first.
    pub normalize: bool,
    /// Further columns, the same for every batch item and never normalised: `[rows, rank]`.
    pub position: &'a [f32],
    /// Values per row of `position`; 0 for none.
    pub rank: usize,
    /// What `position` is multiplied by.
    pub position_scale: f32,
}

impl<'a> Points<'a> {
    /// Features alone, taken as they are.
    pub fn raw(features: &'a [f32], rows: usize, channels: usize) -> Points<'a> {
        Points { features, rows, channels, normalize: false, position: &[], rank: 0, position_scale: 1.0 }
    }
}

/// The candidates with the largest score for each node.
///
/// Of the `(k − 1)·dilation + 1` candidates with the largest scores, largest first, every `dilation`-th goes to `out`;
/// equal scores are ordered by index. A score that is NaN counts as minus infinity, so indices are always in range.
///
/// The score of a pair is the inner product of the features plus that of the positions; if candidates are normalised,
/// those of norm 0 get a further 1/2, so that `score = 1 − distance² / 2` holds for them too. `out` is
/// `[batch, rows of x, k]`, and says how large the batch is. Memory beyond inputs and output: the packed candidates of
/// one image (or of as many as fit 8 MB), and less than 2 MB per thread.
///
/// # Panics
/// If a slice does not have the stated size, the columns of the two sides differ, `k` or `dilation` is 0, or
/// `(k − 1)·dilation + 1` exceeds the rows of `y`.
pub fn nearest_points(isa: Isa, x: Points, y: Points, k: usize, dilation: usize, out: &mut [i64]) {
    assert!(k > 0 && dilation > 0, "k {k} and dilation {dilation} must be at least 1");
    let want = (k - 1) * dilation + 1;
    assert!(want <= y.rows, "{k} neighbours at dilation {dilation} need {want} candidates, there are {}", y.rows);
    assert!(u32::try_from(y.rows).is_ok(), "too many candidates: {}", y.rows);
    assert_eq!((x.channels, x.rank), (y.channels, y.rank), "the two sides have different columns");
    if x.rows == 0 {
        assert!(out.is_empty(), "no nodes, but room for neighbours");
        return;
    }
    let batch = out.len() / (x.rows * k);
    assert_eq!(out.len(), batch * x.rows * k, "out is not [batch, nodes, k]");
    for side in [&x, &y] {
        assert_eq!(side.features.len(), batch * side.rows * side.channels, "features are not [batch, rows, channels]");
        assert_eq!(side.position.len(), side.rows * side.rank, "position is not [rows, rank]");
    }

    let kernel = MicroKernel::of(isa);
    let panels = Panels::new(kernel, y.rows);
    let per_item = panels.padded() * y.columns();
    let together = (PACKED / (4 * per_item).max(1)).clamp(1, batch.max(1));
    let mut packed = vec![0f32; together * per_item];
    let mut bias = vec![0f32; together * panels.padded()];
    let block = block_rows(kernel, x.rows * together, want).min(x.rows.next_multiple_of(kernel.rows));

    for (chunk, out) in out.chunks_mut(together * x.rows * k).enumerate() {
        let first = chunk * together;
        let items = out.len() / (x.rows * k);
        packed[..items * per_item]
            .par_chunks_mut(per_item.max(1))
            .zip(bias[..items * panels.padded()].par_chunks_mut(panels.padded()))
            .enumerate()
            .for_each(|(i, (packed, bias))| {
                // Panels are all of one width but for the last, so chunks of the widest are exactly the panels.
                packed
                    .par_chunks_mut((panels.width * y.columns()).max(1))
                    .zip(bias.par_chunks_mut(panels.width))
                    .enumerate()
                    .for_each(|(p, (packed, bias))| {
                        y.pack_panel(first + i, p * panels.width, bias.len(), packed, bias);
                    });
            });

        // A job is a block of nodes of one image. Blocks do not cross images, so they are cut image by image.
        let jobs: Vec<(usize, usize, &mut [i64])> = out
            .chunks_mut(x.rows * k)
            .enumerate()
            .flat_map(|(i, out)| out.chunks_mut(block * k).enumerate().map(move |(b, out)| (i, b * block, out)))
            .collect();
        jobs.into_par_iter().for_each_init(
            || (vec![0f32; block * x.columns()], Selector::new(block, want)),
            |(scratch, selector), (i, row, out)| {
                x.pack_groups(first + i, row, kernel.rows, scratch);
                let live = out.len() / k;
                selector.reset(live);
                let candidates = Candidates {
                    panels,
                    packed: &packed[i * per_item..][..per_item],
                    bias: &bias[i * panels.padded()..][..panels.padded()],
                };
                isa.run(Search { kernel, columns: x.columns(), x: scratch, y: candidates, selector });
                for (r, out) in out.chunks_exact_mut(k).enumerate() {
                    selector.finish(r, dilation, out);
                }
            },
        );
    }
}

/// How many nodes a job takes: a multiple of the tile's, few enough that every thread has several jobs and that the
/// selection stays small.
fn block_rows(kernel: MicroKernel, nodes: usize, want: usize) -> usize {
    let fair = nodes.div_ceil(4 * rayon::current_num_threads());
    let fits = SELECTION / Selector::bytes_per_row(want);
    BLOCK.min(fair).min(fits).next_multiple_of(kernel.rows)
}

/// How the candidates are cut into panels.
#[derive(Clone, Copy)]
struct Panels {
    candidates: usize,
    /// Candidates in every panel but the last, which has as many registers as it needs.
    width: usize,
    lanes: usize,
}

impl Panels {
    fn new(kernel: MicroKernel, candidates: usize) -> Panels {
        Panels { candidates, width: kernel.lanes * kernel.tiles.len(), lanes: kernel.lanes }
    }

    /// Candidates with padding.
    fn padded(&self) -> usize {
        self.candidates.next_multiple_of(self.lanes)
    }
}

/// The packed candidates of one image.
#[derive(Clone, Copy)]
struct Candidates<'a> {
    panels: Panels,
    packed: &'a [f32],
    bias: &'a [f32],
}

/// Scores a packed block of nodes against all candidates, and offers to `selector` what may be among the nearest.
struct Search<'a> {
    kernel: MicroKernel,
    columns: usize,
    /// Packed nodes.
    x: &'a [f32],
    y: Candidates<'a>,
    selector: &'a mut Selector,
}

impl Work for Search<'_> {
    #[inline(always)]
    unsafe fn run(self, isa: Isa) {
        let Search { kernel, columns, x, y, selector } = self;
        let mut scores = [0f32; MAX_ROWS * MAX_WIDTH];
        let mut hits = [0u64; MAX_ROWS];
        let rows = kernel.rows;
        let groups = selector.thresholds().len() / rows;
        assert!(x.len() == groups * rows * columns);
        let mut start = 0;
        while start < y.panels.padded() {
            let width = y.panels.width.min(y.panels.padded() - start);
            let tile = kernel.tiles[width / kernel.lanes - 1];
            let panel = &y.packed[start * columns..][..width * columns];
            let bias = &y.bias[start..][..width];
            for g in 0..groups {
                // SAFETY: the slices have exactly the sizes that Tile states (checked above), the scratch arrays are as
                // large as any kernel's tile, and MicroKernel::of only gives kernels that this processor can run.
                let any = unsafe {
                    tile(&Tile {
                        columns,
                        x: x[g * rows * columns..].as_ptr(),
                        y: panel.as_ptr(),
                        bias: bias.as_ptr(),
                        threshold: selector.thresholds()[g * rows..].as_ptr(),
                        scores: scores.as_mut_ptr(),
                        hits: hits.as_mut_ptr(),
                    })
                };
                if !any {
                    continue;
                }
                for (r, &bits) in hits[..rows].iter().enumerate() {
                    if bits != 0 {
                        let scores = &scores[r * width..][..width];
                        // SAFETY: the caller's promise.
                        unsafe { selector.offer(isa, g * rows + r, Hits { bits, scores, first: start as u32 }) };
                    }
                }
            }
            start += width;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values in [-1, 1) that repeat on every run.
    pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// The definition, in float64. Gives the neighbours and all scores.
    fn definition(x: &Points, y: &Points, batch: usize, k: usize, d: usize) -> (Vec<i64>, Vec<Vec<f64>>) {
        let row = |p: &Points, b: usize, i: usize| -> (Vec<f64>, f64) {
            let f: Vec<f64> =
                p.features[(b * p.rows + i) * p.channels..][..p.channels].iter().map(|&v| v as f64).collect();
            let norm = f.iter().map(|v| v * v).sum::<f64>().sqrt();
            let scale = if p.normalize { 1.0 / norm.max(1e-12) } else { 1.0 };
            let mut v: Vec<f64> = f.iter().map(|v| v * scale).collect();
            let bias = if p.normalize { (1.0 - v.iter().map(|v| v * v).sum::<f64>()) / 2.0 } else { 0.0 };
            v.extend(p.position[i * p.rank..][..p.rank].iter().map(|&q| (q * p.position_scale) as f64));
            (v, bias)
        };
        let (mut out, mut all) = (Vec::new(), Vec::new());
        for b in 0..batch {
            let ys: Vec<_> = (0..y.rows).map(|j| row(y, b, j)).collect();
            for i in 0..x.rows {
                let (xi, _) = row(x, b, i);
                let scores: Vec<f64> =
                    ys.iter().map(|(y, s)| s + xi.iter().zip(y).map(|(a, b)| a * b).sum::<f64>()).collect();
                let mut order: Vec<i64> = (0..y.rows as i64).collect();
                order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
                out.extend(order.iter().take(k * d).step_by(d).take(k));
                all.push(scores);
            }
        }
        (out, all)
    }

    /// Every instruction set must give the definition's neighbours, but for near-ties.
    fn check(x: Points, y: Points, batch: usize, k: usize, d: usize) {
        let (expected, scores) = definition(&x, &y, batch, k, d);
        for isa in Isa::available() {
            let mut out = vec![-1; batch * x.rows * k];
            nearest_points(isa, x, y, k, d, &mut out);
            for (i, (got, want)) in out.chunks(k).zip(expected.chunks(k)).enumerate() {
                let mut distinct = got.to_vec();
                distinct.sort_unstable();
                distinct.dedup();
                assert_eq!(distinct.len(), k, "{isa:?} row {i} repeats a neighbour: {got:?}");
                for (g, w) in got.iter().zip(want) {
                    let gap = scores[i][*g as usize] - scores[i][*w as usize];
                    assert!(gap.abs() < 2e-6, "{isa:?} row {i}: {got:?} instead of {want:?}, gap {gap:e}");
                }
            }
        }
    }

    #[test]
    fn all_sizes_agree_with_the_definition() {
        for (batch, n, m, c, k, d) in [
            (1, 1, 1, 1, 1, 1),
            (1, 5, 3, 2, 3, 1),
            (2, 97, 47, 7, 9, 2),
            (3, 49, 49, 33, 9, 5),
            (1, 200, 100, 20, 9, 11),
            (1, 130, 513, 80, 9, 3),
            (2, 64, 196, 64, 18, 4),
            (1, 30, 300, 16, 300, 1),
        ] {
            let (x, y) = (noise(batch * n * c, 1), noise(batch * m * c, 2));
            let (x, y) = (Points::raw(&x, n, c), Points::raw(&y, m, c));
            check(x, y, batch, k, d);
            let (u, v) = (noise(n * 5, 3), noise(m * 5, 4));
            check(
                Points { normalize: true, position: &u, rank: 5, position_scale: 0.5, ..x },
                Points { normalize: true, position: &v, rank: 5, ..y },
                batch,
                k,
                d,
            );
        }
    }

    #[test]
    fn without_rounding_every_instruction_set_gives_the_portable_answer() {
        let (batch, n, m, c) = (2, 61, 203, 19);
        // Small whole numbers: all sums are exact, many of them equal.
        let whole = |len, seed| -> Vec<f32> { noise(len, seed).iter().map(|v| (v * 4.0).round()).collect() };
        let (x, y) = (whole(batch * n * c, 11), whole(batch * m * c, 12));
        for (k, d) in [(1, 1), (9, 1), (9, 7), (25, 8)] {
            let answer = |isa| {
                let mut out = vec![-1; batch * n * k];
                nearest_points(isa, Points::raw(&x, n, c), Points::raw(&y, m, c), k, d, &mut out);
                out
            };
            let portable = answer(Isa::Portable);
            for isa in Isa::available() {
                assert_eq!(answer(isa), portable, "{isa:?} k {k} d {d}");
            }
        }
    }

    #[test]
    fn equal_scores_come_in_order_of_index() {
        let (n, m, c) = (70, 150, 12);
        let same = vec![0.5; (n.max(m)) * c];
        for isa in Isa::available() {
            for (k, d) in [(9, 1), (9, 4), (50, 3), (150, 1)] {
                let mut out = vec![-1; n * k];
                let (x, y) = (Points::raw(&same[..n * c], n, c), Points::raw(&same[..m * c], m, c));
                nearest_points(isa, x, y, k, d, &mut out);
                let expected: Vec<i64> = (0..k).map(|i| (i * d) as i64).collect();
                assert!(out.chunks(k).all(|row| row == expected), "{isa:?} k {k} d {d}");
            }
        }
    }

    #[test]
    fn duplicated_candidates_come_in_pairs() {
        let (n, m, c, k) = (40, 120, 24, 10);
        let x = noise(n * c, 5);
        let mut y = noise(m / 2 * c, 6);
        y.extend_from_within(..);
        for isa in Isa::available() {
            let mut out = vec![-1; n * k];
            nearest_points(isa, Points::raw(&x, n, c), Points::raw(&y, m, c), k, 1, &mut out);
            for row in out.chunks(k) {
                assert!(row.chunks(2).all(|p| p[1] == p[0] + m as i64 / 2), "{isa:?}: {row:?}");
            }
        }
    }

    #[test]
    fn a_zero_candidate_is_at_distance_one() {
        // Two candidates: zero, and one whose cosine with x is 0.25 (nearer than zero only above 1/2).
        let y = [0.0, 0.0, 1.0, 15f32.sqrt()];
        for isa in Isa::available() {
            let mut out = [-1; 2];
            let side = |f| Points { normalize: true, ..Points::raw(f, f.len() / 2, 2) };
            nearest_points(isa, side(&[2.0, 0.0][..]), side(&y[..]), 2, 1, &mut out);
            assert_eq!(out, [0, 1], "{isa:?}");
            nearest_points(isa, side(&[1.0, 3.0][..]), side(&y[..]), 2, 1, &mut out);
            assert_eq!(out, [1, 0], "{isa:?}");
        }
    }

    #[test]
    fn what_is_not_a_number_is_farthest() {
        let (n, m, c, k) = (20, 60, 9, 5);
        let (mut x, mut y) = (noise(n * c, 7), noise(m * c, 8));
        x[3 * c + 1] = f32::NAN;
        x[4 * c + 1] = f32::INFINITY;
        for j in [0, 17, 59] {
            y[j * c + 4] = f32::NAN;
        }
        for isa in Isa::available() {
            for normalize in [false, true] {
                let side = |f, rows| Points { normalize, ..Points::raw(f, rows, c) };
                let mut out = vec![-1; n * k];
                nearest_points(isa, side(&x, n), side(&y, m), k, 1, &mut out);
                assert!(out.iter().all(|&j| (0..m as i64).contains(&j)), "{isa:?}");
                assert_eq!(out[3 * k..4 * k], [0, 1, 2, 3, 4], "{isa:?}: no score is a number");
                for i in (0..n).filter(|&i| i != 3 && i != 4) {
                    let row = &out[i * k..][..k];
                    assert!(!row.iter().any(|j| [0, 17, 59].contains(j)), "{isa:?} row {i}: {row:?}");
                }
                let mut out = vec![-1; n * m];
                nearest_points(isa, side(&x, n), side(&y, m), m, 1, &mut out);
                assert_eq!(out[m - 3..m], [0, 17, 59], "{isa:?}: last, in order");
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let (n, m, c, k) = (500, 300, 31, 9);
        let (x, y) = (noise(n * c, 9), noise(m * c, 10));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![-1; n * k];
            pool.install(|| nearest_points(Isa::best(), Points::raw(&x, n, c), Points::raw(&y, m, c), k, 2, &mut out));
            out
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(5));
    }
}
