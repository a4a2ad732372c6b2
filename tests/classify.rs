//! Transforms, samplers and batches of classifiers, against torchvision, Pillow and their definitions.

use std::path::Path;

use image::{Rgb, RgbImage};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, SafeTensors};
use tch::{nn, Device, Kind};
use vigdet::backbone::Classifier;
use vigdet::classes::Classes;
use vigdet::config::{
    ClassifyConfig, ClassifyDataConfig, EraseConfig, Experiment, FolderConfig, Interpolation, OnError,
    RandAugmentConfig,
};
use vigdet::data::classify::crop::{center, crop_resize, random_window, Filter, Window};
use vigdet::data::classify::mix::{add_target, Mix};
use vigdet::data::classify::rand_augment::{draw, Kind as OpKind, Op, KINDS};
use vigdet::data::classify::{erase, ClassBatch, ClassLoader, ClassLoaderOptions};
use vigdet::data::order::{dealt, repeated};
use vigdet::data::ImageFolder;
use vigdet::nn::precision::InferencePrecision;
use vigdet::ranks::Ranks;
use vigdet::train::accuracy::{cross_entropy, Accuracy, ClassEvaluator, Count};
use vigdet::train::classification::Classification;
use vigdet::train::task::Task;

/// Torchvision's fixtures.
struct Fixtures(Vec<u8>);

impl Fixtures {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/classify/classify.safetensors");
        Self(std::fs::read(path).unwrap())
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    fn picture(&self, name: &str) -> RgbImage {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::U8);
        RgbImage::from_raw(view.shape()[1] as u32, view.shape()[0] as u32, view.data().to_vec()).unwrap()
    }

    /// Names that start with `prefix`, with the parts after it; a decimal point is part of a number.
    fn with_prefix(&self, prefix: &str) -> Vec<(String, String)> {
        let tensors = self.tensors();
        let mut names: Vec<(String, String)> = tensors
            .names()
            .into_iter()
            .filter_map(|name| Some((name.to_string(), name.strip_prefix(prefix)?.to_string())))
            .collect();
        names.sort();
        names
    }

    fn doubles(&self, name: &str) -> Vec<f64> {
        let tensors = self.tensors();
        let data = tensors.tensor(name).unwrap();
        assert_eq!(data.dtype(), Dtype::F64);
        data.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn integers(&self, name: &str) -> Vec<usize> {
        let tensors = self.tensors();
        let data = tensors.tensor(name).unwrap();
        assert_eq!(data.dtype(), Dtype::I64);
        data.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect()
    }
}

/// Largest absolute difference, and how many values differ.
fn difference(a: &RgbImage, b: &RgbImage) -> (u8, usize) {
    assert_eq!(a.dimensions(), b.dimensions());
    let all = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b));
    (all.clone().max().unwrap_or(0), all.filter(|d| *d > 0).count())
}

fn filter(name: &str) -> Filter {
    match name {
        "bilinear" => Filter::Bilinear,
        "bicubic" => Filter::Bicubic,
        other => panic!("{other}"),
    }
}

#[test]
fn operations_on_values_are_pillows_to_the_bit() {
    let fixtures = Fixtures::read();
    let image = fixtures.picture("image");
    let check = |name: &str, source: &RgbImage, op: Op| {
        let mut changed = source.clone();
        op.apply(&mut changed, Filter::Bicubic, [128; 3]);
        assert_eq!(difference(&changed, &fixtures.picture(name)), (0, 0), "{name}");
    };
    check("autocontrast", &image, Op::AutoContrast);
    check("equalize", &image, Op::Equalize);
    check("invert", &image, Op::Invert);
    for name in ["flat", "two"] {
        check(&format!("{name}.equalize"), &fixtures.picture(name), Op::Equalize);
        check(&format!("{name}.autocontrast"), &fixtures.picture(name), Op::AutoContrast);
    }
    let mut seen = 0;
    for (prefix, op) in [
        ("posterize.", (|v| Op::Posterize(v as u32)) as fn(f64) -> Op),
        ("solarize.", |v| Op::Solarize(v as u32)),
        ("solarize_add.", |v| Op::SolarizeAdd(v as u8)),
        ("brightness.", Op::Brightness),
        ("contrast.", Op::Contrast),
        ("color.", Op::Color),
        ("sharpness.", Op::Sharpness),
    ] {
        for (name, argument) in fixtures.with_prefix(prefix) {
            check(&name, &image, op(argument.parse().unwrap()));
            seen += 1;
        }
    }
    assert_eq!(seen, 27);
    // Pillow no longer takes 0 bits, which magnitude 10 asks for; nothing is left then.
    let mut black = image.clone();
    Op::Posterize(0).apply(&mut black, Filter::Bicubic, [128; 3]);
    assert!(black.iter().all(|v| *v == 0));
}

