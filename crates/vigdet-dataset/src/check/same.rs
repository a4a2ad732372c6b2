//! Images that come twice: byte by byte, or to the eye.

use super::{of, Findings, Kind};
use crate::types::Import;
use image::imageops::FilterType;
use image::DynamicImage;
use rayon::prelude::*;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Side of the small grey picture that is compared.
const SIDE: u32 = 16;
/// Bits of 128 that may differ before pictures are compared at all.
const MOST_BITS: u32 = 10;
/// Mean difference of the small pictures, of 255, up to which two pictures count as nearly the same.
const MOST_DIFFERENCE: f64 = 4.0;
/// Pictures whose greys vary less than this, of 255, look all alike.
const LEAST_CONTRAST: f64 = 6.0;

/// What an image looks like, in 300 bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Of the bytes of the file.
    file: u64,
    /// Whether each place is lighter than the next to its right, and than the next below.
    hash: u128,
    /// Width over height.
    aspect: f32,
    /// Grey, row by row, its mean set to 128.
    small: Box<[u8]>,
    /// Nearly one grey all over.
    flat: bool,
}

impl Picture {
    /// Of the bytes of a file and the image in it.
    pub fn of(bytes: &[u8], image: &DynamicImage) -> Picture {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let aspect = image.width() as f32 / image.height().max(1) as f32;
        // Resizing in two steps is as good here and far quicker.
        let (width, height) = (image.width().clamp(1, 128), image.height().clamp(1, 128));
        let small = image.thumbnail_exact(width, height).into_luma8();
        let small = image::imageops::resize(&small, SIDE, SIDE, FilterType::Triangle);
        let places = |w: u32, h: u32| image::imageops::resize(&small, w, h, FilterType::Triangle);
        let mut hash = 0u128;
        let (wide, tall) = (places(9, 8), places(8, 9));
        for i in 0..8 {
            for j in 0..8 {
                let right = wide.get_pixel(i, j).0[0] > wide.get_pixel(i + 1, j).0[0];
                let below = tall.get_pixel(i, j).0[0] > tall.get_pixel(i, j + 1).0[0];
                hash = hash << 2 | u128::from(right) << 1 | u128::from(below);
            }
        }
        let values = small.into_raw();
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64;
        let spread = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / values.len() as f64;
        let shifted = values.iter().map(|&value| (f64::from(value) - mean + 128.0).clamp(0.0, 255.0) as u8);
        Picture { file: hasher.finish(), hash, aspect, small: shifted.collect(), flat: spread.sqrt() < LEAST_CONTRAST }
    }

    /// Whether two files are the same.
    fn is_same_file(&self, other: &Picture) -> bool {
        self.file == other.file
    }

    /// Whether two pictures are nearly the same to the eye: resized, compressed anew, a little lighter.
    pub fn is_nearly(&self, other: &Picture) -> bool {
        if self.is_same_file(other) {
            return true;
        }
        let turned = (self.aspect / other.aspect - 1.0).abs() > 0.05;
        if self.flat || other.flat || turned || (self.hash ^ other.hash).count_ones() > MOST_BITS {
            return false;
        }
        let difference = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b));
        self.small.iter().zip(&other.small).map(difference).sum::<f64>() / self.small.len() as f64 <= MOST_DIFFERENCE
    }
}

/// All pairs of places of pictures that are nearly the same, the first place first.
pub fn nearly_same(pictures: &[Option<Picture>]) -> Vec<(usize, usize)> {
    let seen: Vec<(usize, &Picture)> =
        pictures.iter().enumerate().filter_map(|(at, picture)| Some((at, picture.as_ref()?))).collect();
    let pairs = |i: usize| {
        let (at, picture) = seen[i];
        let others = seen[i + 1..].iter().filter(|(_, other)| picture.is_nearly(other));
        others.map(|(other, _)| (at, *other)).collect::<Vec<_>>()
    };
    (0..seen.len()).into_par_iter().flat_map_iter(pairs).collect()
}

pub(super) fn check(import: &Import, pictures: &[Vec<Option<Picture>>], findings: &mut Findings) {
    let places: Vec<(usize, usize)> = pictures
        .iter()
        .enumerate()
        .flat_map(|(split, pictures)| (0..pictures.len()).map(move |image| (split, image)))
        .collect();
    let all: Vec<Option<Picture>> = pictures.iter().flatten().cloned().collect();
    // Each image is told once, beside the first that it is like.
    let mut told: HashMap<usize, ()> = HashMap::new();
    let mut pairs = nearly_same(&all);
    // Between splits first: those are the ones that matter.
    pairs.sort_by_key(|&(a, b)| (places[a].0 == places[b].0, a, b));
    for (a, b) in pairs {
        let ((split_a, image_a), (split_b, image_b)) = (places[a], places[b]);
        let (first, second) = (&import.splits[split_a], &import.splits[split_b]);
        let (image_a, image_b) = (&first.dataset.images[image_a], &second.dataset.images[image_b]);
        if first.path(&image_a.file_name) == second.path(&image_b.file_name) && split_a == split_b {
            continue;
        }
        if told.insert(b, ()).is_some() {
            continue;
        }
        let same = all[a].as_ref().zip(all[b].as_ref()).is_some_and(|(a, b)| a.is_same_file(b));
        let kind = match (same, split_a == split_b) {
            (true, false) => Kind::SameInSplits,
            (false, false) => Kind::NearlySameInSplits,
            (true, true) => Kind::SameInSplit,
            (false, true) => Kind::NearlySameInSplit,
        };
        findings.add(kind, || of(second, image_b, format!("as {} in {}", image_a.file_name, first.name)));
    }
}
