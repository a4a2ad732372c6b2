//! The edges of the graph: for every node its nearest candidates in feature space.
//!
//! Features are divided by their norm over channels; the distance of a node and a candidate is `2 − 2·x̂·ŷ − position`,
//! where the relative position may be absent. Three searches give the same answer, but for near-ties (1e-6), which
//! round differently:
//!
//! - [`Search::Fused`], the CPU kernel, with tiles of the product and selection in the tile;
//! - [`Search::Dense`], the whole distance matrix and top-k, as the published code does it;
//! - [`Search::Chunked`], tensor operations on some rows at a time, for any device at bounded memory: [`TensorSearch`].
//!
//! Equal distances are ordered by index in all of them. Indices carry no gradient, and none is recorded.

use super::relative::{native_matrix, RelativePosition};
use super::tensor_search::{Grids, TensorSearch};
use crate::config::{RelativeKind, Search};
use anyhow::{ensure, Result};
use tch::{no_grad, Device, Kind, Tensor};
use vigdet_kernels::{nearest_points, Isa, Points};

use crate::nn::crossings::{has_kernels, send_tensor};
use crate::nn::memory::{filled, rows, slice};
use crate::nn::precision::{full_precision, without_autocast};
use crate::nn::ranking::smallest;

/// What a layer asks of its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbours {
    /// How many each node gets, if there are as many candidates.
    pub k: usize,
    /// Of the `k · dilation` nearest, every `dilation`-th is kept.
    pub dilation: usize,
    /// How they are found.
    pub search: Search,
}

impl Neighbours {
    /// Neighbours and dilation among `candidates` (at least one): where there are too few, first the dilation shrinks,
    /// then `k`.
    pub fn among(&self, candidates: usize) -> (usize, usize) {
        let k = self.k.clamp(1, candidates.max(1));
        (k, self.dilation.min(candidates / k).max(1))
    }

    /// The nearest candidates of every node, nearest first: int64 `[B, N, k']` on the device of `x`.
    ///
    /// `x` is `[B, C, H, W]` with N = H·W nodes, `y` is `[B, C, Hy, Wy]` with the candidates, both in any memory format
    /// (on the CPU, channels_last float32 is read in place). `k'` is `k`, or the number of candidates if that is
    /// smaller. A distance that is NaN counts as the farthest.
    ///
    /// # Errors
    /// If the two do not have four dimensions, equal batches and equal channels, if there are no nodes or candidates,
    /// or if libtorch fails.
    pub fn find(&self, x: &Tensor, y: &Tensor, position: Option<&RelativePosition>) -> Result<Tensor> {
        let (b, c, h, w) = x.size4()?;
        let (by, cy, hy, wy) = y.size4()?;
        ensure!(
            (b, c) == (by, cy) && x.device() == y.device(),
            "nodes {:?} and candidates {:?} differ in batch, channels or device",
            x.size(),
            y.size()
        );
        ensure!(h * w > 0 && hy * wy > 0 && c > 0, "no nodes in {:?} or no candidates in {:?}", x.size(), y.size());
        let grids = [(h as usize, w as usize), (hy as usize, wy as usize)];
        // Neither gradients nor autocast: in bfloat16, near candidates would be equal by the dozen.
        no_grad(|| {
            without_autocast(x.device(), || match self.search {
                Search::Dense => self.dense(x, y, position, grids),
                _ if self.by_tensors(x.device()) => {
                    let (k, dilation) = self.among(grids[1].0 * grids[1].1);
                    TensorSearch { k, dilation, position, own: None }.find(x, y)
                }
                _ => self.fused(x, y, position, grids),
            })
        })
    }

