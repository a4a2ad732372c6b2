//! Masks on their way: through changes of their image, to training targets, and pasted. References are torchvision's
//! numbers (tests/fixtures/two_stage/make_masks.py writes them) and libtorch's operations.

use std::collections::HashMap;
use std::path::Path;

use image::{imageops, Rgb, RgbImage};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use vigdet::config::PasteKind;
use vigdet::data::augment::{flip_horizontal, flip_upside_down, quarter_turn, scale_objects};
use vigdet::data::{AffineMap, ImageInfo, Mask, Sample, Target};
use vigdet::detect::boxes::Box4;
use vigdet::detect::roi_align::RoiAlign;
use vigdet::detect::InstanceMask;
use vigdet::weights::Checkpoint;
use vigdet_coco::rle::Rle;
use vigdet_coco::types::Segmentation;

/// An image on which a letter F is white, in a box of 12 × 12 pixels, and the letter as an object; no two of the eight
/// positions of an F are alike.
fn letter(runs: bool) -> Sample {
    let outline = [8, 4, 20, 4, 20, 7, 11, 7, 11, 9, 17, 9, 17, 12, 11, 12, 11, 16, 8, 16].map(f64::from).to_vec();
    let (width, height) = (40, 24);
    let inside = |x: u32, y: u32| matches!((x, y), (8..11, 4..16) | (11..20, 4..7) | (11..17, 9..12));
    let image = RgbImage::from_fn(width, height, |x, y| if inside(x, y) { Rgb([255; 3]) } else { Rgb([0; 3]) });
    let segmentation = if runs {
        let pixels: Vec<bool> = image.pixels().map(|p| p.0[0] > 0).collect();
        Segmentation::Rle(Rle::from_rows(height, width, &pixels).unwrap())
    } else {
        Segmentation::Polygons(vec![outline])
    };
    let target = Target {
        boxes: vec![[8.0, 4.0, 20.0, 16.0]],
        labels: vec![0],
        crowd: vec![false],
        masks: vec![Mask::new(&segmentation, height, width)],
    };
    Sample { info: ImageInfo { id: 1, file: "f.png".into(), width, height }, image, target }
}

fn enlarge(sample: &mut Sample, across: u32, down: u32) {
    let (width, height) = sample.image.dimensions();
    sample.image = imageops::resize(&sample.image, width * across, height * down, imageops::FilterType::Nearest);
    scale_objects(&mut sample.target, across as f32, down as f32);
}

/// Asserts that box, raster and pooled mask say of the object what the image's white pixels say.
fn assert_mask_on_letter(sample: &Sample, what: &str) {
    let (width, height) = sample.image.dimensions();
    let white = |x: u32, y: u32| sample.image.get_pixel(x, y).0[0] > 0;
    let of = |axis: fn((u32, u32)) -> u32| {
        let all = sample.image.enumerate_pixels().filter(|p| white(p.0, p.1)).map(|p| axis((p.0, p.1)));
        let all: Vec<u32> = all.collect();
        (*all.iter().min().unwrap() as f32, *all.iter().max().unwrap() as f32 + 1.0)
    };
    let ((left, right), (top, bottom)) = (of(|p| p.0), of(|p| p.1));
    let region: Box4 = sample.target.boxes[0];
    assert_eq!(region, [left, top, right, bottom], "{what}");

    let mask = sample.target.masks[0].as_ref().unwrap();
    // Bins of whole pixels.
    let (across, down) = ((right - left) as u32 / 12, (bottom - top) as u32 / 12);
    let found = mask.raster(&region, 12);
    for row in 0..12 {
        for column in 0..12 {
            let wanted = white(left as u32 + column * across, top as u32 + row * down);
            assert_eq!(found[(row * 12 + column) as usize] == 1.0, wanted, "{what}: {column}, {row}");
        }
    }

    let pixels: Vec<f32> = sample.image.pixels().map(|p| f32::from(p.0[0]) / 255.0).collect();
    let map = Tensor::from_slice(&pixels).view([1, 1, height.into(), width.into()]);
    let align = RoiAlign { size: 7, sampling_ratio: 0, aligned: false };
    let drawn = mask.draw();
    for region in [region, [left - 2.3, top - 1.4, right + 3.1, bottom + 0.2]] {
        let wanted: Vec<f32> = align.pool(&map, &[(0, region)], 1.0).reshape([-1]).try_into().unwrap();
        let found = drawn.pooled(&region, 7, (height.into(), width.into()));
        for (found, wanted) in found.iter().zip(&wanted) {
            assert!((found - wanted).abs() < 1e-5, "{what}: {found}, wanted {wanted}");
        }
    }
}