#[test]
fn turns_shears_and_shifts_are_pillows_to_the_bit() {
    let fixtures = Fixtures::read();
    let image = fixtures.picture("image");
    let mut seen = 0;
    for (prefix, op) in [
        ("rotate.", Op::Rotate as fn(f64) -> Op),
        ("shear_x.", Op::ShearX),
        ("shear_y.", Op::ShearY),
        ("translate_x.", Op::TranslateX),
        ("translate_y.", Op::TranslateY),
    ] {
        for (name, rest) in fixtures.with_prefix(prefix) {
            let (kind, argument) = rest.split_once('.').unwrap();
            let mut changed = image.clone();
            op(argument.parse().unwrap()).apply(&mut changed, filter(kind), [128; 3]);
            assert_eq!(difference(&changed, &fixtures.picture(&name)), (0, 0), "{name}");
            seen += 1;
        }
    }
    assert_eq!(seen, 34);
}

#[test]
fn crops_are_torchvisions_within_rounding() {
    let fixtures = Fixtures::read();
    let large = fixtures.picture("large");
    let close = |found: &RgbImage, name: &str| {
        let expected = fixtures.picture(name);
        let (most, count) = difference(found, &expected);
        let sum = |image: &RgbImage| image.iter().map(|v| f64::from(*v)).sum::<f64>();
        let values = expected.as_raw().len();
        let bias = (sum(found) - sum(&expected)) / values as f64;
        // Both round the same sums to 8 bits twice, but not along the same direction first.
        assert!(
            most <= 1 && count * 4 <= values && bias.abs() < 0.02,
            "{name}: {count} of {values} values differ, by up to {most}, {bias} in the mean"
        );
    };
    let numbers = |text: &str| text.split('.').map(|v| v.parse().unwrap()).collect::<Vec<u32>>();
    let mut seen = 0;
    for (name, rest) in fixtures.with_prefix("crop.") {
        let (kind, rest) = rest.split_once('.').unwrap();
        let [x, y, width, height, size] = numbers(rest)[..] else { panic!("{name}") };
        let window = Window { x, y, width, height };
        close(&crop_resize(&large, window, (size, size), filter(kind)).unwrap(), &name);
        seen += 1;
    }
    for (name, rest) in fixtures.with_prefix("center.") {
        let [size, percent] = numbers(&rest)[..] else { panic!("{name}") };
        close(&center(&large, size, f64::from(percent) / 100.0, Filter::Bicubic).unwrap(), &name);
        seen += 1;
    }
    assert_eq!(seen, 11);
}

/// Whether draws have the distribution whose 201 quantiles are `expected` (Kolmogorov and Smirnov's distance at 0.1%,
/// for two samples of this size).
fn same_distribution(mut drawn: Vec<f64>, expected: &[f64], what: &str) {
    drawn.sort_by(f64::total_cmp);
    let n = drawn.len();
    let critical = 1.95 * (2.0 / n as f64).sqrt();
    let steps = expected.len() - 1;
    for (i, quantile) in expected.iter().enumerate() {
        // Drawn numbers that repeat, as pixels do, stand for a range of shares.
        let share = i as f64 / steps as f64;
        let below = drawn.partition_point(|v| *v < quantile - 1e-9) as f64 / n as f64;
        let up_to = drawn.partition_point(|v| *v <= quantile + 1e-9) as f64 / n as f64;
        assert!(
            below - critical <= share && share <= up_to + critical,
            "{what}: {quantile} is quantile {share} there, {below} to {up_to} here"
        );
    }
}

