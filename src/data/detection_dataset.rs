//! A split of a data set of detections: images of a folder and their objects, of COCO's layout or any other.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use rayon::prelude::*;
use vigdet_coco::types::{Annotation, Dataset, Image, Segmentation};
use vigdet_dataset::images::slash_names;
use vigdet_dataset::Import;

use super::decode;
use super::mask::Mask;
use super::report::OpenReport;
use super::sample::{ImageInfo, Sample, Target};
use crate::classes::{list, Classes};
use crate::config::SplitConfig;

/// Objects whose clipped box has a side shorter than this, in pixels, are dropped (as mmdetection does): their
/// regression targets would be huge, and no detector sees them.
const SHORTEST_SIDE: f64 = 1.0;

/// A box may leave its image by this much, in pixels, before it counts as clipped: annotations are rounded to
/// hundredths.
const ROUNDING: f64 = 0.01;

/// The folder of a data set. In another layout than COCO's, where all splits are read at once, it is read only once.
#[derive(Debug)]
pub struct DataFolder {
    root: PathBuf,
    import: OnceCell<Import>,
}

impl DataFolder {
    /// A folder that nothing is read of yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), import: OnceCell::new() }
    }

    /// All splits, in whatever layout the folder is recognised to have.
    fn import(&self) -> Result<&Import> {
        if let Some(import) = self.import.get() {
            return Ok(import);
        }
        let import = Import::open(&self.root)?;
        Ok(self.import.get_or_init(|| import))
    }
}

/// Images and objects of one split, in the order of their ids.
///
/// Category ids of any kind become labels 0, 1, 2, … in the order of the ids.
#[derive(Debug)]
pub struct DetectionDataset {
    folder: PathBuf,
    /// The annotation file, where there is one.
    source: Option<PathBuf>,
    dataset: Dataset,
    infos: Vec<ImageInfo>,
    /// For each image, where its annotations are in `dataset.annotations`.
    objects: Vec<Vec<usize>>,
    classes: Classes,
    labels: HashMap<i64, i64>,
    report: OpenReport,
}

impl DetectionDataset {
    /// Reads the annotations of `split`, whose paths are relative to `root`, and checks them.
    ///
    /// With `for_training`, images without a usable object that is not a crowd are dropped. `split.limit` then keeps
    /// the first images.
    ///
    /// Errors: files that are not there or not COCO, contradictory (ids used twice, annotations of unknown images or
    /// categories), file names that leave the image folder, a folder with none of the images, nothing left to use.
    /// What can be worked with is counted in [`DetectionDataset::report`].
    pub fn open(split: &SplitConfig, root: &Path, for_training: bool) -> Result<Self> {
        Self::open_with_exif(split, root, for_training, false)
    }

    /// [`DetectionDataset::open`] for images that are turned as their EXIF orientation says, where `exif` is set: sizes
    /// that the file lacks are those after turning.
    pub fn open_with_exif(split: &SplitConfig, root: &Path, for_training: bool, exif: bool) -> Result<Self> {
        Self::open_in(&DataFolder::new(root), split, for_training, exif)
    }

    /// [`DetectionDataset::open_with_exif`] in a folder that is opened for several splits.
    pub fn open_in(data: &DataFolder, split: &SplitConfig, for_training: bool, exif: bool) -> Result<Self> {
        let root = data.root.as_path();
        let path = root.join(&split.annotations);
        let folder = root.join(&split.images);
        if !path.is_file() && split.has_usual_names() && root.is_dir() {
            return Self::open_other(data, split, for_training, exif).with_context(|| {
                format!(
                    "there is no annotation file {}, and the folder cannot be read in another layout either",
                    path.display()
                )
            });
        }
        ensure!(
            path.is_file(),
            "there is no annotation file {}: --data takes a folder with COCO's layout; other names go with \
             --set data.train.annotations=… and data.val.annotations=…",
            path.display()
        );
        ensure!(
            folder.is_dir(),
            "there is no image folder {}: --data takes a folder with COCO's layout; other names go with \
             --set data.train.images=… and data.val.images=…",
            folder.display()
        );
        let (dataset, warnings) = vigdet_coco::read_dataset_with_warnings(&path)?;
        let mut opened = Self::from_dataset(dataset, folder, split.limit, for_training, exif)
            .with_context(|| format!("annotations {}", path.display()))?;
        opened.report.notes.extend(warnings.iter().map(ToString::to_string));
        opened.source = Some(path);
        Ok(opened)
    }