#[test]
fn polygons_and_runs_go_where_the_pixels_go() {
    type Step = (&'static str, fn(&mut Sample));
    let steps: [Step; 4] = [
        ("mirrored", flip_horizontal),
        ("upside down", flip_upside_down),
        ("turned", quarter_turn),
        ("enlarged", |sample| enlarge(sample, 2, 3)),
    ];
    for runs in [false, true] {
        assert_mask_on_letter(&letter(runs), "as it was");
        // Every order of up to three steps, the same one twice among them.
        for first in &steps {
            for second in &steps {
                for third in &steps {
                    let mut sample = letter(runs);
                    let mut what = format!("{}:", if runs { "runs" } else { "polygons" });
                    for (name, step) in [first, second, third] {
                        step(&mut sample);
                        what += &format!(" {name}");
                        assert_mask_on_letter(&sample, &what);
                    }
                }
            }
        }
    }
}

struct Fixture {
    tensors: HashMap<String, Tensor>,
    cases: Value,
    segmentations: Vec<Segmentation>,
    size: (u32, u32),
}

impl Fixture {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/two_stage/masks.safetensors");
        let metadata = Checkpoint::open(&path).unwrap().metadata();
        let json = |name: &str| -> Value { serde_json::from_str(&metadata[name]).unwrap() };
        let [height, width]: [u32; 2] = serde_json::from_value(json("size")).unwrap();
        let segmentation = |s: &Value| match s["counts"].as_str() {
            Some(text) => Segmentation::Rle(Rle::from_compressed(height, width, text).unwrap()),
            None => Segmentation::Polygons(serde_json::from_value(s.clone()).unwrap()),
        };
        Self {
            tensors: Tensor::read_safetensors(path).unwrap().into_iter().collect(),
            cases: json("cases"),
            segmentations: json("segmentations").as_array().unwrap().iter().map(segmentation).collect(),
            size: (height, width),
        }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let tensor = self.tensors.get(name).unwrap_or_else(|| panic!("the fixture lacks {name}"));
        tensor.reshape([-1]).try_into().unwrap()
    }

    fn boxes(&self, name: &str) -> Vec<Box4> {
        self.floats(name).chunks(4).map(|row| row.try_into().unwrap()).collect()
    }

    fn masks(&self) -> Vec<Mask> {
        let of = |s| Mask::new(s, self.size.0, self.size.1).unwrap();
        self.segmentations.iter().map(of).collect()
    }
}

const SIDE: usize = 14;

#[test]
fn targets_of_images_of_another_size_are_torchvisions() {
    let fixture = Fixture::read();
    let (height, width) = (f64::from(fixture.size.0), f64::from(fixture.size.1));
    let cases = fixture.cases.as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for (i, case) in cases.iter().enumerate() {
        let [rows, columns]: [i64; 2] = serde_json::from_value(case["size"].clone()).unwrap();
        let mut masks = fixture.masks();
        for mask in &mut masks {
            if case["mirrored"] == true {
                mask.change(&AffineMap::mirror(width));
            }
            mask.change(&AffineMap::scale(columns as f64 / width, rows as f64 / height));
        }
        let wanted = fixture.floats(&format!("pooled.{i}"));
        for (r, (region, wanted)) in
            fixture.boxes(&format!("pooled.{i}.rois")).iter().zip(wanted.chunks(SIDE * SIDE)).enumerate()
        {
            let found = masks[r % masks.len()].draw().pooled(region, SIDE, (rows, columns));
            for (bin, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                assert!((found - wanted).abs() < 1e-5, "{case}, region {r}, {bin}: {found}, wanted {wanted}");
            }
        }
    }
}