#[test]
fn random_windows_are_distributed_as_torchvisions() {
    let fixtures = Fixtures::read();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let drawn: Vec<Window> =
        (0..20000).map(|_| random_window((500, 375), [0.08, 1.0], [0.75, 4.0 / 3.0], &mut rng)).collect();
    assert!(drawn.iter().all(|w| w.x + w.width <= 500 && w.y + w.height <= 375));
    let all = |f: fn(&Window) -> f64| drawn.iter().map(f).collect::<Vec<f64>>();
    same_distribution(
        all(|w| f64::from(w.width) * f64::from(w.height) / 187_500.0),
        &fixtures.doubles("windows.area"),
        "area",
    );
    same_distribution(
        all(|w| (f64::from(w.width) / f64::from(w.height)).ln()),
        &fixtures.doubles("windows.ratio"),
        "ratio",
    );
    same_distribution(all(|w| f64::from(w.x)), &fixtures.doubles("windows.x"), "x");
    same_distribution(all(|w| f64::from(w.y)), &fixtures.doubles("windows.y"), "y");
    // No window of these ratios fits: the central one of the nearest ratio.
    let narrow = random_window((300, 10), [0.9, 1.0], [0.75, 4.0 / 3.0], &mut rng);
    assert_eq!(narrow, Window { x: 143, y: 0, width: 13, height: 10 });
}

#[test]
fn erased_rectangles_are_distributed_as_torchvisions_and_filled_with_noise() {
    let fixtures = Fixtures::read();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let config = EraseConfig { probability: 1.0, ..EraseConfig::default() };
    let drawn: Vec<Window> = (0..20000).filter_map(|_| erase::window(64, &config, &mut rng)).collect();
    let all = |f: fn(&Window) -> f64| drawn.iter().map(f).collect::<Vec<f64>>();
    same_distribution(
        all(|w| f64::from(w.width) * f64::from(w.height) / 4096.0),
        &fixtures.doubles("erase.area"),
        "area",
    );
    same_distribution(
        all(|w| (f64::from(w.height) / f64::from(w.width)).ln()),
        &fixtures.doubles("erase.ratio"),
        "ratio",
    );
    // Any place where the rectangle fits, as likely as any other: of m + 1 places the middles of (m + 1) equal parts
    // of 0 to 1 have mean 1/2 and variance (1 − 1 / (m + 1)²) / 12.
    type Edge = fn(&Window) -> (u32, u32);
    for edge in [(|w| (w.x, 64 - w.width)) as Edge, |w| (w.y, 64 - w.height)] {
        let found: Vec<(u32, u32)> = drawn.iter().map(edge).collect();
        assert!(found.iter().all(|(at, most)| at <= most));
        assert!(found.iter().any(|(at, _)| *at == 0) && found.iter().any(|(at, most)| at == most));
        let places: Vec<(f64, f64)> = found.iter().map(|&(at, most)| (f64::from(at), f64::from(most + 1))).collect();
        let mean = |f: &dyn Fn(f64, f64) -> f64| {
            places.iter().map(|&(at, count)| f(at, count)).sum::<f64>() / places.len() as f64
        };
        let apart = |at: f64, count: f64| (at + 0.5) / count - 0.5;
        // Four standard deviations of the means of 20,000 numbers even over 0 to 1, and of their squared distance from
        // the middle.
        assert!(mean(&apart).abs() < 4.0 * (1f64 / 12.0 / 20000.0).sqrt());
        let excess = mean(&|at, count| apart(at, count).powi(2) - (1.0 - count.powi(-2)) / 12.0);
        assert!(excess.abs() < 4.0 * (1f64 / 180.0 / 20000.0).sqrt(), "{excess}");
    }
    let quarter = (0..20000).filter(|_| erase::window(64, &EraseConfig::default(), &mut rng).is_some()).count();
    assert!((quarter as f64 / 20000.0 - 0.25).abs() < 0.01, "{quarter}");

    let mut planes = vec![7f32; 3 * 64 * 64];
    let window = Window { x: 5, y: 9, width: 50, height: 40 };
    erase::erase(&mut planes, 64, window, &mut rng);
    let inside = |i: usize| {
        let (y, x) = (i / 64 % 64, i % 64);
        (9..49).contains(&y) && (5..55).contains(&x)
    };
    let noise: Vec<f64> = (0..planes.len()).filter(|i| inside(*i)).map(|i| f64::from(planes[i])).collect();
    assert!((0..planes.len()).all(|i| inside(i) || planes[i] == 7.0));
    let n = noise.len() as f64;
    let mean = noise.iter().sum::<f64>() / n;
    let variance = noise.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    assert!(mean.abs() < 4.0 / n.sqrt() && (variance - 1.0).abs() < 0.1, "{mean} {variance}");
}

