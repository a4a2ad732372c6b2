//! The relative position that Pyramid ViG subtracts from the squared distance of two patches, as a product of low rank.
//!
//! The published matrix is `R = (2 / D)·P·Pᵀ`, where `P = [E(column), E(row)]` holds a 1-D sin-cos embedding of each
//! axis (Han et al., 2022, published code), resized bicubically along the flattened index. `E(a)·E(b)ᵀ` depends on
//! `a − b` alone and is so smooth that a handful of eigenvectors hold it, and resizing is linear; so the resized matrix
//! is `U·Vᵀ` with at most 36 columns, in place of nodes × candidates values.

use crate::config::RelativeKind;
use anyhow::{ensure, Context, Result};
use std::sync::{Arc, Mutex, PoisonError};

/// What is left out of one axis's similarity, at most, when its small eigenvalues are dropped. Two axes, each resized,
/// stay below 2e-6 with it, where float32 sums of the same numbers differ as much.
const TOLERANCE: f64 = 5e-7;
/// Bytes of factors that are kept for sizes seen before. An image of 800×1280 needs 11 MB for all stages.
const CACHE: usize = 32 << 20;

/// The relative position of one stage; small, and compared by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelativePosition {
    /// Channels of the features, D: the number of frequencies.
    pub channels: usize,
    /// Nodes per side at the native image size.
    pub grid: usize,
    /// Candidates are nodes pooled by this much along each side.
    pub reduce: usize,
    /// How other sizes are treated.
    pub kind: RelativeKind,
}

/// `U·Vᵀ`: the relative position for one image size.
#[derive(Debug)]
pub struct Factors {
    /// `[nodes, rank]`
    pub u: Vec<f32>,
    /// `[candidates, rank]`
    pub v: Vec<f32>,
    /// Columns of both.
    pub rank: usize,
}

impl RelativePosition {
    /// The relative position of a stage.
    ///
    /// # Errors
    /// If there are fewer than 4 channels (no frequency fits), or `reduce` leaves no candidate on the native grid.
    pub fn new(channels: usize, grid: usize, reduce: usize, kind: RelativeKind) -> Result<RelativePosition> {
        ensure!(channels >= 4, "a relative position needs at least 4 channels, this stage has {channels}");
        ensure!(
            reduce >= 1 && (grid * grid) / (reduce * reduce).max(1) >= 1,
            "a {grid}×{grid} grid cannot be reduced by {reduce}: raise the native image size"
        );
        Ok(RelativePosition { channels, grid, reduce, kind })
    }