#[test]
fn runs_are_cropped_to_a_region_as_detectron2_does() {
    let fixture = Fixture::read();
    let runs = fixture.masks().pop().unwrap();
    let wanted = fixture.floats("cropped");
    let (mut compared, mut object) = (0, 0);
    for (region, wanted) in fixture.boxes("cropped.rois").iter().zip(wanted.chunks(SIDE * SIDE)) {
        for (bin, (found, mean)) in runs.raster(region, SIDE).iter().zip(wanted).enumerate() {
            // A mean of one half may be rounded either way.
            if (mean - 0.5).abs() > 1e-5 {
                assert_eq!(*found == 1.0, *mean >= 0.5, "{region:?}, {bin}: {mean}");
                compared += 1;
                object += usize::from(*found == 1.0);
            }
        }
    }
    assert!(compared > 1500 && object > 500, "{object} of {compared}");
}

/// detectron2's `_do_paste_mask`, which is bilinear sampling at the centres of the image's pixels.
#[test]
fn masks_are_pasted_as_detectron2_does() {
    let (height, width, side) = (60i64, 90i64, 28i64);
    let values: Vec<f32> = (0..side * side)
        .map(|i| {
            let (x, y) = ((i % side) as f32, (i / side) as f32);
            0.5 + 0.5 * (x * 0.53 + 0.8).sin() * (y * 0.31 - 0.4).cos()
        })
        .collect();
    let grid = Tensor::from_slice(&values).view([1, 1, side, side]);
    let centres = |start: f32, end: f32, pixels: i64| {
        let at = Tensor::arange(pixels, (Kind::Float, Device::Cpu)) + 0.5;
        (at - f64::from(start)) / f64::from(end - start) * 2.0 - 1.0
    };
    let mut object = 0;
    for b in [
        [10.05, 8.05, 71.9, 49.2],
        [0.0, 0.0, 90.0, 60.0],
        [-25.5, -14.2, 40.8, 33.3],
        [61.4, 20.9, 130.7, 95.1],
        [30.2, 25.6, 41.1, 34.5],
        [50.4, 30.3, 51.9, 31.2],
        [-300.0, -200.0, 400.0, 300.0],
    ] {
        let x = centres(b[0], b[2], width).view([1, 1, width, 1]).expand([1, height, width, 1], false);
        let y = centres(b[1], b[3], height).view([1, height, 1, 1]).expand([1, height, width, 1], false);
        let wanted = grid.grid_sampler(&Tensor::cat(&[x, y], 3), 0, 0, false);
        let wanted: Vec<f32> = wanted.reshape([-1]).try_into().unwrap();
        for threshold in [0.5, 0.1] {
            let mask =
                InstanceMask { values: values.clone(), side: side as usize, paste: PasteKind::Centres, threshold };
            let found = mask.paste(&b, height as u32, width as u32).to_rows();
            let sure = (0..wanted.len()).filter(|&i| (wanted[i] - threshold).abs() > 1e-4);
            let mut compared = 0;
            for i in sure {
                let at = (i as i64 % width, i as i64 / width);
                assert_eq!(found[i], wanted[i] > threshold, "{b:?} at {at:?}: {}", wanted[i]);
                compared += 1;
                object += usize::from(found[i]);
            }
            assert!(compared > 5000, "{b:?}: {compared}");
        }
    }
    assert!(object > 5000, "{object}");
}