#[test]
fn magnitudes_are_timms() {
    // rand-m9: 0.9 of each range, by timm's `_LEVEL_DENOM` and its increasing functions.
    for (kind, expected) in [
        (OpKind::Rotate, Op::Rotate(27.0)),
        (OpKind::Posterize, Op::Posterize(1)),
        (OpKind::Solarize, Op::Solarize(26)),
        (OpKind::SolarizeAdd, Op::SolarizeAdd(99)),
        (OpKind::Color, Op::Color(1.81)),
        (OpKind::Contrast, Op::Contrast(1.81)),
        (OpKind::Brightness, Op::Brightness(1.81)),
        (OpKind::Sharpness, Op::Sharpness(1.81)),
        (OpKind::ShearX, Op::ShearX(0.27)),
        (OpKind::ShearY, Op::ShearY(0.27)),
        (OpKind::TranslateX, Op::TranslateX(0.405)),
        (OpKind::TranslateY, Op::TranslateY(0.405)),
        (OpKind::Invert, Op::Invert),
        (OpKind::Equalize, Op::Equalize),
        (OpKind::AutoContrast, Op::AutoContrast),
    ] {
        assert_eq!(format!("{:.4?}", kind.at(9.0, false)), format!("{expected:.4?}"));
    }
    let text = |op: Op| format!("{op:.4?}");
    assert_eq!(text(OpKind::Rotate.at(5.0, true)), text(Op::Rotate(-15.0)));
    assert_eq!(text(OpKind::Color.at(10.0, true)), text(Op::Color(0.1)));
    assert_eq!(text(OpKind::Rotate.at(99.0, false)), text(Op::Rotate(30.0)), "magnitudes end at 10");
    assert_eq!(OpKind::Posterize.at(10.0, false), Op::Posterize(0));
    assert_eq!(OpKind::Solarize.at(-3.0, false), Op::Solarize(256));
}

#[test]
fn operations_come_equally_often_at_the_drawn_magnitudes() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let config = RandAugmentConfig::default();
    let drawn: Vec<Op> = (0..30000).flat_map(|_| draw(&config, &mut rng)).collect();
    // Two for each image, each carried out with probability one half.
    assert!((drawn.len() as f64 / 30000.0 - 1.0).abs() < 0.02, "{}", drawn.len());
    let name = |op: &Op| format!("{op:?}").split('(').next().unwrap().to_string();
    for kind in KINDS {
        let count = drawn.iter().filter(|op| name(op) == format!("{kind:?}")).count();
        assert!((count as f64 / 2000.0 - 1.0).abs() < 0.1, "{kind:?}: {count}");
    }
    // Normal about 9 with deviation 0.5, cut off at 10; either way.
    let angles: Vec<f64> =
        drawn.iter().filter_map(|op| if let Op::Rotate(v) = op { Some(v / 3.0) } else { None }).collect();
    let share = |f: fn(&f64) -> bool| angles.iter().filter(|v| f(v)).count() as f64 / angles.len() as f64;
    assert!((share(|v| *v > 0.0) - 0.5).abs() < 0.05);
    assert!((share(|v| v.abs() < 9.0) - 0.5).abs() < 0.05);
    assert!((share(|v| v.abs() < 8.5) - 0.1587).abs() < 0.04);
    assert!((share(|v| v.abs() >= 10.0) - 0.0228).abs() < 0.015);
}

#[test]
fn repeated_augmentation_selects_what_deits_eight_processes_do() {
    let fixtures = Fixtures::read();
    let order = fixtures.integers("sampler.order");
    // 600 images: ⌊600 / 256⌋·256 of them in an epoch, 8 × 16 a step.
    let dealt = dealt(&repeated(&order, 3, 512), 128, 16);
    assert_eq!(dealt.len(), 4 * 8);
    assert_eq!(dealt.concat(), fixtures.integers("sampler.ranks"));
}

#[test]
fn mixup_mixes_values_and_labels_by_the_same_share() {
    let mix = Mix { fraction: 0.7, window: None };
    let (mut image, other) = (vec![100u8, 0, 255], vec![200u8, 255, 5]);
    mix.apply(&mut image, &other, 1);
    // 130, 76.5 to even, 180.
    assert_eq!(image, [130, 76, 180]);
    let mut row = [0f32; 4];
    add_target(&mut row, 2, 0.7, 0.1);
    add_target(&mut row, 0, 0.3, 0.1);
    let expected = [0.3 * 0.9 + 0.025, 0.025, 0.7 * 0.9 + 0.025, 0.025];
    assert!(row.iter().zip(expected).all(|(v, e)| (v - e).abs() < 1e-6), "{row:?}");
}