    /// As [`Neighbours::find`], of images that end before the map does: `own` has for each the part of the nodes' grid
    /// and of the candidates' that is its own. Nodes beyond it point to the first candidate. `None` where that is no
    /// gain over finding them image by image, or where images have candidates for different numbers of neighbours.
    ///
    /// # Errors
    /// As [`Neighbours::find`].
    pub fn find_together(
        &self,
        x: &Tensor,
        y: &Tensor,
        position: Option<&RelativePosition>,
        own: &[Grids],
    ) -> Result<Option<Tensor>> {
        let mut numbers = own.iter().map(|[_, (height, width)]| self.among(height * width));
        let Some((k, dilation)) = numbers.next() else { return Ok(None) };
        if !self.by_tensors(x.device()) || numbers.any(|other| other != (k, dilation)) {
            return Ok(None);
        }
        let search = TensorSearch { k, dilation, position, own: Some(own) };
        no_grad(|| without_autocast(x.device(), || search.find(x, y))).map(Some)
    }

    fn fused(&self, x: &Tensor, y: &Tensor, position: Option<&RelativePosition>, grids: Grids) -> Result<Tensor> {
        let [n, m] = grids.map(|(height, width)| height * width);
        let (k, dilation) = self.among(m);
        let (x, y) = (rows(x)?, rows(y)?);
        let (b, _, c) = x.size3()?;
        let factors = position.map(|p| p.factors(grids[0], grids[1]));
        let (u, v, rank) = factors.as_ref().map_or((&[][..], &[][..], 0), |f| (&f.u[..], &f.v[..], f.rank));
        // score = x̂·ŷ + position / 2
        let side = |features, rows, position, position_scale| Points {
            features,
            rows,
            channels: c as usize,
            normalize: true,
            position,
            rank,
            position_scale,
        };
        // SAFETY: the slices are gone when the search is over, and until then this thread, which has the features,
        // writes to nothing but `out`.
        let (x, y) = unsafe { (slice(&x)?, slice(&y)?) };
        let (nodes, candidates) = (side(x, n, u, 0.5), side(y, m, v, 1.0));
        filled(&[b, n as i64, k as i64], |out: &mut [i64]| {
            nearest_points(Isa::best(), nodes, candidates, k, dilation, out);
        })
    }

    fn dense(&self, x: &Tensor, y: &Tensor, position: Option<&RelativePosition>, grids: Grids) -> Result<Tensor> {
        let (k, dilation) = self.among(grids[1].0 * grids[1].1);
        let (x, y) = (unit(&x.detach()), unit(&y.detach()));
        let square = |t: &Tensor| (t * t).sum_dim_intlist([1i64].as_slice(), false, None::<Kind>);
        let mut distance = x.transpose(1, 2).f_matmul(&y)?.f_mul_scalar_(-2.0)?;
        distance += square(&x).unsqueeze(2);
        distance += square(&y).unsqueeze(1);
        if let Some(position) = position {
            distance -= send_tensor(&whole(position, grids)?, x.device()).to_kind(x.kind());
        }
        let distance = distance.to_kind(Kind::Float).f_nan_to_num(f64::INFINITY, None, None)?;
        let (_, _, candidates) = distance.size3()?;
        let want = ((k - 1) * dilation + 1) as i64;
        let nearest = smallest(&distance, &Tensor::arange(candidates, (Kind::Int64, x.device())), want)?;
        Ok(nearest.slice(2, 0, want, dilation as i64).contiguous())
    }

    fn by_tensors(&self, device: Device) -> bool {
        match self.search {
            Search::Dense => false,
            Search::Chunked => true,
            Search::Fused => !has_kernels(device),
        }
    }
}

/// `[B, C, H, W]` to `[B, C, H·W]`, every column of norm one, in at least float32.
fn unit(maps: &Tensor) -> Tensor {
    let x = full_precision(maps).flatten(2, -1);
    let norm = x.norm_scalaropt_dim(2, [1i64].as_slice(), true).clamp_min(1e-12);
    x / norm
}