    /// The same of a folder in whatever layout it is recognised to have: to train on the split `train`, else `val`, or
    /// `test` where there is no `val`. A folder with a single split has no other to validate on.
    fn open_other(data: &DataFolder, split: &SplitConfig, for_training: bool, exif: bool) -> Result<Self> {
        let (root, import) = (&data.root, data.import()?);
        let names: &[&str] = if for_training { &["train", "all"] } else { &["val", "test"] };
        let found = names.iter().find_map(|name| import.split(name)).with_context(|| {
            let there: Vec<&str> = import.splits.iter().map(|split| split.name.as_str()).collect();
            format!(
                "{} is read as {}, and its splits are: {}. There is none to {}: `vigdet dataset split` makes some",
                root.display(),
                import.layout,
                there.join(", "),
                if for_training { "train on (train)" } else { "validate on (val or test)" }
            )
        })?;
        let mut opened =
            Self::from_dataset(found.dataset.clone(), found.folder.clone(), split.limit, for_training, exif)
                .with_context(|| format!("split {} of {}", found.name, root.display()))?;
        opened.report.notes.insert(0, format!("read as {}, split {}", import.layout, found.name));
        opened.report.notes.extend(found.notes.iter().cloned());
        Ok(opened)
    }

    /// The annotation file, where it was read from one.
    pub fn source(&self) -> Option<&Path> {
        self.source.as_deref()
    }

    /// [`DetectionDataset::open_with_exif`] for annotations in memory, whose ids must be unique; file names are
    /// relative to `folder`.
    pub fn from_dataset(
        mut dataset: Dataset,
        folder: PathBuf,
        limit: Option<usize>,
        for_training: bool,
        exif: bool,
    ) -> Result<Self> {
        ensure!(!dataset.categories.is_empty(), "the file has no categories");
        let classes = Classes::of_categories(&dataset.categories);
        let labels: HashMap<i64, i64> = classes.iter().zip(0..).map(|(class, label)| (class.id, label)).collect();
        dataset.images.sort_by_key(|image| image.id);
        let mut report = OpenReport { images_in_file: dataset.images.len(), ..OpenReport::default() };
        let slashed = slash_names(&mut dataset.images, &folder);
        if slashed > 0 {
            report.notes.push(format!("{slashed} file names have `\\` between folders, which is read as `/`"));
        }
        for image in &mut dataset.images {
            check_name(&image.file_name).with_context(|| format!("image {}", image.id))?;
            if image.width == 0 || image.height == 0 {
                // Clipping and grouping need a size: it is in the file's header. An unreadable file is reported when
                // it is used.
                report.sizes_missing += 1;
                if let Ok((width, height, swaps)) = decode::dimensions(&folder.join(&image.file_name)) {
                    (image.width, image.height) = if exif && swaps { (height, width) } else { (width, height) };
                }
            }
        }
        report.notes.extend(missing_images(&dataset, &folder)?);

        let index: HashMap<i64, usize> = dataset.images.iter().enumerate().map(|(i, image)| (image.id, i)).collect();
        let mut objects: Vec<Vec<usize>> = vec![Vec::new(); dataset.images.len()];
        let mut usable: Vec<bool> = vec![false; dataset.images.len()];
        for (at, annotation) in dataset.annotations.iter().enumerate() {
            let Annotation { id, image_id, category_id, .. } = annotation;
            let Some(&i) = index.get(image_id) else {
                bail!("annotation {id} is in image {image_id}, which is not among the images");
            };
            ensure!(
                labels.contains_key(category_id),
                "annotation {id} has category {category_id}, which is not among the categories"
            );
            objects[i].push(at);
            let image = &dataset.images[i];
            usable[i] |= clip(annotation, image.width, image.height).is_some() && !annotation.iscrowd;
        }

        // Which images stay.
        let mut kept: Vec<usize> = (0..dataset.images.len()).filter(|&i| !for_training || usable[i]).collect();
        report.without_objects = usable.iter().filter(|u| !**u).count();
        report.dropped = dataset.images.len() - kept.len();
        if let Some(limit) = limit {
            report.over_limit = kept.len().saturating_sub(limit);
            kept.truncate(limit);
        }
        ensure!(
            !kept.is_empty(),
            "no image is left to {}",
            if for_training {
                "train on: none has an object (an annotation that is not a crowd, with a box inside its image)"
            } else {
                "evaluate on"
            }
        );
        let kept_objects: Vec<Vec<usize>> = kept.iter().map(|&i| std::mem::take(&mut objects[i])).collect();
        let (dataset, objects) = restrict(dataset, &kept, kept_objects);
        let info = |i: &Image| ImageInfo { id: i.id, file: i.file_name.clone(), width: i.width, height: i.height };
        let infos: Vec<ImageInfo> = dataset.images.iter().map(info).collect();
        report.images = infos.len();
        report.classes = classes.len();
        for (image, of_image) in dataset.images.iter().zip(&objects) {
            for &at in of_image {
                count(&mut report, &dataset.annotations[at], image.width, image.height);
            }
        }
        if for_training {
            let seen: HashSet<i64> = dataset.annotations.iter().map(|a| a.category_id).collect();
            let unseen: Vec<&str> = classes.iter().filter(|c| !seen.contains(&c.id)).map(|c| c.name.as_str()).collect();
            if !unseen.is_empty() {
                report.notes.push(format!(
                    "classes without an object to learn: {} (`vigdet dataset import --out NEW --drop-empty-classes` \
                     leaves out those of no split)",
                    list(unseen)
                ));
            }
        }
        Ok(Self { folder, source: None, dataset, infos, objects, classes, labels, report })
    }