#[test]
fn cutmix_weighs_labels_by_the_area_that_is_left() {
    // √(1 − 0.75) = a half: 16 of 32 pixels, ± 8 around the centre.
    let mix = Mix::cut(0.75, 32, 16, 16);
    assert_eq!(mix, Mix { fraction: 0.75, window: Some(Window { x: 8, y: 8, width: 16, height: 16 }) });
    // At a corner a quarter of the window is inside.
    let mix = Mix::cut(0.75, 32, 0, 31);
    assert_eq!(mix.window, Some(Window { x: 0, y: 23, width: 8, height: 9 }));
    assert!((mix.fraction - (1.0 - 72.0 / 1024.0)).abs() < 1e-12);
    let (mut image, other) = (vec![1u8; 3 * 32 * 32], vec![9u8; 3 * 32 * 32]);
    mix.apply(&mut image, &other, 32);
    assert_eq!(image.iter().filter(|v| **v == 9).count(), 3 * 72);
    assert_eq!(
        (image[3 * (23 * 32)], image[3 * (23 * 32 + 7)], image[3 * (23 * 32 + 8)], image[3 * (22 * 32)]),
        (9, 9, 1, 1)
    );
    // Nothing is taken.
    assert_eq!(Mix::cut(1.0, 32, 5, 5).fraction, 1.0);
}

#[test]
fn mixes_are_drawn_as_often_and_as_strong_as_the_config_says() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut drawn = |changes: fn(&mut ClassifyDataConfig)| -> Vec<Option<Mix>> {
        let mut config = ClassifyDataConfig::default();
        changes(&mut config);
        (0..20000).map(|_| Mix::draw(&config, 32, &mut rng)).collect()
    };
    let both = drawn(|_| ());
    assert!(both.iter().all(Option::is_some));
    let mixup: Vec<f64> = both.iter().flatten().filter(|m| m.window.is_none()).map(|m| m.fraction).collect();
    assert!((mixup.len() as f64 / 20000.0 - 0.5).abs() < 0.02);
    // Beta(0.8, 0.8): mean 1/2, variance 1 / (4·(2·0.8 + 1)).
    let mean = mixup.iter().sum::<f64>() / mixup.len() as f64;
    let variance = mixup.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / mixup.len() as f64;
    assert!((mean - 0.5).abs() < 0.01 && (variance - 1.0 / 10.4).abs() < 0.003, "{mean} {variance}");
    let some = drawn(|c| c.mix_probability = 0.25).iter().flatten().count();
    assert!((some as f64 / 20000.0 - 0.25).abs() < 0.02);
    assert!(drawn(|c| c.mixup = 0.0).iter().all(|m| m.is_some_and(|m| m.window.is_some())));
    assert!(drawn(|c| c.cutmix = 0.0).iter().all(|m| m.is_some_and(|m| m.window.is_none())));
    assert!(drawn(|c| (c.mixup, c.cutmix) = (0.0, 0.0)).iter().all(Option::is_none));
}

/// Three classes of small images, one of them not an image.
fn folder() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (c, class) in ["a", "b", "c"].iter().enumerate() {
        let folder = root.path().join("train").join(class);
        std::fs::create_dir_all(&folder).unwrap();
        for i in 0..5u32 {
            let (width, height) = (20 + 3 * i, 30 - 2 * i);
            let image = RgbImage::from_fn(width, height, |x, y| {
                Rgb([(80 * c as u32 + x) as u8, (7 * x + 3 * y + i) as u8, (11 * y) as u8])
            });
            image.save(folder.join(format!("{i}.png"))).unwrap();
        }
    }
    std::fs::write(root.path().join("train/b/3.png"), "no image").unwrap();
    root
}

fn config() -> ClassifyDataConfig {
    let mut config = ClassifyDataConfig { size: 24, repeats: 3, repeat_round: 4, workers: 1, ..Default::default() };
    config.erase.probability = 0.5;
    config
}