    /// The factors for an image of `nodes` (height, width) and its pooled `candidates` (height, width).
    ///
    /// Kept for the sizes seen last, so asking again costs nothing.
    pub fn factors(&self, nodes: (usize, usize), candidates: (usize, usize)) -> Arc<Factors> {
        type Entry = (RelativePosition, (usize, usize), (usize, usize), Arc<Factors>);
        static KEPT: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
        let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut kept = kept();
            if let Some(at) = kept.iter().position(|e| (e.0, e.1, e.2) == (*self, nodes, candidates)) {
                kept[at..].rotate_left(1);
                return kept[kept.len() - 1].3.clone();
            }
        }
        let made = Arc::new(self.make(nodes, candidates));
        let mut kept = kept();
        kept.push((*self, nodes, candidates, made.clone()));
        let mut bytes = 0;
        let from = kept.iter().rposition(|e| {
            bytes += 4 * (e.3.u.len() + e.3.v.len());
            bytes > CACHE
        });
        // The newest stays even if it is too large alone: every block of its stage asks for it.
        if let Some(from) = from {
            let last = kept.len() - 1;
            kept.drain(..last.min(from + 1));
        }
        made
    }

    /// The published matrix at the native size, `[nodes, candidates]` row-major, by its formula, with no detour over
    /// factors: for the dense path, which resizes it to other numbers of nodes and candidates, and for tests.
    fn published_matrix(&self) -> Vec<f32> {
        let frequencies = self.frequencies();
        let locations = integer_locations(self.grid);
        let nodes = grid_of(&locations, &locations);
        let taps = bicubic(nodes.len(), self.native_candidates());
        let mut out = Vec::new();
        for &a in &nodes {
            let full: Vec<f64> = nodes.iter().map(|&b| entry(&frequencies, a, b)).collect();
            out.extend(taps.iter().map(|t| t.iter().map(|&(j, w)| full[j] * w).sum::<f64>() as f32));
        }
        out
    }

    /// The same of the real grid, for these (height, width).
    pub(crate) fn grid_matrix(&self, nodes: (usize, usize), candidates: (usize, usize)) -> Vec<f32> {
        let frequencies = self.frequencies();
        let [rows, columns] = self.real_locations(nodes, candidates);
        let candidates = grid_of(&rows.1, &columns.1);
        let nodes = grid_of(&rows.0, &columns.0);
        nodes
            .iter()
            .flat_map(|&a| candidates.iter().map(move |&b| (a, b)))
            .map(|(a, b)| entry(&frequencies, a, b) as f32)
            .collect()
    }

    /// Factors of the published matrix on the native grid, before they are resized: `[grid², rank]` of the nodes and
    /// `[native_candidates, rank]` of the candidates, and the rank.
    pub(crate) fn native_factors(&self) -> (Vec<f64>, Vec<f64>, usize) {
        let published = Self { kind: RelativeKind::Published, ..*self };
        let basis = published.basis();
        (basis.native.clone(), basis.pooled.clone(), 2 * basis.axis.rank())
    }

    /// Columns of the published matrix.
    pub(crate) fn native_candidates(&self) -> usize {
        self.grid * self.grid / (self.reduce * self.reduce)
    }

    fn make(&self, nodes: (usize, usize), candidates: (usize, usize)) -> Factors {
        let single = |values: &[f64]| values.iter().map(|&v| v as f32).collect();
        let Basis { axis, native, pooled } = &*self.basis();
        let rank = 2 * axis.rank();
        match self.kind {
            RelativeKind::Published => {
                let (n, m) = (nodes.0 * nodes.1, candidates.0 * candidates.1);
                Factors { u: single(&resize(native, rank, n)), v: single(&resize(pooled, rank, m)), rank }
            }
            RelativeKind::Grid => {
                let [rows, columns] = self.real_locations(nodes, candidates);
                let factor = |rows: &[f64], columns: &[f64]| {
                    single(&product(&axis.factor(rows), &axis.factor(columns), axis.rank()))
                };
                Factors { u: factor(&rows.0, &columns.0), v: factor(&rows.1, &columns.1), rank }
            }
        }
    }

    /// What all sizes share, made once for each stage.
    fn basis(&self) -> Arc<Basis> {
        static KEPT: Mutex<Vec<(RelativePosition, Arc<Basis>)>> = Mutex::new(Vec::new());
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = kept.iter().find(|(position, _)| position == self) {
            return found.clone();
        }
        let frequencies = self.frequencies();
        let made = Arc::new(match self.kind {
            RelativeKind::Published => {
                let locations = integer_locations(self.grid);
                let axis = Axis::new(frequencies, locations.clone());
                let native = product(&axis.factor(&locations), &axis.factor(&locations), axis.rank());
                let pooled = resize(&native, 2 * axis.rank(), self.native_candidates());
                Basis { axis, native, pooled }
            }
            RelativeKind::Grid => {
                // Half a cell beyond the native grid's centres on each side lies all that a finer grid can ask for.
                let steps = (2 * self.grid).max(32);
                let inside = (0..=steps).map(|i| i as f64 * self.grid as f64 / steps as f64 - 0.5).collect();
                Basis { axis: Axis::new(frequencies, inside), native: Vec::new(), pooled: Vec::new() }
            }
        });
        kept.push((*self, made.clone()));
        made
    }

    /// Angular frequencies per native cell: a 1-D embedding of D / 2 numbers, half sines and half cosines.
    pub(crate) fn frequencies(&self) -> Vec<f64> {
        let width = self.channels / 2;
        (0..width / 2).map(|i| 10000f64.powf(-(i as f64) / (width as f64 / 2.0))).collect()
    }

    /// For rows and for columns: where the nodes and the candidates are, in native cells.
    fn real_locations(&self, nodes: (usize, usize), candidates: (usize, usize)) -> [(Vec<f64>, Vec<f64>); 2] {
        let axis = |nodes: usize, candidates: usize| {
            let scale = self.grid as f64 / nodes as f64;
            let pool = self.reduce.min(nodes) as f64;
            let at = |centre: f64| centre * scale - 0.5;
            (
                (0..nodes).map(|i| at(i as f64 + 0.5)).collect(),
                (0..candidates).map(|j| at((j as f64 + 0.5) * pool)).collect(),
            )
        };
        [axis(nodes.0, candidates.0), axis(nodes.1, candidates.1)]
    }
}

