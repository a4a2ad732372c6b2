//! Files that were changed at random: readers say no, or give what is there. They never panic, and take no memory that
//! the file is not large enough for.
//!
//! Corpora are the fixtures of the weights' tests and the configs. `FUZZ_SECONDS=600` tries each reader for so long
//! (`make fuzz`); without it a few hundred inputs do. The readers without libtorch have libFuzzer's coverage-guided
//! targets: crates/*/fuzz.

use std::path::Path;
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};
use vigdet::config::{ClassifyConfig, Config, Experiment};
use vigdet::data::decode;
use vigdet::runs::Line;
use vigdet::weights::{write_tensors, Checkpoint, Metadata, WeightFile};

use crate::Dice;

/// Numbers that readers trip over.
const TRICKY: [u64; 8] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff];

/// One to four changes: bits, bytes, numbers, parts that are cut, doubled, or come from another file.
fn mutate(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = corpus[dice.below(corpus.len())].clone();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        let length = 1 + dice.below(16.min(bytes.len().saturating_sub(at)));
        match dice.below(8) {
            _ if bytes.is_empty() => bytes.push(dice.next() as u8),
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = dice.next() as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..(at + length).min(bytes.len()))),
            4 => {
                let doubled = bytes[at..(at + length).min(bytes.len())].to_vec();
                bytes.splice(at..at, doubled);
            }
            5 => {
                let number = TRICKY[dice.below(TRICKY.len())].to_le_bytes();
                let width = [1, 2, 4, 8][dice.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            6 => {
                let other = &corpus[dice.below(corpus.len())];
                let from = dice.below(other.len());
                let part = other[from..(from + 4 * length).min(other.len())].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                // A number in text.
                let digits = bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
                let number = TRICKY[dice.below(TRICKY.len())].to_string();
                bytes.splice(at..at + digits, number.bytes());
            }
        }
    }
    bytes
}

/// Gives `read` changed inputs for as long as FUZZ_SECONDS says, else `few` of them. An input that takes long or
/// panics is named by its number: the sequence is the same in every run.
fn try_changed(name: &str, corpus: &[Vec<u8>], few: usize, read: impl Fn(&[u8])) {
    let seconds: Option<u64> = std::env::var("FUZZ_SECONDS").ok().map(|text| text.parse().unwrap());
    let (begin, mut dice, mut tried) = (Instant::now(), Dice::new(4), 0);
    let goes_on = |tried: usize| match seconds {
        Some(seconds) => begin.elapsed() < Duration::from_secs(seconds),
        None => tried < few,
    };
    corpus.iter().for_each(|whole| read(whole));
    while goes_on(tried) {
        let bytes = mutate(corpus, &mut dice);
        let start = Instant::now();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(&bytes)));
        let slow = start.elapsed() > Duration::from_secs(20);
        if result.is_err() || slow {
            let kept = std::env::temp_dir().join(format!("vigdet-{name}-{tried}"));
            std::fs::write(&kept, &bytes).unwrap();
            panic!("{name}: input {tried} {}: {}", if slow { "is slow" } else { "panics" }, kept.display());
        }
        tried += 1;
    }
    println!("{name}: {tried} inputs in {:.0} s", begin.elapsed().as_secs_f64());
}

fn fixtures(endings: &[&str]) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let wanted = |path: &&std::path::PathBuf| endings.iter().any(|end| path.to_string_lossy().ends_with(end));
    paths.iter().filter(wanted).map(|path| std::fs::read(path).unwrap()).collect()
}

/// Reads a file of weights, and every tensor that it says it has. A tensor is no larger than its file.
fn read_weights(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    let Ok(file) = WeightFile::open(path) else { return };
    let Ok(names) = file.names() else { return };
    for name in names {
        if let Ok(tensor) = file.tensor(&name) {
            assert_eq!(Some(tensor.size()), file.shape(&name));
            // Strides of 0 may show one number often; the memory behind is the file's.
            assert!(!tensor.is_contiguous() || tensor.numel() <= bytes.len(), "{name}");
        }
    }
    let _ = (file.metadata(), file.said(&["model"]), file.key());
    let _ = Checkpoint::open(path).map(|checkpoint| (checkpoint.task(), checkpoint.detector()));
}

#[test]
fn changed_pickles_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let corpus = fixtures(&[".pkl", ".pth", ".pt", ".pth.tar"]);
    assert!(corpus.len() > 10);
    try_changed("pickle", &corpus, 400, |bytes| read_weights(&path, bytes));
}