    /// Refuses images that are links out of the image folder, or lie behind such links.
    ///
    /// # Errors
    /// Names the first.
    pub fn check_links(&self) -> Result<()> {
        let folder = self.folder.canonicalize().with_context(|| format!("no folder {}", self.folder.display()))?;
        let leaves = |i: &usize| self.path(*i).canonicalize().is_ok_and(|path| !path.starts_with(&folder));
        if let Some(i) = (0..self.len()).into_par_iter().find_first(leaves) {
            bail!(
                "image {} is a link out of {} (data.links=true follows it)",
                self.infos[i].file,
                self.folder.display()
            );
        }
        Ok(())
    }

    /// The classes: label `i` is `classes()[i]`.
    pub fn classes(&self) -> &Classes {
        &self.classes
    }

    /// The label of a category id.
    pub fn label(&self, category_id: i64) -> Option<i64> {
        self.labels.get(&category_id).copied()
    }

    /// The category id of a label.
    ///
    /// # Panics
    /// If there is no such label: labels come from this data set or from a model built for it.
    pub fn category_id(&self, label: i64) -> i64 {
        self.classes[label as usize].id
    }

    /// Objects of a class in the used images, crowd regions aside.
    pub fn objects_of(&self, category_id: i64) -> usize {
        self.annotations().filter(|(_, a)| a.category_id == category_id && !a.iscrowd).count()
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.infos.len()
    }

    /// Whether there is no image. [`DetectionDataset::open`] never gives such a data set.
    pub fn is_empty(&self) -> bool {
        self.infos.is_empty()
    }

    /// Image `i` as the annotation file describes it.
    pub fn info(&self, i: usize) -> &ImageInfo {
        &self.infos[i]
    }

    /// Where image `i` is.
    pub fn path(&self, i: usize) -> PathBuf {
        self.folder.join(&self.infos[i].file)
    }

    /// Whether any object has a mask that training can use.
    pub fn has_masks(&self) -> bool {
        self.objects_with_masks().any(|has_mask| has_mask)
    }

    /// Counts the objects without such a mask for [`DetectionDataset::report`].
    pub fn count_masks(&mut self) {
        self.report.without_mask = self.objects_with_masks().filter(|has_mask| !has_mask).count();
    }

    /// For each object that is not a crowd, whether it has a mask that training can use.
    fn objects_with_masks(&self) -> impl Iterator<Item = bool> + '_ {
        self.annotations()
            .filter(|(info, a)| !a.iscrowd && clip(a, info.width, info.height).is_some())
            .map(|(info, a)| a.segmentation.as_ref().is_some_and(|s| Mask::new(s, info.height, info.width).is_some()))
    }

    /// Checks that masks can be evaluated, for which every annotation needs one, crowds too.
    ///
    /// # Errors
    /// Names the first annotation without, and the file.
    pub fn check_masks(&self) -> Result<()> {
        for (info, annotation) in self.annotations() {
            let reason = match &annotation.segmentation {
                None => "it has no segmentation".to_string(),
                Some(Segmentation::Polygons(polygons)) if polygons.is_empty() => {
                    "its segmentation is empty".to_string()
                }
                Some(segmentation) => match segmentation.to_rle(info.height, info.width) {
                    Ok(_) => continue,
                    Err(error) => format!("its segmentation: {error}"),
                },
            };
            let file = self.source.as_ref().map_or(String::new(), |path| format!(" in {}", path.display()));
            bail!(
                "masks cannot be evaluated on annotation {}{file}: {reason}; --set model.mask=false detects boxes only",
                annotation.id
            );
        }
        Ok(())
    }

    /// The annotations of the used images.
    fn annotations(&self) -> impl Iterator<Item = (&ImageInfo, &Annotation)> {
        self.infos
            .iter()
            .zip(&self.objects)
            .flat_map(move |(info, of_image)| of_image.iter().map(move |&at| (info, &self.dataset.annotations[at])))
    }

    /// What was found and what was left out.
    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    /// The images that are used and all their annotations as they were in the file: what an evaluation needs.
    pub fn ground_truth(&self) -> &Dataset {
        &self.dataset
    }

    /// The objects of image `i`, with their boxes clipped to an image of `width × height` pixels.
    pub fn target(&self, i: usize, width: u32, height: u32) -> Target {
        let mut target = Target::default();
        for &at in &self.objects[i] {
            let annotation = &self.dataset.annotations[at];
            let (Some(corners), Some(&label)) =
                (clip(annotation, width, height), self.labels.get(&annotation.category_id))
            else {
                continue;
            };
            target.boxes.push(corners.map(|v| v as f32));
            target.labels.push(label);
            target.crowd.push(annotation.iscrowd);
            target.masks.push(annotation.segmentation.as_ref().and_then(|s| Mask::new(s, height, width)));
        }
        target
    }

    /// Decodes image `i`. The sample's `info` has the size of the decoded image, which counts where the annotation
    /// file says otherwise; with `exif` that is the size after turning.
    pub fn sample(&self, i: usize, exif: bool) -> Result<Sample> {
        let image = decode::open(&self.path(i), exif)?;
        let (width, height) = image.dimensions();
        let info = ImageInfo { width, height, ..self.infos[i].clone() };
        Ok(Sample { info, image, target: self.target(i, width, height) })
    }
}