const TRAIN: ClassLoaderOptions =
    ClassLoaderOptions { batch_size: 4, micro_batch: 2, train: true, seed: 5, label_smoothing: 0.1 };

fn loader(root: &Path, config: &ClassifyDataConfig, options: ClassLoaderOptions) -> ClassLoader {
    let folder = FolderConfig { folder: "train".into(), limit: None };
    ClassLoader::new(ImageFolder::open(&folder, root).unwrap(), config, options).unwrap()
}

fn all(loader: &ClassLoader, epoch: usize, first: usize) -> Vec<ClassBatch> {
    loader.epoch(epoch, first, true).map(Result::unwrap).collect()
}

fn same(a: &[ClassBatch], b: &[ClassBatch]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.images == b.images && a.targets == b.targets && a.names == b.names)
}

#[test]
fn batches_depend_on_seed_and_epoch_alone() {
    let root = folder();
    let one = loader(root.path(), &config(), TRAIN);
    let three = loader(root.path(), &ClassifyDataConfig { workers: 3, ..config() }, TRAIN);
    let epoch = all(&one, 1, 0);
    assert_eq!(epoch.len(), one.batches_per_epoch());
    assert_eq!(epoch.len(), 6);
    assert!(same(&epoch, &all(&three, 1, 0)), "the number of threads changes nothing");
    assert!(same(&epoch[4..], &all(&three, 1, 4)), "nor does where an epoch is entered");
    assert!(!same(&epoch, &all(&one, 2, 0)));
    assert!(!same(&epoch, &all(&loader(root.path(), &config(), ClassLoaderOptions { seed: 6, ..TRAIN }), 1, 0)));
    // The views of a repeated image differ.
    let first = &epoch[0];
    assert_eq!(first.labels[0], first.labels[1]);
    assert_ne!(first.images.get(0), first.images.get(1));
    for batch in &epoch {
        assert_eq!(batch.images.size(), [2, 3, 24, 24]);
        let sums = batch.targets.sum_dim_intlist([1].as_slice(), false, Kind::Float);
        assert!((sums - 1.0).abs().max().double_value(&[]) < 1e-6, "targets are probabilities");
    }
}

#[test]
fn an_unreadable_image_is_replaced_in_training_and_left_out_of_evaluation() {
    let root = folder();
    let plain = ClassifyDataConfig { repeats: 1, mixup: 0.0, cutmix: 0.0, ..config() };
    let train = loader(root.path(), &plain, ClassLoaderOptions { batch_size: 15, micro_batch: 15, ..TRAIN });
    let batch = all(&train, 0, 0).remove(0);
    let mut names = batch.names.clone();
    names.sort();
    assert_eq!(names.iter().filter(|n| *n == "b/4.png").count(), 2, "{names:?}");
    assert_eq!(train.skipped()[0].0, "b/3.png");
    let targets: Vec<Vec<f64>> = batch.targets.try_into().unwrap();
    for (label, row) in batch.labels.iter().zip(targets) {
        let smoothed = |class: usize| if class == *label { 0.9 + 0.1 / 3.0 } else { 0.1 / 3.0 };
        assert!(row.iter().enumerate().all(|(class, v)| (v - smoothed(class)).abs() < 1e-6));
    }

    let options = ClassLoaderOptions { batch_size: 4, micro_batch: 4, train: false, ..TRAIN };
    let val = loader(root.path(), &plain, options);
    let batches = all(&val, 0, 0);
    let names: Vec<String> = batches.iter().flat_map(|b| b.names.clone()).collect();
    assert_eq!(names.len(), 14);
    assert!(names.is_sorted() && !names.contains(&"b/3.png".to_string()));
    assert_eq!(batches[0].targets.get(0), tch::Tensor::from_slice(&[1f32, 0.0, 0.0]), "no smoothing");

    let stop = ClassifyDataConfig { on_error: OnError::Stop, ..plain };
    let val = loader(root.path(), &stop, options);
    let error = val.epoch(0, 0, false).find_map(Result::err).unwrap();
    assert!(format!("{error:#}").contains("3.png") && format!("{error:#}").contains("on_error"), "{error:#}");
}