#[test]
fn changed_safetensors_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let tensors = vec![
        ("conv.weight".to_string(), Tensor::arange(24, (Kind::Float, tch::Device::Cpu)).view([2, 3, 4])),
        ("empty".to_string(), Tensor::zeros([0, 2], (Kind::Half, tch::Device::Cpu))),
        ("count".to_string(), Tensor::from_slice(&[7i64])),
    ];
    let classes = Metadata::from([
        ("classes".to_string(), "[[1,\"a\"]]".to_string()),
        ("config".to_string(), "{\"model\":{\"detector\":\"retinanet\"}}".to_string()),
    ]);
    write_tensors(&tensors, &path, &classes).unwrap();
    let ours = std::fs::read(&path).unwrap();
    // Others' files have no checksum: their changes get further.
    let theirs = safetensors_of_others(&ours);
    try_changed("safetensors", &[ours, theirs], 400, |bytes| read_weights(&path, bytes));
}

/// The same file without what says that vigdet wrote it.
fn safetensors_of_others(ours: &[u8]) -> Vec<u8> {
    let length = u64::from_le_bytes(ours[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&ours[8..8 + length]).unwrap();
    let metadata = header["__metadata__"].as_object_mut().unwrap();
    metadata.remove("crc32c");
    metadata.remove("writer");
    let header = header.to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &ours[8 + length..]].concat()
}

#[test]
fn changed_configs_and_changes_to_them_are_read_or_refused() {
    let presets = Config::PRESETS.iter().chain(ClassifyConfig::PRESETS).map(|(_, text)| text.as_bytes().to_vec());
    let mut corpus: Vec<Vec<u8>> = presets.collect();
    corpus.push(br#"{"data": {"size": [800, 1333]}, "train": {"lr": 1e-4}}"#.to_vec());
    corpus.push([b"[".repeat(300), b"]".repeat(300)].concat());
    try_changed("config", &corpus, 150, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let change = [text.lines().next().unwrap_or_default().to_string()];
        // What is read can be written and read again.
        if let Ok(config) = Config::from_json_with(&text, &[]) {
            assert_eq!(Config::from_json_with(&config.to_json().unwrap(), &[]).unwrap(), config);
        }
        if let Ok(config) = ClassifyConfig::from_json_with(&text, &[]) {
            assert_eq!(ClassifyConfig::from_json_with(&config.to_json().unwrap(), &[]).unwrap(), config);
        }
        let _ = (Config::from_json_with("{}", &change), ClassifyConfig::from_json_with("{}", &change));
    });
}

#[test]
fn changed_lines_of_a_log_are_read_or_refused() {
    let corpus = [
        &br#"{"iter":3,"epoch":1,"loss":2.5,"box":0.5,"lr":0.1,"grad_norm":7.0,"seconds":1.0,"data_wait":0.1}"#[..],
        br#"{"iter":4,"epoch":1,"skipped":"the loss `box` became NaN on a.png","seconds":1.0}"#,
        br#"{"iter":3,"epoch":1,"bbox":{"AP":0.25},"segm":{"AP":0.125},"seconds":3.0}"#,
    ]
    .map(<[u8]>::to_vec);
    try_changed("log", &corpus, 1000, |bytes| {
        if let Ok(line) = Line::parse(&String::from_utf8_lossy(bytes)) {
            assert_eq!(Line::parse(&line.to_json().to_string()).unwrap().iter(), line.iter());
        }
    });
}

#[test]
fn changed_images_are_decoded_or_refused() {
    let picture = image::RgbImage::from_fn(21, 13, |x, y| image::Rgb([(x * 11) as u8, (y * 17) as u8, 90]));
    let formats = [
        image::ImageFormat::Png,
        image::ImageFormat::Jpeg,
        image::ImageFormat::Bmp,
        image::ImageFormat::Gif,
        image::ImageFormat::Tiff,
        image::ImageFormat::WebP,
        image::ImageFormat::Pnm,
    ];
    let corpus: Vec<Vec<u8>> = formats
        .iter()
        .map(|format| {
            let mut bytes = std::io::Cursor::new(Vec::new());
            picture.write_to(&mut bytes, *format).unwrap();
            bytes.into_inner()
        })
        .collect();
    // A decoder that panics makes an unreadable image (`Reader`), which is no crash: what must not happen is that it
    // takes too much.
    try_changed("images", &corpus, 300, |bytes| {
        let decoded = std::panic::catch_unwind(|| decode::from_bytes(bytes, true));
        if let Ok(Ok(image)) = decoded {
            assert!(u64::from(image.width()) * u64::from(image.height()) <= 178_956_970);
        }
    });
}