fn integer_locations(grid: usize) -> Vec<f64> {
    (0..grid).map(|i| i as f64).collect()
}

/// Every (row, column) pair, row by row.
fn grid_of(rows: &[f64], columns: &[f64]) -> Vec<(f64, f64)> {
    rows.iter().flat_map(|&r| columns.iter().map(move |&c| (r, c))).collect()
}

/// `(2 / D)·E(a)·E(b)ᵀ` for locations `apart`: sines and cosines of the same angles make the cosine of the difference.
fn similarity(frequencies: &[f64], apart: f64) -> f64 {
    let sum: f64 = frequencies.iter().map(|f| (f * apart).cos()).sum();
    sum / (2 * frequencies.len()) as f64
}

/// The relative position of two (row, column).
fn entry(frequencies: &[f64], a: (f64, f64), b: (f64, f64)) -> f64 {
    similarity(frequencies, a.1 - b.1) + similarity(frequencies, a.0 - b.0)
}

/// What the factors of a stage are made from, whatever the size.
struct Basis {
    axis: Axis,
    /// The published factor of all patches at the native size, and of the candidates; else empty.
    native: Vec<f64>,
    pooled: Vec<f64>,
}

/// The similarity along one axis as a product of low rank, by Nyström's method: exact at `points`, and as good between
/// them, where it is as smooth.
struct Axis {
    frequencies: Vec<f64>,
    points: Vec<f64>,
    /// Eigenvectors over the square roots of their eigenvalues, largest first.
    basis: Vec<Vec<f64>>,
}

impl Axis {
    fn new(frequencies: Vec<f64>, points: Vec<f64>) -> Axis {
        let n = points.len();
        let pairs = points.iter().flat_map(|a| points.iter().map(move |b| a - b));
        let matrix: Vec<f64> = pairs.map(|apart| similarity(&frequencies, apart)).collect();
        let mut left: Vec<f64> = (0..n).map(|i| matrix[i * n + i]).collect();
        let mut basis = Vec::new();
        for (value, vector) in eigen(matrix, n) {
            if value <= 0.0 || left.iter().all(|&l| l < TOLERANCE) {
                break;
            }
            for (l, q) in left.iter_mut().zip(&vector) {
                *l -= value * q * q;
            }
            basis.push(vector.into_iter().map(|q| q / value.sqrt()).collect());
        }
        Axis { frequencies, points, basis }
    }

    fn rank(&self) -> usize {
        self.basis.len()
    }

    /// `[locations, rank]`
    fn factor(&self, locations: &[f64]) -> Vec<f64> {
        let mut out = Vec::with_capacity(locations.len() * self.rank());
        for location in locations {
            let near: Vec<f64> = self.points.iter().map(|p| similarity(&self.frequencies, location - p)).collect();
            out.extend(self.basis.iter().map(|q| q.iter().zip(&near).map(|(q, s)| q * s).sum::<f64>()));
        }
        out
    }
}

/// The factor of a grid from those of its axes (`[rows, rank]`, `[columns, rank]`): `[rows · columns, 2 · rank]`.
fn product(rows: &[f64], columns: &[f64], rank: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(2 * rows.len() * columns.len() / rank.max(1));
    for r in rows.chunks_exact(rank) {
        for c in columns.chunks_exact(rank) {
            out.extend_from_slice(c);
            out.extend_from_slice(r);
        }
    }
    out
}

/// The four source rows and weights of each of `to` rows, when `from` rows are resized bicubically as PyTorch does
/// (a = −0.75, `align_corners = False`, edges repeated).
///
/// The source location is computed in float32 with one rounding, as PyTorch's vectorised loops do: at 64,000 rows that
/// moves a weight by 1e-4.
fn bicubic(from: usize, to: usize) -> Vec<[(usize, f64); 4]> {
    const A: f64 = -0.75;
    let inner = |t: f64| ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0;
    let outer = |t: f64| ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A;
    let scale = from as f32 / to as f32;
    (0..to)
        .map(|i| {
            // float32 factors multiply exactly in float64
            let source = (f64::from(scale) * f64::from(i as f32 + 0.5) - 0.5) as f32;
            let t = f64::from(source - source.floor());
            let at = |offset: i64| (source.floor() as i64 + offset).clamp(0, from as i64 - 1) as usize;
            [(at(-1), outer(t + 1.0)), (at(0), inner(t)), (at(1), inner(1.0 - t)), (at(2), outer(2.0 - t))]
        })
        .collect()
}

