//! Which images make which batch of an epoch.

use rand::seq::SliceRandom;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// How an epoch is cut into batches.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Images of a batch; the last batches may have fewer.
    pub batch_size: usize,
    /// Shuffle with this seed; `None`: the data set's order.
    pub shuffle: Option<u64>,
    /// Wide and tall images do not share a batch (but for the leftovers), as in detectron2 and mmdetection: less padding.
    pub group_by_aspect: bool,
}

impl Order {
    /// Batches of one epoch of `images` images: every image comes once.
    pub fn batches(&self, images: usize) -> usize {
        images.div_ceil(self.batch_size)
    }

    /// The images of each batch of `epoch`, given (width, height) of all images.
    pub fn plan(&self, epoch: usize, sizes: &[(u32, u32)]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        if let Some(seed) = self.shuffle {
            order.shuffle(&mut generator(seed, epoch, u64::MAX));
        }
        let mut batches = Vec::with_capacity(self.batches(sizes.len()));
        let mut filling: [Vec<usize>; 2] = [Vec::new(), Vec::new()];
        for i in order {
            let tall = self.group_by_aspect && sizes[i].1 > sizes[i].0;
            let group = &mut filling[usize::from(tall)];
            group.push(i);
            if group.len() == self.batch_size {
                batches.push(std::mem::take(group));
            }
        }
        let [wide, tall] = filling;
        batches.extend([wide, tall].concat().chunks(self.batch_size).map(<[usize]>::to_vec));
        batches
    }
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

    fn sizes() -> Vec<(u32, u32)> {
        (0..23).map(|i| if i % 3 == 0 { (480, 640) } else { (640, 480) }).collect()
    }

    #[test]
    fn every_image_comes_once_in_the_promised_number_of_batches() {
        for batch_size in 1..9 {
            for group_by_aspect in [false, true] {
                let order = Order { batch_size, shuffle: Some(5), group_by_aspect };
                let plan = order.plan(2, &sizes());
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
        let order = Order { batch_size: 4, shuffle: Some(5), group_by_aspect: true };
        let sizes = sizes();
        let mixed = |batch: &Vec<usize>| {
            batch.iter().any(|&i| (sizes[i].1 > sizes[i].0) != (sizes[batch[0]].1 > sizes[batch[0]].0))
        };
        assert!(order.plan(0, &sizes).iter().filter(|batch| mixed(batch)).count() <= 1);
        let ungrouped = Order { group_by_aspect: false, ..order };
        assert!(ungrouped.plan(0, &sizes).iter().filter(|batch| mixed(batch)).count() > 1);
    }

    #[test]
    fn the_order_changes_with_the_seed_and_the_epoch_only() {
        let order = Order { batch_size: 4, shuffle: Some(5), group_by_aspect: true };
        assert_eq!(order.plan(1, &sizes()), order.plan(1, &sizes()));
        assert_ne!(order.plan(1, &sizes()), order.plan(2, &sizes()));
        assert_ne!(order.plan(1, &sizes()), Order { shuffle: Some(6), ..order }.plan(1, &sizes()));
        let plain = Order { shuffle: None, group_by_aspect: false, ..order };
        assert_eq!(plain.plan(1, &sizes()).concat(), (0..23).collect::<Vec<_>>());
    }
}
