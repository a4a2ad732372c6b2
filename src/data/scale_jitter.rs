//! Scale jitter with crop and pad (Ghiasi et al., 2021, "Simple Copy-Paste", section 3: large scale jittering), turns
//! and shears: an image moved on its own canvas.

use anyhow::Result;
use image::{imageops, Rgb, RgbImage};
use rand::Rng;

use super::affine_map::{corners_of, AffineMap};
use super::augment::{cut, draw_scale, TRIES};
use super::classify::affine::transform_to;
use super::classify::crop::Filter;
use super::resize::antialias;
use super::sample::{Sample, Target};
use crate::config::AffineConfig;

/// Moves `sample` as `config` says: its size changes, it turns and shears about its centre, and a random part of it
/// that is as large as the canvas stays; what it does not cover is `fill`. Objects of which less than `visible` is left
/// become crowd regions. Where no draw keeps an object, the image stays as it is.
///
/// # Errors
/// An image that cannot be resized.
pub fn affine(
    sample: &mut Sample,
    config: &AffineConfig,
    visible: f64,
    fill: [u8; 3],
    rng: &mut impl Rng,
) -> Result<()> {
    let (width, height) = sample.image.dimensions();
    let canvas = [0.0, 0.0, width as f32, height as f32];
    let needs_object = sample.target.has_countable();
    for _ in 0..TRIES {
        let scale = draw_scale(config.scale, rng);
        let resized = [width, height].map(|side| ((f64::from(side) * scale).round() as u32).max(1));
        // Somewhere on the canvas, or somewhere beyond all of its edges.
        let mut offset = |side: u32, resized: u32| {
            let free = i64::from(side) - i64::from(resized);
            rng.random_range(free.min(0)..=free.max(0))
        };
        let (left, top) = (offset(width, resized[0]), offset(height, resized[1]));
        let mut angle = |most: f64| ((2.0 * rng.random::<f64>() - 1.0) * most).to_radians();
        let (turn, shear) = (angle(config.degrees), angle(config.shear));
        let [w, h] = resized.map(f64::from);
        let turned = AffineMap::translate(-0.5 * w, -0.5 * h)
            .then(&AffineMap::shear(shear))
            .then(&AffineMap::turn(turn))
            .then(&AffineMap::translate(0.5 * w + left as f64, 0.5 * h + top as f64));
        let scaled = AffineMap::scale(w / f64::from(width), h / f64::from(height));
        let mut target = sample.target.clone();
        move_objects(&mut target, &scaled.then(&turned), (height, width));
        let target = cut(&target, canvas, visible as f32);
        if needs_object && !target.has_countable() {
            continue;
        }
        let image = antialias(&sample.image, resized[0], resized[1])?;
        sample.image = if turn == 0.0 && shear == 0.0 {
            let mut out = RgbImage::from_pixel(width, height, Rgb(fill));
            imageops::replace(&mut out, &image, left, top);
            out
        } else {
            let AffineMap { across: [a, b, c], down: [d, e, f] } = turned.inverse();
            transform_to((width, height), &image, [a, b, c, d, e, f], Filter::Bilinear, fill)
        };
        sample.target = target;
        return Ok(());
    }
    Ok(())
}