/// Refuses names that lead out of the image folder. Links in it: see [`DetectionDataset::check_links`].
fn check_name(name: &str) -> Result<()> {
    ensure!(!name.is_empty(), "file_name is empty");
    let inside = Path::new(name).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    ensure!(inside, "file_name `{name}` leaves the image folder: names must be relative to it, without `..`");
    Ok(())
}

/// Says which images are not there. Where it is most of them, the folder is the wrong one, and is refused.
fn missing_images(dataset: &Dataset, folder: &Path) -> Result<Option<String>> {
    let names: Vec<&str> = dataset.images.iter().map(|image| image.file_name.as_str()).collect();
    let missing: Vec<&str> = names.par_iter().filter(|name| !folder.join(name).exists()).copied().collect();
    let said =
        || format!("{} of {} images are not in {}: {}", missing.len(), names.len(), folder.display(), list(&missing));
    ensure!(2 * missing.len() <= names.len(), "{}", said());
    Ok((!missing.is_empty()).then(|| said() + "; they count as unreadable"))
}

/// Corners of an annotation's box inside an image, or `None` where too little is left of it. An unknown size (0) does
/// not clip.
fn clip(annotation: &Annotation, width: u32, height: u32) -> Option<[f64; 4]> {
    let [x, y, w, h] = annotation.bbox;
    let bound = |side: u32| if side == 0 { f64::INFINITY } else { f64::from(side) };
    let (right, bottom) = (bound(width), bound(height));
    let corners = [x.clamp(0.0, right), y.clamp(0.0, bottom), (x + w).clamp(0.0, right), (y + h).clamp(0.0, bottom)];
    let keep = corners.iter().all(|v| v.is_finite())
        && corners[2] - corners[0] >= SHORTEST_SIDE
        && corners[3] - corners[1] >= SHORTEST_SIDE;
    keep.then_some(corners)
}

fn count(report: &mut OpenReport, annotation: &Annotation, width: u32, height: u32) {
    let Some(corners) = clip(annotation, width, height) else {
        report.degenerate += 1;
        return;
    };
    let [x, y, w, h] = annotation.bbox;
    let moved = corners.iter().zip([x, y, x + w, y + h]).any(|(a, b)| (a - b).abs() > ROUNDING);
    report.clipped += usize::from(moved);
    report.crowds += usize::from(annotation.iscrowd);
    report.objects += usize::from(!annotation.iscrowd);
}

/// The kept images and their annotations alone, with the annotations' new places.
fn restrict(dataset: Dataset, kept: &[usize], objects: Vec<Vec<usize>>) -> (Dataset, Vec<Vec<usize>>) {
    let mut place = vec![usize::MAX; dataset.annotations.len()];
    for &at in objects.iter().flatten() {
        place[at] = 0;
    }
    let mut annotations = Vec::new();
    for (at, annotation) in dataset.annotations.into_iter().enumerate() {
        if place[at] == 0 {
            place[at] = annotations.len();
            annotations.push(annotation);
        }
    }
    let objects = objects.into_iter().map(|of_image| of_image.into_iter().map(|at| place[at]).collect()).collect();
    let mut remaining = kept.iter().copied().peekable();
    let images = dataset
        .images
        .into_iter()
        .enumerate()
        .filter_map(|(i, image)| remaining.next_if_eq(&i).map(|_| image))
        .collect();
    (Dataset { images, annotations, categories: dataset.categories }, objects)
}
