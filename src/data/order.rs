//! Which images make which batch of an epoch.

use rand::seq::SliceRandom;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// How an epoch is put together.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Images of a step.
    pub batch_size: usize,
    /// Images of a batch: of what goes through the network at once.
    pub micro_batch: usize,
    /// Shuffle with this seed; `None`: the data set's order.
    pub shuffle: Option<u64>,
    /// Which images of an epoch share a batch.
    pub grouping: Grouping,
    /// Views of each image (repeated augmentation), which [`Grouping::Dealt`] puts into different batches; 1: one.
    pub repeats: usize,
    /// With repeats: the epoch is the largest multiple of this that is not above the number of images.
    pub round: usize,
    /// Leave out the last step if it would be smaller.
    pub drop_last: bool,
}

/// Which images of an epoch share a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// Those that follow each other.
    InOrder,
    /// Wide and tall images do not (but for the leftovers), as in detectron2 and mmdetection: less padding.
    ByAspect,
    /// Each step is dealt to its batches, one image to each in turn, as DeiT's `RASampler` deals a step to its
    /// processes: the views of an image go to different batches, whose sizes differ by one at most. No batch has
    /// images of two steps.
    Dealt,
}

/// An image of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its number in the epoch, which does not depend on the batches.
    pub at: usize,
    /// Its number in the data set.
    pub image: usize,
}

impl Order {
    /// Every image once, in batches of `batch_size`: one batch is one step.
    pub fn once(batch_size: usize, shuffle: Option<u64>, grouping: Grouping) -> Self {
        let micro_batch = batch_size;
        Self { batch_size, micro_batch, shuffle, grouping, repeats: 1, round: 1, drop_last: false }
    }

    /// Images of an epoch of a data set of `images`.
    pub fn images(&self, images: usize) -> usize {
        let selected = match self.repeats {
            0 | 1 => images,
            // A data set of fewer images than `round` is not rounded to nothing.
            _ if images < self.round => images,
            _ => images / self.round * self.round,
        };
        match self.drop_last {
            true => selected / self.batch_size * self.batch_size,
            false => selected,
        }
    }

    /// Steps of an epoch.
    pub fn steps(&self, images: usize) -> usize {
        self.images(images).div_ceil(self.batch_size)
    }

    /// Batches of an epoch.
    pub fn batches(&self, images: usize) -> usize {
        let images = self.images(images);
        match self.grouping {
            Grouping::Dealt => {
                let (whole, rest) = (images / self.batch_size, images % self.batch_size);
                whole * self.batch_size.div_ceil(self.micro_batch) + rest.div_ceil(self.micro_batch)
            }
            _ => images.div_ceil(self.micro_batch),
        }
    }

    /// Images of the smallest batch of an epoch whose steps are dealt.
    pub fn smallest(&self, images: usize) -> usize {
        let images = self.images(images);
        let steps = [self.batch_size.min(images), images % self.batch_size];
        let of_step = |step: usize| step / step.div_ceil(self.micro_batch);
        steps.into_iter().filter(|&step| step > 0).map(of_step).min().unwrap_or(0)
    }

    /// The images of each batch of `epoch`, step by step, for a data set of `images`, of which some are `tall`.
    pub fn plan(&self, epoch: usize, images: usize, tall: impl Fn(usize) -> bool) -> Vec<Vec<Slot>> {
        let mut order: Vec<usize> = (0..images).collect();
        if let Some(seed) = self.shuffle {
            order.shuffle(&mut generator(seed, epoch, u64::MAX));
        }
        let selected = repeated(&order, self.repeats, self.images(images));
        let slots: Vec<Slot> = selected.into_iter().enumerate().map(|(at, image)| Slot { at, image }).collect();
        let chunks = |slots: &[Slot]| slots.chunks(self.micro_batch).map(<[Slot]>::to_vec).collect();
        match self.grouping {
            Grouping::InOrder => chunks(&slots),
            Grouping::Dealt => dealt(&slots, self.batch_size, self.micro_batch),
            Grouping::ByAspect => {
                let mut batches = Vec::with_capacity(self.batches(images));
                let mut filling: [Vec<Slot>; 2] = Default::default();
                for slot in slots {
                    let group = &mut filling[usize::from(tall(slot.image))];
                    group.push(slot);
                    if group.len() == self.micro_batch {
                        batches.push(std::mem::take(group));
                    }
                }
                let rest: Vec<Vec<Slot>> = chunks(&filling.concat());
                batches.extend(rest);
                batches
            }
        }
    }
}