#[test]
fn evaluation_sees_the_central_crop_normalised() {
    let root = folder();
    let config = ClassifyDataConfig { mean: [0.5, 0.25, 0.0], std: [0.5, 1.0, 2.0], ..config() };
    let options = ClassLoaderOptions { batch_size: 15, micro_batch: 15, train: false, ..TRAIN };
    let batch = all(&loader(root.path(), &config, options), 0, 0).remove(0);
    let image = image::open(root.path().join("train/a/0.png")).unwrap().into_rgb8();
    let expected = center(&image, 24, 0.9, Filter::Bicubic).unwrap();
    for (x, y) in [(0u32, 0u32), (23, 0), (5, 17)] {
        let pixel = expected.get_pixel(x, y).0.map(|v| f64::from(v) / 255.0);
        let found = |c: i64| batch.images.double_value(&[0, c, i64::from(y), i64::from(x)]);
        for (c, value) in [(0, (pixel[0] - 0.5) / 0.5), (1, pixel[1] - 0.25), (2, pixel[2] / 2.0)] {
            assert!((found(c) - value).abs() < 1e-5, "{x} {y} {c}");
        }
    }
}

/// An epoch without crops that change anything, flips and the rest: what differs with `changes` is those alone.
fn still(root: &Path, epoch: usize, changes: impl Fn(&mut ClassifyDataConfig)) -> tch::Tensor {
    let mut config = ClassifyDataConfig {
        scale: [1.0, 1.0],
        ratio: [1e-9, 1e9],
        flip: 0.0,
        repeats: 1,
        mixup: 0.0,
        cutmix: 0.0,
        interpolation: Interpolation::Bilinear,
        rand_augment: Some(RandAugmentConfig { ops: 0, ..Default::default() }),
        ..config()
    };
    config.erase.probability = 0.0;
    changes(&mut config);
    let batches = all(&loader(root, &config, TRAIN), epoch, 0);
    tch::Tensor::cat(&batches.iter().map(|b| &b.images).collect::<Vec<_>>(), 0)
}

#[test]
fn colour_jitter_gives_way_to_rand_augment() {
    let root = folder();
    let none = still(root.path(), 0, |c| c.color_jitter = 0.0);
    assert_eq!(still(root.path(), 0, |_| ()), none);
    assert_ne!(still(root.path(), 0, |c| c.force_color_jitter = true), none);
    assert_ne!(still(root.path(), 0, |c| c.rand_augment = None), none);
}

#[test]
fn images_are_flipped_left_to_right_as_often_as_the_config_says() {
    let root = folder();
    let (mut flipped, mut images) = (0, 0);
    for epoch in 0..60 {
        // What a flip changes, it leaves in the same place of the epoch.
        let plain = still(root.path(), epoch, |_| ());
        assert!(epoch > 0 || still(root.path(), epoch, |c| c.flip = 1.0) == plain.flip([3]));
        let some = still(root.path(), epoch, |c| c.flip = 0.25);
        for i in 0..plain.size()[0] {
            images += 1;
            match (some.get(i) == plain.get(i), some.get(i) == plain.get(i).flip([2])) {
                (true, false) => {}
                (false, true) => flipped += 1,
                other => panic!("image {i}: {other:?}"),
            }
        }
    }
    // Four standard deviations of the binomial.
    let (n, p) = (f64::from(images), 0.25);
    assert!((f64::from(flipped) - n * p).abs() < 4.0 * (n * p * (1.0 - p)).sqrt(), "{flipped} of {images}");
}

#[test]
fn a_batch_larger_than_the_data_is_said() {
    let root = folder();
    let folder = FolderConfig { folder: "train".into(), limit: None };
    let options = ClassLoaderOptions { batch_size: 16, ..TRAIN };
    let opened = ImageFolder::open(&folder, root.path()).unwrap();
    let error = ClassLoader::new(opened, &config(), options).unwrap_err().to_string();
    assert!(error.contains("15 images") && error.contains("drop_last"), "{error}");
}

#[test]
fn the_loss_is_the_mean_cross_entropy_with_soft_targets() {
    let logits = tch::Tensor::from_slice(&[0.0f32, 0.0, 0.0, 1.0, 2.0, 4.0]).view([2, 3]);
    let targets = tch::Tensor::from_slice(&[0.2f32, 0.5, 0.3, 0.1, 0.0, 0.9]).view([2, 3]);
    let found = cross_entropy(&logits, &targets).double_value(&[]);
    let sum = 1f64.exp() + 2f64.exp() + 4f64.exp();
    let second = -(0.1 * (1.0 - sum.ln()) + 0.9 * (4.0 - sum.ln()));
    assert!((found - (3f64.ln() + second) / 2.0).abs() < 1e-6, "{found}");
}