/// Takes objects along. A box that turns becomes the one around its corners, cut to the one around its mask.
fn move_objects(target: &mut Target, change: &AffineMap, canvas: (u32, u32)) {
    for (b, mask) in target.boxes.iter_mut().zip(&mut target.masks) {
        let [x1, y1, x2, y2] = b.map(f64::from);
        let corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)];
        let around = corners_of(corners.into_iter().map(|p| change.apply(p))).unwrap_or(*b);
        *b = around;
        let Some(mask) = mask else { continue };
        mask.warp(change, canvas);
        if let (Some(own), false) = (mask.bounds(), change.keeps_axes()) {
            let cut = [around[0].max(own[0]), around[1].max(own[1]), around[2].min(own[2]), around[3].min(own[3])];
            if cut[0] < cut[2] && cut[1] < cut[3] {
                *b = cut;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use vigdet_coco::rle::Rle;
    use vigdet_coco::types::Segmentation;

    use super::super::mask::Mask;
    use super::super::sample::ImageInfo;
    use super::*;

    /// A grey image with a white object, a box of 30 × 18 pixels at (20, 24), with the mask of that box.
    fn sample(runs: bool) -> Sample {
        let (width, height) = (96, 64);
        let object = |x: u32, y: u32| (20..50).contains(&x) && (24..42).contains(&y);
        let image = RgbImage::from_fn(width, height, |x, y| Rgb([if object(x, y) { 255 } else { 60 }; 3]));
        let polygon = vec![20.0, 24.0, 50.0, 24.0, 50.0, 42.0, 20.0, 42.0];
        let rows: Vec<bool> = (0..width * height).map(|i| object(i % width, i / width)).collect();
        let segmentation = match runs {
            true => Segmentation::Rle(Rle::from_rows(height, width, &rows).unwrap()),
            false => Segmentation::Polygons(vec![polygon]),
        };
        let info = ImageInfo { id: 1, file: "a.png".into(), width, height };
        let target = Target {
            boxes: vec![[20.0, 24.0, 50.0, 42.0]],
            labels: vec![0],
            crowd: vec![false],
            masks: vec![Mask::new(&segmentation, height, width)],
        };
        Sample { info, image, target }
    }

    #[test]
    fn boxes_and_masks_stay_on_their_object_however_it_is_moved() {
        let settings = [
            AffineConfig { scale: [0.4, 2.0], ..AffineConfig::default() },
            AffineConfig { scale: [0.7, 1.3], degrees: 30.0, shear: 10.0, ..AffineConfig::default() },
        ];
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut crossed = 0;
        for (config, runs) in settings.iter().flat_map(|c| [(c, false), (c, true)]) {
            for _ in 0..40 {
                let mut sample = sample(runs);
                affine(&mut sample, config, 0.3, [10, 20, 30], &mut rng).unwrap();
                assert_eq!(sample.image.dimensions(), (96, 64));
                assert_eq!(sample.target.boxes.len(), 1);
                let white = |p: &Rgb<u8>| p.0[0] > 157;
                let seen = sample.image.enumerate_pixels().filter(|(_, _, p)| white(p));
                let around = corners_of(seen.flat_map(|(x, y, _)| {
                    let (x, y) = (f64::from(x), f64::from(y));
                    [(x, y), (x + 1.0, y + 1.0)]
                }))
                .unwrap();
                let b = sample.target.boxes[0];
                // Half of the brightness at an edge, and thin tips of a turned box, are up to two pixels off.
                let most = if config.degrees == 0.0 { 1.01 } else { 2.01 };
                assert!(b.iter().zip(&around).all(|(a, b)| (a - b).abs() < most), "{b:?} {around:?}");
                let mask = sample.target.masks[0].as_ref().unwrap().raster(&[0.0, 0.0, 96.0, 64.0], 32);
                let area = mask.iter().sum::<f32>() * 6.0;
                let pixels = sample.image.pixels().filter(|p| white(p)).count() as f32;
                assert!((area - pixels).abs() < 60.0 + 0.12 * pixels, "{area} {pixels}");
                crossed += usize::from(b[0] == 0.0 || b[2] == 96.0);
            }
        }
        assert!(crossed > 10, "some objects are cut by the edge: {crossed}");
    }

    #[test]
    fn what_the_image_does_not_cover_is_filled() {
        let config = AffineConfig { scale: [0.5, 0.5], ..AffineConfig::default() };
        let mut sample = sample(false);
        affine(&mut sample, &config, 0.3, [10, 20, 30], &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
        let filled = sample.image.pixels().filter(|p| p.0 == [10, 20, 30]).count();
        assert_eq!(filled, 96 * 64 - 48 * 32);
    }
}