/// Repeated augmentation (Hoffer et al., 2020; Berman et al., 2019) as DeiT's `RASampler` and timm's
/// `RepeatAugSampler` select for all their processes together: each image of the shuffled order so many times in a
/// row, and of that the first `selected`.
pub fn repeated(order: &[usize], repeats: usize, selected: usize) -> Vec<usize> {
    order.iter().flat_map(|i| std::iter::repeat_n(*i, repeats.max(1))).take(selected).collect()
}

/// Deals each step of `batch_size` to as many batches as it needs (see [`Grouping::Dealt`]).
pub fn dealt<T: Copy>(selected: &[T], batch_size: usize, micro_batch: usize) -> Vec<Vec<T>> {
    let deal = |step: &[T]| -> Vec<Vec<T>> {
        let count = step.len().div_ceil(micro_batch.max(1));
        (0..count).map(|m| step.iter().skip(m).step_by(count).copied().collect()).collect()
    };
    selected.chunks(batch_size.max(1)).flat_map(deal).collect()
}

/// The generator of one image in one epoch: what is drawn for an image depends on nothing else.
pub fn generator(seed: u64, epoch: usize, image: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(epoch as u64).to_le_bytes());
    key[16..24].copy_from_slice(&image.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tall(i: usize) -> bool {
        i.is_multiple_of(3)
    }

    /// Images of each batch of a data set of 23.
    fn images(order: &Order, epoch: usize) -> Vec<Vec<usize>> {
        let plan = order.plan(epoch, 23, tall);
        plan.into_iter().map(|batch| batch.iter().map(|slot| slot.image).collect()).collect()
    }

    #[test]
    fn every_image_comes_once_in_the_promised_number_of_batches() {
        for batch_size in 1..9 {
            for grouping in [Grouping::InOrder, Grouping::ByAspect] {
                let order = Order::once(batch_size, Some(5), grouping);
                let plan = images(&order, 2);
                assert_eq!(plan.len(), order.batches(23));
                assert!(plan.iter().all(|batch| !batch.is_empty() && batch.len() <= batch_size));
                let mut all = plan.concat();
                all.sort_unstable();
                assert_eq!(all, (0..23).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn wide_and_tall_images_share_at_most_one_batch() {
        let order = Order::once(4, Some(5), Grouping::ByAspect);
        let mixed = |batch: &&Vec<usize>| batch.iter().any(|&i| tall(i) != tall(batch[0]));
        assert!(images(&order, 0).iter().filter(mixed).count() <= 1);
        let ungrouped = Order { grouping: Grouping::InOrder, ..order };
        assert!(images(&ungrouped, 0).iter().filter(mixed).count() > 1);
    }

    #[test]
    fn the_order_changes_with_the_seed_and_the_epoch_only() {
        let order = Order::once(4, Some(5), Grouping::ByAspect);
        assert_eq!(images(&order, 1), images(&order, 1));
        assert_ne!(images(&order, 1), images(&order, 2));
        assert_ne!(images(&order, 1), images(&Order { shuffle: Some(6), ..order }, 1));
        let plain = Order { shuffle: None, grouping: Grouping::InOrder, ..order };
        assert_eq!(images(&plain, 1).concat(), (0..23).collect::<Vec<_>>());
    }

    const ORDER: Order = Order {
        shuffle: Some(3),
        repeats: 3,
        round: 4,
        batch_size: 4,
        micro_batch: 2,
        drop_last: true,
        grouping: Grouping::Dealt,
    };

    /// (number in the epoch, image) of each batch.
    fn plan(order: &Order, epoch: usize, images: usize) -> Vec<Vec<(usize, usize)>> {
        let plan = order.plan(epoch, images, |_| false);
        plan.into_iter().map(|batch| batch.iter().map(|slot| (slot.at, slot.image)).collect()).collect()
    }

    #[test]
    fn repeats_stand_side_by_side_and_the_epoch_keeps_its_length() {
        assert_eq!(repeated(&[7, 2, 5, 0], 3, 4), [7, 7, 7, 2]);
        assert_eq!(repeated(&[7, 2, 5, 0], 1, 4), [7, 2, 5, 0]);
        assert_eq!(ORDER.images(11), 8);
        assert_eq!(Order { drop_last: false, ..ORDER }.images(11), 8);
        // DeiT and timm select ⌊n / 256⌋·256 images.
        let published = Order { round: 256, batch_size: 1024, micro_batch: 128, ..ORDER };
        assert_eq!(published.images(1_281_167), 1_281_024);
        assert_eq!((published.steps(1_281_167), published.batches(1_281_167)), (1251, 10008));
    }

    #[test]
    fn an_epoch_is_the_shuffled_order_repeated_and_dealt() {
        let dealt = plan(&ORDER, 5, 11);
        let in_order = |order: Order, epoch: usize| -> Vec<usize> {
            let mut slots = plan(&order, epoch, 11).concat();
            slots.sort_unstable();
            assert!(slots.iter().enumerate().all(|(i, (at, _))| i == *at));
            slots.into_iter().map(|(_, image)| image).collect()
        };
        let single = Order { repeats: 1, drop_last: false, ..ORDER };
        let once = in_order(single, 5);
        assert_eq!(in_order(ORDER, 5), repeated(&once, 3, 8));
        // Of the first step, numbers 0 and 2, then 1 and 3.
        assert_eq!(dealt[..2], [[(0, once[0]), (2, once[0])], [(1, once[0]), (3, once[1])]]);
        assert_eq!((dealt.len(), dealt.len()), (ORDER.batches(11), 4));
        assert_eq!(ORDER.steps(11), 2);
        let mut all = once.clone();
        all.sort_unstable();
        assert_eq!(all, (0..11).collect::<Vec<_>>());
        assert_ne!(in_order(single, 6), once);
    }

    #[test]
    fn views_of_an_image_are_dealt_to_different_batches() {
        let selected = repeated(&[7, 2, 5, 0], 3, 9);
        assert_eq!(dealt(&selected, 9, 3), [[7, 2, 5], [7, 2, 5], [7, 2, 5]]);
        assert_eq!(dealt(&[1, 2, 3, 4, 5, 6, 7], 5, 3), [vec![1, 3, 5], vec![2, 4], vec![6, 7]]);
    }

    #[test]
    fn the_smallest_micro_batch_is_that_of_the_plan() {
        for (batch_size, micro_batch, drop_last) in
            [(129, 128, true), (8, 4, false), (5, 2, false), (4, 4, false), (3, 3, true), (6, 1, true), (40, 7, false)]
        {
            let order = Order { repeats: 1, batch_size, micro_batch, drop_last, ..ORDER };
            for images in [12, 13, 17, 258] {
                let smallest = plan(&order, 0, images).iter().map(Vec::len).min().unwrap_or(0);
                assert_eq!(order.smallest(images), smallest, "{order:?} {images}");
            }
        }
        let even = Order { repeats: 1, batch_size: 129, micro_batch: 128, ..ORDER };
        assert_eq!(even.smallest(129), 64);
    }

    #[test]
    fn no_micro_batch_has_images_of_two_steps() {
        let order = Order { repeats: 1, batch_size: 5, micro_batch: 2, drop_last: false, ..ORDER };
        let sizes: Vec<usize> = plan(&order, 0, 12).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 2, 1, 2, 2, 1, 2]);
        assert_eq!(sizes.len(), order.batches(12));
    }
}