#[test]
fn accuracies_weigh_images_and_leave_out_classes_without_any() {
    let count = |images, first, five| Count { images, first, five };
    let accuracy = Accuracy {
        classes: ["a", "b", "none"].map(String::from).to_vec(),
        counts: vec![count(4, 1, 3), count(6, 6, 6), count(0, 0, 0)],
        loss: 0.5,
    };
    assert_eq!((accuracy.top1(), accuracy.top5()), (0.7, 0.9));
    let json = serde_json::Value::Object(accuracy.to_json());
    assert_eq!(json["per_class"]["a"]["top1"], 0.25);
    assert_eq!((json["per_class"]["b"]["top5"].as_f64(), json["per_class"].get("none")), (Some(1.0), None));
    let lines = accuracy.class_lines(1);
    assert!(lines.starts_with("  a  0.250  of 4 images\n") && lines.contains("1 better"), "{lines}");
}

/// A small classifier's config, with the folder of its data.
fn experiment(root: &Path, changes: &[&str]) -> ClassifyConfig {
    let root = format!("data.root={}", root.display());
    let small = ["backbone.name=pvig_ti", "backbone.channels=[8,8,16,16]", "backbone.blocks=[1,1,1,1]", "data.size=32"];
    let changes: Vec<String> = small.iter().chain(changes).chain([&&*root]).map(|c| c.to_string()).collect();
    ClassifyConfig::from_json_with("{}", &changes).unwrap()
}

#[test]
fn an_evaluation_looks_at_the_five_best_scores_and_weighs_images_not_batches() {
    let root = tempfile::tempdir().unwrap();
    for class in 0..7 {
        let folder = root.path().join("val").join(class.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        RgbImage::new(32, 32).save(folder.join("0.png")).unwrap();
    }
    let config = experiment(root.path(), &[]);
    let store = nn::VarStore::new(Device::Cpu);
    let model = Classifier::new(&store.root(), &config.model.backbone, 7).unwrap();
    // The scores of every image: class 0 is the best, 6 the worst.
    let variables = store.variables();
    tch::no_grad(|| {
        let _ = variables["prediction.4.weight"].shallow_clone().zero_();
        variables["prediction.4.bias"].shallow_clone().copy_(&-tch::Tensor::arange(7, (Kind::Float, Device::Cpu)));
    });
    let val = ImageFolder::open(&config.data.val, root.path()).unwrap();
    // Batches of three, three and one.
    let evaluator = ClassEvaluator::new(val, &config, 3, InferencePrecision::default()).unwrap();
    let found = evaluator.evaluate(&model, Device::Cpu, &Ranks::default(), |_, _| true).unwrap().unwrap();
    let count = |class: usize| Count { images: 1, first: usize::from(class == 0), five: usize::from(class < 5) };
    assert_eq!(found.counts, (0..7).map(count).collect::<Vec<_>>());
    // −log softmax of class k is log Σ e^−j + k.
    let expected = (0..7).map(|j| (-f64::from(j)).exp()).sum::<f64>().ln() + 3.0;
    assert!((found.loss - expected).abs() < 1e-5, "{} {expected}", found.loss);
}

#[test]
fn a_run_that_goes_on_keeps_the_order_of_its_classes() {
    let root = folder();
    let known = Classes::numbered(&["c", "b", "gone", "a"].map(String::from));
    let config =
        || experiment(root.path(), &["eval_every=0", "batch_size=4", "data.repeats=1", "data.drop_last=false"]);
    let (task, feed) = Classification::open(config(), Some(&known)).unwrap();
    assert_eq!(task.classes(), &known);
    let batches = all(&feed, 0, 0);
    let named: Vec<(&str, usize)> = batches
        .iter()
        .flat_map(|batch| batch.names.iter().zip(&batch.labels))
        .map(|(name, label)| (name.split('/').next().unwrap(), *label))
        .collect();
    assert_eq!(named.len(), 15);
    for (name, label) in named {
        assert_eq!(name, known[label].name);
    }
    let few = Classes::numbered(&["a", "c"].map(String::from));
    let error = format!("{:#}", Classification::open(config(), Some(&few)).unwrap_err());
    assert!(error.contains("a resumed run keeps its classes") && error.contains("the class `b`"), "{error}");
}
