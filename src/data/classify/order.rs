//! Which images an epoch of a classifier's training has, in which order.

use rand::seq::SliceRandom;

use crate::data::order::generator;

/// How an epoch is put together.
#[derive(Clone, Copy, Debug)]
pub struct ClassOrder {
    /// Shuffle with this seed; `None`: the data set's order.
    pub shuffle: Option<u64>,
    /// Views of each image side by side (repeated augmentation); 1: one.
    pub repeats: usize,
    /// With repeats: the epoch is the largest multiple of this that is not above the number of images.
    pub round: usize,
    /// Images of a step.
    pub batch_size: usize,
    /// Images that go through the network at once.
    pub micro_batch: usize,
    /// Leave out the last step if it would be smaller.
    pub drop_last: bool,
}

impl ClassOrder {
    /// Images of an epoch of a data set of `images`.
    pub fn images(&self, images: usize) -> usize {
        let selected = match self.repeats {
            0 | 1 => images,
            // A data set of fewer images than `round` is not rounded to nothing.
            _ if images < self.round => images,
            _ => images / self.round * self.round,
        };
        if self.drop_last {
            selected / self.batch_size * self.batch_size
        } else {
            selected
        }
    }

    /// Steps of an epoch.
    pub fn steps(&self, images: usize) -> usize {
        self.images(images).div_ceil(self.batch_size)
    }

    /// The images of each micro batch of `epoch`, step by step: no micro batch has images of two steps.
    pub fn plan(&self, epoch: usize, images: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..images).collect();
        if let Some(seed) = self.shuffle {
            order.shuffle(&mut generator(seed, epoch, u64::MAX));
        }
        let selected = repeated(&order, self.repeats, self.images(images));
        let steps = selected.chunks(self.batch_size.max(1));
        steps.flat_map(|step| step.chunks(self.micro_batch.max(1)).map(<[usize]>::to_vec)).collect()
    }

    /// Micro batches of an epoch.
    pub fn batches(&self, images: usize) -> usize {
        let images = self.images(images);
        let (whole, rest) = (images / self.batch_size, images % self.batch_size);
        whole * self.batch_size.div_ceil(self.micro_batch) + rest.div_ceil(self.micro_batch)
    }
}

/// Repeated augmentation (Hoffer et al., 2020; Berman et al., 2019) as DeiT's `RASampler` and timm's `RepeatAugSampler` select for all their processes
/// together: each image of the shuffled order so many times in a row, and of that the first `selected`.
pub fn repeated(order: &[usize], repeats: usize, selected: usize) -> Vec<usize> {
    order.iter().flat_map(|i| std::iter::repeat_n(*i, repeats.max(1))).take(selected).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: ClassOrder =
        ClassOrder { shuffle: Some(3), repeats: 3, round: 4, batch_size: 4, micro_batch: 2, drop_last: true };

    #[test]
    fn repeats_stand_side_by_side_and_the_epoch_keeps_its_length() {
        assert_eq!(repeated(&[7, 2, 5, 0], 3, 4), [7, 7, 7, 2]);
        assert_eq!(repeated(&[7, 2, 5, 0], 1, 4), [7, 2, 5, 0]);
        assert_eq!(ORDER.images(11), 8);
        // DeiT and timm select ⌊n / 256⌋·256 images.
        let published = ClassOrder { round: 256, batch_size: 1024, micro_batch: 128, ..ORDER };
        assert_eq!(published.images(1_281_167), 1_281_024);
        assert_eq!((published.steps(1_281_167), published.batches(1_281_167)), (1251, 10008));
    }

    #[test]
    fn an_epoch_is_the_shuffled_order_repeated() {
        let plan = ORDER.plan(5, 11);
        let once = ClassOrder { repeats: 1, drop_last: false, ..ORDER }.plan(5, 11).concat();
        assert_eq!(plan.concat(), repeated(&once, 3, 8));
        assert_eq!((plan.len(), plan.len()), (ORDER.batches(11), 4));
        assert_eq!(ORDER.steps(11), 2);
        let mut all = once.clone();
        all.sort_unstable();
        assert_eq!(all, (0..11).collect::<Vec<_>>());
        assert_ne!(ClassOrder { repeats: 1, drop_last: false, ..ORDER }.plan(6, 11).concat(), once);
    }

    #[test]
    fn no_micro_batch_has_images_of_two_steps() {
        let order = ClassOrder { repeats: 1, batch_size: 5, micro_batch: 2, drop_last: false, ..ORDER };
        let sizes: Vec<usize> = order.plan(0, 12).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 2, 1, 2, 2, 1, 2]);
        assert_eq!(sizes.len(), order.batches(12));
    }
}
