//! Two images in one (Zhang et al., 2018, "mixup", equation 1), with the objects of both, as detectors use it (Zhang et
//! al., 2019, "Bag of Freebies", section 3.1).

use anyhow::Result;
use rand::Rng;
use rand_distr::{Beta, Distribution};

use super::augment::scale_objects;
use super::resize::antialias;
use super::sample::Sample;

/// Both parameters of the beta distribution that the share of the first image is drawn from: about one half.
const CONCENTRATION: f64 = 32.0;

/// Blends `other`, as large as it fits at the upper left, into `sample`, and adds its objects.
///
/// # Errors
/// An image that cannot be resized.
pub fn mixup(sample: &mut Sample, mut other: Sample, rng: &mut impl Rng) -> Result<()> {
    let (width, height) = sample.image.dimensions();
    let (from_width, from_height) = other.image.dimensions();
    let fit = (f64::from(width) / f64::from(from_width)).min(f64::from(height) / f64::from(from_height));
    let to = |from: u32, most: u32| ((f64::from(from) * fit).round() as u32).clamp(1, most);
    let (w, h) = (to(from_width, width), to(from_height, height));
    let resized = antialias(&other.image, w, h)?;
    scale_objects(&mut other.target, w as f32 / from_width as f32, h as f32 / from_height as f32);
    let share = Beta::new(CONCENTRATION, CONCENTRATION)?.sample(rng) as f32;
    for (x, y, second) in resized.enumerate_pixels() {
        let first = sample.image.get_pixel_mut(x, y);
        for (a, b) in first.0.iter_mut().zip(second.0) {
            *a = (share * f32::from(*a) + (1.0 - share) * f32::from(b)).round() as u8;
        }
    }
    let (ours, theirs) = (&mut sample.target, other.target);
    ours.boxes.extend(theirs.boxes);
    ours.labels.extend(theirs.labels);
    ours.crowd.extend(theirs.crowd);
    ours.masks.extend(theirs.masks);
    Ok(())
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::super::sample::{ImageInfo, Target};
    use super::*;

    fn sample(width: u32, height: u32, grey: u8, b: [f32; 4]) -> Sample {
        let info = ImageInfo { id: i64::from(grey), file: format!("{grey}.png"), width, height };
        let target = Target { boxes: vec![b], labels: vec![grey.into()], crowd: vec![false], masks: vec![None] };
        Sample { info, image: RgbImage::from_pixel(width, height, Rgb([grey; 3])), target }
    }

    #[test]
    fn both_images_are_seen_and_all_objects_stay_on_theirs() {
        let mut first = sample(40, 30, 0, [1.0, 2.0, 11.0, 12.0]);
        // Tall: its height decides, and it becomes 10 × 30.
        let second = sample(20, 60, 200, [2.0, 4.0, 12.0, 44.0]);
        mixup(&mut first, second, &mut ChaCha8Rng::seed_from_u64(0)).unwrap();
        assert_eq!(first.target.boxes, [[1.0, 2.0, 11.0, 12.0], [1.0, 2.0, 6.0, 22.0]]);
        assert_eq!(first.target.labels, [0, 200]);
        let (inside, outside) = (first.image.get_pixel(9, 29).0[0], first.image.get_pixel(10, 29).0[0]);
        assert!((60..140).contains(&inside) && outside == 0, "{inside} {outside}");
        assert_eq!(first.info.id, 0);
    }
}