/// The whole relative-position matrix, `[N, M]` on the CPU.
fn whole(position: &RelativePosition, grids: Grids) -> Result<Tensor> {
    let [n, m] = grids.map(|(height, width)| (height * width) as i64);
    if position.kind == RelativeKind::Grid {
        return Ok(Tensor::from_slice(&position.grid_matrix(grids[0], grids[1])).view([n, m]));
    }
    let columns = position.native_candidates() as i64;
    let native = Tensor::from_slice(&native_matrix(position)?).view([-1, columns]);
    if native.size() == [n, m] {
        return Ok(native);
    }
    Ok(native.view([1, 1, -1, columns]).f_upsample_bicubic2d([n, m], false, None, None)?.view([n, m]))
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const ALL: [Search; 3] = [Search::Fused, Search::Dense, Search::Chunked];

    fn noise(shape: &[i64], seed: i64) -> Tensor {
        // A generator of its own: the global one is shared by all tests.
        let count: i64 = shape.iter().product();
        let index = Tensor::arange(count, (Kind::Double, Device::Cpu)) + seed * 1_000_003;
        let wave = (index * 12.9898).sin() * 43758.5453;
        (&wave - wave.floor() - 0.5).to_kind(Kind::Float).view(shape)
    }

    fn pool(x: &Tensor, reduce: i64) -> Tensor {
        let (_, _, h, w) = x.size4().unwrap();
        let size = [reduce.min(h), reduce.min(w)];
        x.avg_pool2d(size, size, [0, 0], false, true, None)
    }

    /// The searches agree with distances in float64: what each gives is as near as the nearest for it. Fused and dense
    /// give the same neighbours, but for ties within 1e-6; gives the fraction of neighbours that are the same.
    fn check(x: &Tensor, y: &Tensor, k: usize, dilation: usize, position: Option<&RelativePosition>) -> f64 {
        let (_, _, h, w) = x.size4().unwrap();
        let (_, _, hy, wy) = y.size4().unwrap();
        let grids = [(h as usize, w as usize), (hy as usize, wy as usize)];
        let (a, b) = (unit(&x.to_kind(Kind::Double)), unit(&y.to_kind(Kind::Double)));
        let squares = |t: &Tensor| (t * t).sum_dim_intlist([1i64].as_slice(), false, None::<Kind>);
        let mut exact = squares(&a).unsqueeze(2) - a.transpose(1, 2).matmul(&b) * 2 + squares(&b).unsqueeze(1);
        if let Some(position) = position {
            exact -= whole(position, grids).unwrap();
        }
        let found: Vec<Tensor> =
            ALL.iter().map(|&search| Neighbours { k, dilation, search }.find(x, y, position).unwrap()).collect();
        let (k, dilation) = Neighbours { k, dilation, search: Search::Dense }.among(grids[1].0 * grids[1].1);
        let best = exact.sort(-1, false).0.slice(2, 0, ((k - 1) * dilation + 1) as i64, dilation as i64);
        for (index, search) in found.iter().zip(ALL) {
            assert_eq!(index.size(), [x.size()[0], h * w, k as i64], "{search:?}");
            assert_eq!(index.kind(), Kind::Int64);
            let (sorted, _) = index.sort(-1, false);
            if k > 1 {
                let apart = sorted.slice(2, 1, k as i64, 1) - sorted.slice(2, 0, k as i64 - 1, 1);
                assert!(apart.min().int64_value(&[]) > 0, "{search:?} repeats a neighbour");
            }
            let gap = (exact.gather(2, index, false) - &best).abs().max().double_value(&[]);
            assert!(gap < 4e-6, "{search:?}: neighbours farther than the nearest by {gap:e}");
        }
        let at = |found: &Tensor| exact.gather(2, found, false);
        let tie = (at(&found[0]) - at(&found[1])).abs().max().double_value(&[]);
        assert!(tie < 1e-6, "fused and dense differ where distances differ by {tie:e}");
        found[0].eq_tensor(&found[1]).to_kind(Kind::Double).mean(None::<Kind>).double_value(&[])
    }

    #[test]
    fn fused_dense_and_chunked_agree_on_random_features() {
        for (b, c, h, w, reduce, k, dilation) in [
            (2, 48, 16, 20, 4, 9, 1),  // 20 candidates
            (1, 33, 30, 31, 1, 9, 3),  // as many as nodes, no multiple of a tile
            (1, 64, 14, 14, 1, 18, 4), // k·d = 72 of 196
            (3, 16, 7, 7, 1, 9, 5),    // 45 of 49
            (2, 16, 3, 3, 1, 9, 5),    // k = candidates
            (2, 16, 2, 2, 1, 9, 5),    // fewer candidates than k
            (1, 16, 1, 1, 4, 9, 2),    // one
            (1, 20, 40, 50, 2, 9, 2),
        ] {
            let x = noise(&[b, c, h, w], 1);
            let y = pool(&x, reduce);
            let same = check(&x, &y, k, dilation, None);
            assert!(same > 0.999, "{c} {h}×{w}: {same}");
            for (grid, kind) in
                [(8, RelativeKind::Published), (h.max(4), RelativeKind::Published), (8, RelativeKind::Grid)]
            {
                let position = RelativePosition::new(c as usize, grid as usize, reduce as usize, kind).unwrap();
                let same = check(&x, &y, k, dilation, Some(&position));
                assert!(same > 0.999, "{c} {h}×{w} {position:?}: {same}");
            }
        }
    }

    #[test]
    fn they_agree_on_smooth_features() {
        let (c, h, w) = (24, 36, 44);
        let axis = |n: i64| Tensor::arange(n, (Kind::Float, Device::Cpu)) / n as f64;
        let phase = axis(c).view([1, c, 1, 1]) * 6.0;
        let x = (axis(h).view([1, 1, h, 1]) * 5.0 + axis(w).view([1, 1, 1, w]) * 3.0 * &phase + &phase).sin();
        for reduce in [1, 4] {
            let y = pool(&x, reduce);
            for (k, dilation) in [(9, 1), (9, 4), (60, 1)] {
                let same = check(&x, &y, k, dilation, None);
                assert!(same > 0.999, "{reduce} {k} {dilation}: {same}");
                let position = RelativePosition::new(c as usize, 16, reduce as usize, RelativeKind::Published).unwrap();
                let same = check(&x, &y, k, dilation, Some(&position));
                assert!(same > 0.999, "{reduce} {k} {dilation} with positions: {same}");
            }
        }
    }

    #[test]
    fn constant_and_duplicated_features_are_ordered_by_index() {
        let x = Tensor::ones([1, 12, 9, 9], (Kind::Float, Device::Cpu));
        check(&x, &x, 9, 2, None);
        // Small whole numbers of norm one, whose products have no rounding: equal distances are equal in every search.
        let unit = Tensor::eye(6, (Kind::Float, Device::Cpu));
        let row = Tensor::arange(30, (Kind::Int64, Device::Cpu)).remainder(6);
        let x = unit.index_select(0, &row).transpose(0, 1).contiguous().view([1, 6, 5, 6]);
        for search in ALL {
            let found = Neighbours { k: 7, dilation: 1, search }.find(&x, &x, None).unwrap();
            for i in 0..30i64 {
                let got = Vec::<i64>::try_from(found.get(0).get(i)).unwrap();
                let same = i % 6;
                let mut expected: Vec<i64> = (0..5).map(|j| same + 6 * j).collect();
                expected.extend((0..30).filter(|j| j % 6 != same).take(2));
                assert_eq!(got, expected, "{search:?} node {i}");
            }
        }
        let zero = Tensor::zeros([2, 6, 3, 3], (Kind::Float, Device::Cpu));
        for search in ALL {
            let found = Neighbours { k: 4, dilation: 2, search }.find(&zero, &zero, None).unwrap();
            assert_eq!(Vec::<i64>::try_from(found.get(1).get(8)).unwrap(), [0, 2, 4, 6], "{search:?}");
        }
    }

    #[test]
    fn a_zero_feature_is_nearer_than_an_obtuse_one() {
        let x = noise(&[1, 5, 6, 6], 3);
        let y = Tensor::cat(&[&x.narrow(2, 0, 4), &x.zeros_like().narrow(2, 0, 1)], 2);
        check(&x, &y, 12, 1, None);
    }

    #[test]
    fn nan_is_last_in_every_search() {
        let x = noise(&[1, 8, 5, 5], 4);
        let broken = x.copy();
        let _ = broken.narrow(2, 2, 1).narrow(3, 1, 1).fill_(f64::NAN);
        let answers: Vec<Tensor> = ALL
            .iter()
            .map(|&search| Neighbours { k: 25, dilation: 1, search }.find(&broken, &broken, None).unwrap())
            .collect();
        for (found, search) in answers.iter().zip(ALL) {
            let found = found.get(0);
            assert_eq!(found.get(3).int64_value(&[24]), 11, "{search:?}");
            assert_eq!(Vec::<i64>::try_from(found.get(11)).unwrap(), (0..25).collect::<Vec<_>>(), "{search:?}");
        }
    }

    /// Features whose products have no rounding, most of them several times: whole numbers in four of the channels,
    /// whose squares add up to 16, so that a length of one takes nothing but a division by four.
    fn duplicates(b: i64, c: i64, h: i64, w: i64, seed: i64) -> Tensor {
        let rows = [[4, 0, 0, 0], [2, 2, 2, 2], [-2, 2, 2, -2], [0, 0, -4, 0], [2, -2, 2, 2], [0, 4, 0, 0]];
        let rows = Tensor::from_slice(&rows.concat()).view([6, 4]).to_kind(Kind::Float);
        let drawn = ((noise(&[b * h * w], seed) + 0.5) * 6.0).to_kind(Kind::Int64).clamp(0, 5);
        let rows = rows.index_select(0, &drawn).view([b, h, w, 4]);
        rows.constant_pad_nd([0, c - 4]).permute([0, 3, 1, 2])
    }

    #[test]
    fn tensor_operations_find_what_the_kernel_finds_ties_and_numbers_that_are_none_too() {
        let mut generator = ChaCha8Rng::seed_from_u64(5);
        for case in 0..60 {
            let mut draw = |least: i64, most: i64| generator.random_range(least..=most);
            let (b, c) = (draw(1, 3), draw(4, 12));
            let (h, w) = (draw(1, 24), draw(1, 24));
            let (k, dilation) = (draw(1, 12) as usize, draw(1, 4) as usize);
            let reduce = draw(1, 3);
            let x = duplicates(b, c, h, w, case);
            let y = duplicates(b, c, (h / reduce).max(1), (w / reduce).max(1), case + 1000);
            if case % 3 == 0 {
                // A node and a candidate of every image.
                let _ = x.narrow(2, h / 2, 1).narrow(3, w / 2, 1).fill_(f64::NAN);
                let _ = y.narrow(2, 0, 1).narrow(3, y.size()[3] / 3, 1).fill_(f64::NAN);
            }
            let [kernel, tensors] = [Search::Fused, Search::Chunked]
                .map(|search| Neighbours { k, dilation, search }.find(&x, &y, None).unwrap());
            assert_eq!(tensors, kernel, "{case}: {b}×{c}×{h}×{w}, {k} of every {dilation}, pooled by {reduce}");
        }
    }

    #[test]
    fn images_that_end_before_their_batch_are_searched_together_as_alone() {
        let (b, c, h, w) = (3, 16, 20, 28);
        let x = noise(&[b, c, h, w], 8);
        let y = pool(&x, 2);
        // Features beyond an image that are nearer than all that is its own would be seen.
        let own = [[(20, 28), (10, 14)], [(12, 28), (6, 14)], [(20, 9), (10, 4)]];
        let positions = [RelativeKind::Published, RelativeKind::Grid]
            .map(|kind| RelativePosition::new(c as usize, 14, 2, kind).unwrap());
        let lost = x.copy();
        let _ = lost.narrow(2, 3, 1).narrow(3, 5, 1).fill_(f64::NAN);
        for (x, position) in [(&x, None), (&x, Some(&positions[0])), (&x, Some(&positions[1])), (&lost, None)] {
            let search = Neighbours { k: 5, dilation: 3, search: Search::Chunked };
            let together = search.find_together(x, &y, position, &own).unwrap().expect("as many neighbours for each");
            assert_eq!(together.size(), [b, h * w, 5]);
            for (i, own) in own.iter().enumerate() {
                let [(oh, ow), (ch, cw)] = own.map(|(h, w)| (h as i64, w as i64));
                let part = |t: &Tensor, h: i64, w: i64| t.narrow(0, i as i64, 1).narrow(2, 0, h).narrow(3, 0, w);
                let alone = search.find(&part(x, oh, ow), &part(&y, ch, cw), position).unwrap().view([oh, ow, 5]);
                let alone = &alone + alone.divide_scalar_mode(cw, "floor") * (14 - cw);
                let found = together.get(i as i64).view([h, w, 5]);
                assert_eq!(found.narrow(0, 0, oh).narrow(1, 0, ow), alone, "image {i} with {position:?}");
                let beyond = found.sum(Kind::Int64) - alone.sum(Kind::Int64);
                assert_eq!(beyond.int64_value(&[]), 0, "nodes beyond image {i} point elsewhere");
            }
        }
        let few = [[(20, 28), (10, 14)], [(2, 2), (1, 1)], [(20, 28), (10, 14)]];
        for (search, own) in [(Search::Fused, &own), (Search::Dense, &own), (Search::Chunked, &few)] {
            let search = Neighbours { k: 5, dilation: 3, search };
            assert!(search.find_together(&x, &y, None, own).unwrap().is_none(), "{search:?}");
        }
    }

    #[test]
    fn formats_kinds_and_gradients_do_not_matter() {
        let x = noise(&[2, 10, 6, 7], 5);
        let y = pool(&x, 2);
        for search in ALL {
            let find = |x: &Tensor, y: &Tensor| Neighbours { k: 3, dilation: 2, search }.find(x, y, None).unwrap();
            let expected = find(&x, &y);
            let last = |t: &Tensor| t.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
            assert_eq!(find(&last(&x), &last(&y)), expected, "{search:?}");
            assert_eq!(find(&x.to_kind(Kind::Double), &y.to_kind(Kind::Double)), expected, "{search:?}");
            let recorded = find(&x.copy().set_requires_grad(true), &y);
            assert!(recorded == expected && !recorded.requires_grad(), "{search:?}");
        }
    }

    #[test]
    fn few_candidates_shrink_dilation_then_k() {
        let n = Neighbours { k: 9, dilation: 5, search: Search::Fused };
        assert_eq!(
            [n.among(49), n.among(40), n.among(9), n.among(4), n.among(1)],
            [(9, 5), (9, 4), (9, 1), (4, 1), (1, 1)]
        );
    }

    #[test]
    fn mismatched_maps_are_refused() {
        let n = Neighbours { k: 2, dilation: 1, search: Search::Fused };
        let x = noise(&[1, 4, 3, 3], 6);
        assert!(n.find(&x, &noise(&[1, 5, 3, 3], 6), None).is_err());
        assert!(n.find(&x, &noise(&[2, 4, 3, 3], 6), None).is_err());
        assert!(n.find(&x, &noise(&[1, 4, 0, 3], 6), None).is_err());
    }
}
