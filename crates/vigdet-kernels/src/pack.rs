//! Copies features into the order in which the micro-kernels read them, normalised and with their positions beside
//! them.

use super::nearest::Points;

/// Norms below this are taken as this, as `torch.nn.functional.normalize` does.
const EPS: f32 = 1e-12;

impl Points<'_> {
    /// Columns of a packed row: channels, then position.
    pub(super) fn columns(&self) -> usize {
        self.channels + self.rank
    }

    /// Writes the columns of one row to index `at` of each group of `width`; gives the squared norm of the row's
    /// features after normalisation if that is not one because the row is (nearly) zero.
    fn read(&self, item: usize, row: usize, width: usize, at: usize, out: &mut [f32]) -> Option<f32> {
        let start = (item * self.rows + row) * self.channels;
        let features = &self.features[start..start + self.channels];
        let mut scale = 1.0;
        let mut short = None;
        if self.normalize {
            let norm = sum_of_squares(features).sqrt();
            scale = 1.0 / norm.max(EPS);
            if norm < EPS {
                short = Some((norm * scale).powi(2));
            }
            if norm.is_nan() {
                scale = f32::NAN; // max() prefers the number
            }
        }
        let (own, positions) = out.split_at_mut(self.channels * width);
        for (out, feature) in own.chunks_exact_mut(width).zip(features) {
            out[at] = feature * scale;
        }
        let position = &self.position[row * self.rank..][..self.rank];
        for (out, value) in positions.chunks_exact_mut(width).zip(position) {
            out[at] = value * self.position_scale;
        }
        short
    }

    /// Packs the rows from `first` on for the left side: groups of `group` rows, each `[columns, group]`. What is
    /// beyond the last row is zero.
    pub(super) fn pack_groups(&self, item: usize, first: usize, group: usize, out: &mut [f32]) {
        let size = self.columns() * group;
        for (g, out) in out.chunks_exact_mut(size).enumerate() {
            for r in 0..group {
                let row = first + g * group + r;
                if row < self.rows {
                    self.read(item, row, group, r, out);
                } else {
                    out.iter_mut().skip(r).step_by(group).for_each(|v| *v = 0.0);
                }
            }
        }
    }

    /// Packs `width` rows from `first` on as one panel of the right side, `[columns, width]`, and its `bias`,
    /// `[width]`.
    ///
    /// distance / 2 = |x|²/2 + |y|²/2 − x·y, where |x| does not matter and |y| is one, unless y is zero: then it is
    /// nearer by half its missing square. What is beyond the last row is zero with a bias of minus infinity.
    pub(super) fn pack_panel(&self, item: usize, first: usize, width: usize, out: &mut [f32], bias: &mut [f32]) {
        for (j, bias) in bias.iter_mut().enumerate() {
            if first + j < self.rows {
                let short = self.read(item, first + j, width, j, out);
                *bias = short.map_or(0.0, |square| 0.5 * (1.0 - square));
            } else {
                out.iter_mut().skip(j).step_by(width).for_each(|v| *v = 0.0);
                *bias = f32::NEG_INFINITY;
            }
        }
    }
}

/// Eight running sums, so that the additions need not wait for each other.
fn sum_of_squares(values: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let mut chunks = values.chunks_exact(8);
    for chunk in &mut chunks {
        for (s, v) in sums.iter_mut().zip(chunk) {
            *s += v * v;
        }
    }
    let rest: f32 = chunks.remainder().iter().map(|v| v * v).sum();
    sums.iter().sum::<f32>() + rest
}