/// Resizes `[from, rank]` to `[to, rank]` along the rows.
fn resize(rows: &[f64], rank: usize, to: usize) -> Vec<f64> {
    let from = rows.len() / rank;
    if from == to {
        return rows.to_vec();
    }
    let mut out = vec![0.0; to * rank];
    for (out, taps) in out.chunks_exact_mut(rank).zip(bicubic(from, to)) {
        for (j, weight) in taps {
            for (o, v) in out.iter_mut().zip(&rows[j * rank..][..rank]) {
                *o += weight * v;
            }
        }
    }
    out
}

/// Eigenvalues, largest first, and unit eigenvectors of a symmetric `[n, n]` matrix, by Jacobi rotations.
fn eigen(mut a: Vec<f64>, n: usize) -> Vec<(f64, Vec<f64>)> {
    // Rows of `q` become the eigenvectors.
    let mut q = vec![0.0; n * n];
    for i in 0..n {
        q[i * n + i] = 1.0;
    }
    let total: f64 = a.iter().map(|v| v * v).sum();
    for _sweep in 0..60 {
        let off: f64 = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i * n + j].powi(2)).sum();
        if off <= 1e-30 * total {
            break;
        }
        for i in 1..n {
            for j in 0..i {
                let apq = a[i * n + j];
                if apq == 0.0 {
                    continue;
                }
                let theta = (a[i * n + i] - a[j * n + j]) / (2.0 * apq);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                let turn = |m: &mut [f64], p: usize, r: usize| {
                    let (x, y) = (m[p], m[r]);
                    m[p] = c * x - s * y;
                    m[r] = s * x + c * y;
                };
                for k in 0..n {
                    turn(&mut a, j * n + k, i * n + k);
                    turn(&mut q, j * n + k, i * n + k);
                }
                for k in 0..n {
                    turn(&mut a, k * n + j, k * n + i);
                }
            }
        }
    }
    let mut pairs: Vec<(f64, Vec<f64>)> = (0..n).map(|i| (a[i * n + i], q[i * n..][..n].to_vec())).collect();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    pairs
}

