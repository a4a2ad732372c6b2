//! Where the images of a batch end, so that what an image gives does not depend on who shares its batch.
//!
//! Images are padded with zeros to the largest of their batch. A convolution looks over the edge, and a graph looks
//! everywhere: what they see there must be what they would see if the image were alone.

use tch::{Kind, Tensor};

/// Where the images of a batch end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extents {
    /// (height, width) of the batch, in pixels.
    batch: (i64, i64),
    /// (height, width) of each image, in pixels, padded as if it were alone.
    images: Vec<(i64, i64)>,
}

/// Side of a map after so many halvings, each rounded up, as convolutions of stride 2 do it.
fn halved(side: i64, times: u32) -> i64 {
    (side + (1 << times) - 1) >> times
}

impl Extents {
    /// `images` are (height, width) in pixels, each padded as if it were alone, in a batch of `batch` pixels. `None`:
    /// all fill it.
    pub fn new(batch: (i64, i64), images: &[(i64, i64)]) -> Option<Self> {
        let smaller = images.iter().any(|image| *image != batch);
        smaller.then(|| Self { batch, images: images.to_vec() })
    }

    /// (height, width) of each image on a map of `map` (height, width), which is the batch halved a number of times.
    pub fn on(&self, map: (i64, i64)) -> Vec<(i64, i64)> {
        let times = |batch: i64, map: i64| (0..32).find(|&times| halved(batch, times) <= map).unwrap_or(0);
        let (down, across) = (times(self.batch.0, map.0), times(self.batch.1, map.1));
        // A map of one row or column has forgotten how often it was halved; the other side tells.
        let times = down.max(across);
        self.images.iter().map(|&(height, width)| (halved(height, times), halved(width, times))).collect()
    }

    /// Maps `[B, C, H, W]` with zeros beyond each image.
    pub fn clear(&self, maps: &Tensor) -> Tensor {
        maps * self.mask(maps).to_kind(maps.kind())
    }

    /// Ones where these maps `[B, C, H, W]` show an image, zeros beyond: `[B, 1, H, W]`.
    pub fn mask(&self, maps: &Tensor) -> Tensor {
        let size = maps.size();
        let (height, width) = (size[2], size[3]);
        let mask = Tensor::zeros([size[0], 1, height, width], (Kind::Float, maps.device()));
        for (i, (h, w)) in self.on((height, width)).into_iter().enumerate() {
            let _ = mask.get(i as i64).narrow(1, 0, h.min(height)).narrow(2, 0, w.min(width)).fill_(1.0);
        }
        mask
    }
}

/// [`Extents::clear`] where there is something to clear.
pub fn clear(maps: Tensor, extents: Option<&Extents>) -> Tensor {
    match extents {
        Some(extents) => extents.clear(&maps),
        None => maps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn maps_are_halved_as_convolutions_do_it() {
        let extents = Extents::new((96, 160), &[(64, 160), (96, 32)]).unwrap();
        assert_eq!(extents.on((96, 160)), [(64, 160), (96, 32)]);
        assert_eq!(extents.on((24, 40)), [(16, 40), (24, 8)]);
        assert_eq!(extents.on((3, 5)), [(2, 5), (3, 1)]);
        // Stride 64, and 128, where 64 pixels leave one row as 96 do.
        assert_eq!(extents.on((2, 3)), [(1, 3), (2, 1)]);
        assert_eq!(extents.on((1, 2)), [(1, 2), (1, 1)]);
        assert_eq!(Extents::new((96, 160), &[(96, 160)]), None);
    }

    #[test]
    fn what_lies_beyond_an_image_is_cleared() {
        let extents = Extents::new((64, 64), &[(64, 32), (32, 64)]).unwrap();
        let maps = extents.clear(&Tensor::ones([2, 3, 4, 4], (Kind::Float, Device::Cpu)));
        let sums =
            |i: i64| Vec::<f32>::try_from(maps.get(i).get(0).sum_dim_intlist(0i64, false, None::<Kind>)).unwrap();
        assert_eq!((sums(0), sums(1)), (vec![4.0, 4.0, 0.0, 0.0], vec![2.0; 4]));
    }
}
