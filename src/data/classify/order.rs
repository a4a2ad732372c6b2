//! Which images an epoch of a classifier's training has, in which order.

use rand::seq::SliceRandom;

use crate::data::order::generator;

/// How an epoch is put together.
#[derive(Clone, Copy, Debug)]
pub struct ClassOrder {
    /// Shuffle with this seed; `None`: the data set's order.
    pub shuffle: Option<u64>,
    /// Views of each image (repeated augmentation), which [`ClassOrder::plan`] deals to different micro batches; 1: one.
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

    /// The images of each micro batch of `epoch`, step by step: no micro batch has images of two steps. Each is (place, number): its place in the
    /// epoch, which does not depend on the micro batches, and its number in the data set.
    pub fn plan(&self, epoch: usize, images: usize) -> Vec<Vec<(usize, usize)>> {
        let mut order: Vec<usize> = (0..images).collect();
        if let Some(seed) = self.shuffle {
            order.shuffle(&mut generator(seed, epoch, u64::MAX));
        }
        let selected = repeated(&order, self.repeats, self.images(images));
        let placed: Vec<(usize, usize)> = selected.into_iter().enumerate().collect();
        micro_batches(&placed, self.batch_size, self.micro_batch)
    }

    /// Images of the smallest micro batch of an epoch.
    pub fn smallest(&self, images: usize) -> usize {
        let images = self.images(images);
        let steps = [self.batch_size.min(images), images % self.batch_size];
        let of_step = |step: usize| step / step.div_ceil(self.micro_batch);
        steps.into_iter().filter(|&step| step > 0).map(of_step).min().unwrap_or(0)
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

/// Deals each step of `batch_size` images to as many micro batches as it needs, one image to each in turn, as DeiT's `RASampler` deals a step to its
/// processes: the views of an image go to different micro batches, and the sizes of these differ by one at most.
pub fn micro_batches<T: Copy>(selected: &[T], batch_size: usize, micro_batch: usize) -> Vec<Vec<T>> {
    let deal = |step: &[T]| -> Vec<Vec<T>> {
        let count = step.len().div_ceil(micro_batch.max(1));
        (0..count).map(|m| step.iter().skip(m).step_by(count).copied().collect()).collect()
    };
    selected.chunks(batch_size.max(1)).flat_map(deal).collect()
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
    fn an_epoch_is_the_shuffled_order_repeated_and_dealt() {
        let plan = ORDER.plan(5, 11);
        let in_order = |order: ClassOrder, epoch: usize| -> Vec<usize> {
            let mut placed = order.plan(epoch, 11).concat();
            placed.sort_unstable();
            assert!(placed.iter().enumerate().all(|(i, (place, _))| i == *place));
            placed.into_iter().map(|(_, image)| image).collect()
        };
        let single = ClassOrder { repeats: 1, drop_last: false, ..ORDER };
        let once = in_order(single, 5);
        assert_eq!(in_order(ORDER, 5), repeated(&once, 3, 8));
        // Of the first step, places 0 and 2, then 1 and 3.
        assert_eq!(plan[..2], [[(0, once[0]), (2, once[0])], [(1, once[0]), (3, once[1])]]);
        assert_eq!((plan.len(), plan.len()), (ORDER.batches(11), 4));
        assert_eq!(ORDER.steps(11), 2);
        let mut all = once.clone();
        all.sort_unstable();
        assert_eq!(all, (0..11).collect::<Vec<_>>());
        assert_ne!(in_order(single, 6), once);
    }

    #[test]
    fn views_of_an_image_are_dealt_to_different_micro_batches() {
        let selected = repeated(&[7, 2, 5, 0], 3, 9);
        assert_eq!(micro_batches(&selected, 9, 3), [[7, 2, 5], [7, 2, 5], [7, 2, 5]]);
        assert_eq!(micro_batches(&[1, 2, 3, 4, 5, 6, 7], 5, 3), [vec![1, 3, 5], vec![2, 4], vec![6, 7]]);
    }

    #[test]
    fn the_smallest_micro_batch_is_that_of_the_plan() {
        for (batch_size, micro_batch, drop_last) in
            [(129, 128, true), (8, 4, false), (5, 2, false), (4, 4, false), (3, 3, true), (6, 1, true), (40, 7, false)]
        {
            let order = ClassOrder { repeats: 1, batch_size, micro_batch, drop_last, ..ORDER };
            for images in [12, 13, 17, 258] {
                let smallest = order.plan(0, images).iter().map(Vec::len).min().unwrap_or(0);
                assert_eq!(order.smallest(images), smallest, "{order:?} {images}");
            }
        }
        let even = ClassOrder { repeats: 1, batch_size: 129, micro_batch: 128, ..ORDER };
        assert_eq!(even.smallest(129), 64);
    }

    #[test]
    fn no_micro_batch_has_images_of_two_steps() {
        let order = ClassOrder { repeats: 1, batch_size: 5, micro_batch: 2, drop_last: false, ..ORDER };
        let sizes: Vec<usize> = order.plan(0, 12).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 2, 1, 2, 2, 1, 2]);
        assert_eq!(sizes.len(), order.batches(12));
    }
}