/// The published matrix at the native size, as a slice that is made once for each stage.
pub(crate) fn native_matrix(position: &RelativePosition) -> Result<Arc<Vec<f32>>> {
    static KEPT: Mutex<Vec<(RelativePosition, Arc<Vec<f32>>)>> = Mutex::new(Vec::new());
    let mut kept = KEPT.lock().ok().context("another thread failed while it made a relative position")?;
    if let Some((_, found)) = kept.iter().find(|(p, _)| p == position) {
        return Ok(found.clone());
    }
    let made = Arc::new(position.published_matrix());
    kept.push((*position, made.clone()));
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    fn entry(f: &Factors, i: usize, j: usize) -> f32 {
        f.u[i * f.rank..][..f.rank].iter().zip(&f.v[j * f.rank..][..f.rank]).map(|(u, v)| u * v).sum()
    }

    #[test]
    fn equals_the_published_matrix_native_and_resized() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/relative/samples.safetensors");
        let tensors: std::collections::HashMap<String, Tensor> =
            Tensor::read_safetensors(path).unwrap().into_iter().collect();
        let mut cases = 0;
        for name in tensors.keys().filter_map(|n| n.strip_suffix(".value")) {
            let sizes: Vec<usize> = name.split('_').map(|v| v.parse().unwrap()).collect();
            let &[channels, grid, reduce, h, w] = &sizes[..] else { panic!("{name}") };
            let position = RelativePosition::new(channels, grid, reduce, RelativeKind::Published).unwrap();
            let f = position.factors((h, w), (h / reduce.min(h), w / reduce.min(w)));
            assert!(f.rank <= 36, "{name}: rank {}", f.rank);
            let rows = Vec::<i64>::try_from(&tensors[&format!("{name}.row")]).unwrap();
            let columns = Vec::<i64>::try_from(&tensors[&format!("{name}.column")]).unwrap();
            let values = Vec::<f32>::try_from(&tensors[&format!("{name}.value")]).unwrap();
            let mut worst = 0f32;
            for ((i, j), value) in rows.into_iter().zip(columns).zip(values) {
                worst = worst.max((entry(&f, i as usize, j as usize) - value).abs());
            }
            assert!(worst < 5e-6, "{name}: off by {worst:e}");
            cases += 1;
        }
        assert_eq!(cases, 13);
    }

    #[test]
    fn the_native_matrix_is_the_product() {
        for (channels, grid, reduce) in [(32, 12, 4), (48, 7, 1), (10, 6, 2)] {
            let position = RelativePosition::new(channels, grid, reduce, RelativeKind::Published).unwrap();
            let side = grid / reduce;
            let whole = native_matrix(&position).unwrap();
            let f = position.factors((grid, grid), (side, side));
            for (at, value) in whole.iter().enumerate() {
                let (i, j) = (at / (side * side), at % (side * side));
                assert!((entry(&f, i, j) - value).abs() < 2e-6, "{position:?} {i} {j}");
            }
        }
    }

    #[test]
    fn the_real_grid_is_as_low_in_rank_and_knows_its_places() {
        for (channels, grid, reduce, (h, w)) in [
            (80, 56, 4, (200, 320)),
            (128, 56, 4, (43, 90)),
            (400, 14, 1, (50, 80)),
            (640, 7, 1, (25, 40)),
            (16, 8, 4, (3, 2)),
        ] {
            let position = RelativePosition::new(channels, grid, reduce, RelativeKind::Grid).unwrap();
            let (hy, wy) = (h / reduce.min(h), w / reduce.min(w));
            let f = position.factors((h, w), (hy, wy));
            assert!(f.rank <= 38, "{position:?}: rank {}", f.rank);
            assert_eq!((f.u.len(), f.v.len()), (h * w * f.rank, hy * wy * f.rank));
            let frequencies = position.frequencies();
            // In cells of the native grid, whose number of cells an image always spans.
            let (down, across) = (grid as f64 / h as f64, grid as f64 / w as f64);
            let (pool_h, pool_w) = (reduce.min(h) as f64, reduce.min(w) as f64);
            let mut worst = 0f64;
            for i in (0..h * w).step_by(37) {
                for j in (0..hy * wy).step_by(3) {
                    let dr = (i / w) as f64 + 0.5 - ((j / wy) as f64 + 0.5) * pool_h;
                    let dc = (i % w) as f64 + 0.5 - ((j % wy) as f64 + 0.5) * pool_w;
                    let expected = similarity(&frequencies, dr * down) + similarity(&frequencies, dc * across);
                    worst = worst.max((f64::from(entry(&f, i, j)) - expected).abs());
                }
            }
            assert!(worst < 4e-6, "{position:?}: off by {worst:e}");
            // On its own location, without pooling, a node is as similar as can be.
            if reduce == 1 {
                assert!((entry(&f, 5, 5) - 1.0).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn factors_are_made_once_and_forgotten_in_time() {
        let position = RelativePosition::new(24, 9, 1, RelativeKind::Published).unwrap();
        let first = position.factors((30, 30), (30, 30));
        assert!(Arc::ptr_eq(&first, &position.factors((30, 30), (30, 30))));
        let weak = Arc::downgrade(&first);
        drop(first);
        for side in 200..230 {
            position.factors((side, side), (30, 30));
        }
        assert!(weak.upgrade().is_none(), "kept although newer sizes fill the cache");
    }

    #[test]
    fn impossible_stages_are_refused() {
        assert!(RelativePosition::new(3, 8, 1, RelativeKind::Published).is_err());
        assert!(RelativePosition::new(80, 3, 4, RelativeKind::Published).is_err());
    }

    #[test]
    fn eigenvectors_rebuild_the_matrix() {
        let n = 9;
        let a: Vec<f64> = (0..n * n)
            .map(|v| {
                let (i, j) = (v / n, v % n);
                ((i * j) as f64).sin() + (i + j) as f64
            })
            .collect();
        let pairs = eigen(a.clone(), n);
        for i in 0..n {
            for j in 0..n {
                let sum: f64 = pairs.iter().map(|(l, q)| l * q[i] * q[j]).sum();
                assert!((sum - a[i * n + j]).abs() < 1e-12);
                let dot: f64 = pairs[i].1.iter().zip(&pairs[j].1).map(|(a, b)| a * b).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
        }
        assert!(pairs.windows(2).all(|p| p[0].0 >= p[1].0));
    }
}
