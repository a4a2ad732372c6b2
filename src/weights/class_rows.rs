//! Rows of class layers: taken where file and model know the same class.

use tch::Tensor;

use super::load_report::ClassReport;
use crate::classes::{Class, Classes};

/// Layers whose size is the number of classes: of detectors, and of the classifiers of ViG, ResNet, EfficientNet,
/// MobileNet and transformers; and how many rows come before those of the first class (a two-stage detector's
/// background).
const CLASSIFIERS: [(&str, i64); 10] = [
    ("cls_logits", 0),
    ("cls_score", 1),
    ("bbox_pred", 1),
    ("mask_fcn_logits", 1),
    ("prediction.4", 0),
    ("fc", 0),
    ("_fc", 0),
    ("classifier.3", 0),
    ("head", 0),
    ("dist_head", 0),
];
/// The region proposal network, whose layers have such names too, but say nothing of classes.
const PROPOSALS: &str = "rpn.head.";

/// How many rows a layer has before those of classes; `None`: its size is not the number of classes.
pub(super) fn rows_before_classes(name: &str) -> Option<i64> {
    let (layer, _) = name.rsplit_once('.')?;
    if layer.contains(PROPOSALS) {
        return None;
    }
    let fits = |suffix: &str| layer.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    CLASSIFIERS.iter().find(|(suffix, _)| fits(suffix)).map(|(_, before)| *before)
}

/// Which classes of a model a file knows, and which it does not.
pub(super) fn compare(file: &Classes, model: &Classes) -> ClassReport {
    let (kept, anew): (Vec<&Class>, Vec<&Class>) = model.iter().partition(|class| file.find(class).is_some());
    let unused = file.iter().filter(|class| model.find(class).is_none());
    let names = |classes: Vec<&Class>| classes.into_iter().map(|class| class.name.clone()).collect();
    ClassReport { kept: names(kept), anew: names(anew), unused: names(unused.collect()) }
}

/// A class layer `[outer · (before + classes) · inner, …]` with the rows of the file where both know the class, and
/// the model's own for the others. `None`: no class is in both, or the file's layer is not for its classes.
///
/// RetinaNet's layer has such rows for each anchor; Mask R-CNN's box layer has four for each class.
pub(super) fn take_rows(
    source: &Tensor,
    own: &Tensor,
    before: i64,
    (file, model): (&Classes, &Classes),
) -> Option<Tensor> {
    let (of_file, of_model) = (file.len() as i64 + before, model.len() as i64 + before);
    let (from, to) = (source.size(), own.size());
    let groups = to.first()? / of_model.max(1);
    let fits = from.len() == to.len() && from[1..] == to[1..] && groups > 0;
    if !fits || to[0] != groups * of_model || from[0] != groups * of_file {
        return None;
    }
    let found: Vec<(i64, i64)> =
        (0..).zip(model.iter()).filter_map(|(i, class)| Some((i, file.find(class)? as i64))).collect();
    if found.is_empty() {
        return None;
    }
    // Without background the classes of an anchor lie side by side; with it, all rows of a class do.
    let view = |t: &Tensor, classes: i64| match before {
        0 => t.view([groups, classes, -1]),
        _ => t.view([1, classes, -1]),
    };
    tch::no_grad(|| {
        let taken = own.detach().copy();
        let (rows, all) = (view(&taken, of_model), view(&source.to_kind(own.kind()).contiguous(), of_file));
        let background = (0..before).map(|row| (row, row));
        for (to, from) in background.chain(found.iter().map(|(to, from)| (to + before, from + before))) {
            rows.select(1, to).copy_(&all.select(1, from));
        }
        Some(taken)
    })
}
