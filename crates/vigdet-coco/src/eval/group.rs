//! Who meets whom: detections and objects by category, then by image.
//!
//! Only pairs of category and image that occur take memory, never images × categories.

use super::ids::Ids;
use super::params::Params;
use super::warning::Warning;
use crate::error::{Error, Result};
use crate::types::{Dataset, Detection};

/// A member of a bin: its image (index among the images evaluated) and its index in the data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub image: u32,
    pub index: u32,
}

/// Detections and objects of one category, each in file order. Without categories there is one bin, in which they are
/// ordered by category first.
pub(crate) struct Bins {
    pub detections: Vec<Vec<Member>>,
    pub truths: Vec<Vec<Member>>,
}

/// The images and categories that are evaluated.
pub(crate) struct Scope {
    pub images: Ids,
    pub categories: Ids,
}

impl Scope {
    pub(crate) fn new(truth: &Dataset, params: &Params) -> Scope {
        let named = |ids: &Option<Vec<i64>>| ids.as_ref().map(|ids| Ids::new(ids.iter().copied()));
        let of_images = || Ids::new(truth.images.iter().map(|image| image.id));
        let of_categories = || Ids::new(truth.categories.iter().map(|category| category.id));
        Scope {
            images: named(&params.image_ids).unwrap_or_else(of_images),
            categories: named(&params.category_ids).unwrap_or_else(of_categories),
        }
    }
}

/// Sorts everything into its bin.
///
/// # Errors
/// A detection is in an image that the ground truth does not have; as pycocotools, which takes that for the wrong file.
pub(crate) fn bins(
    truth: &Dataset,
    detections: &[Detection],
    scope: &Scope,
    params: &Params,
    warnings: &mut Vec<Warning>,
) -> Result<Bins> {
    if u32::try_from(detections.len().max(truth.annotations.len())).is_err() {
        return Err(Error::Data("more than 4294967295 results or annotations".to_owned()));
    }
    let known_images = params.image_ids.is_some().then(|| Ids::new(truth.images.iter().map(|image| image.id)));
    let known_categories = Ids::new(truth.categories.iter().map(|category| category.id));
    let mut unknown = None;
    let mut by_category = vec![Vec::new(); scope.categories.len()];
    for (detection, index) in detections.iter().zip(0..) {
        let Detection { image_id, category_id, .. } = *detection;
        let image = scope.images.index_of(image_id);
        if known_images.as_ref().map_or(image.is_none(), |images| images.index_of(image_id).is_none()) {
            return Err(Error::Data(format!(
                "result {index} is in image {image_id}, which the ground truth does not have: are these results for \
                 another set of images?"
            )));
        }
        match (image, scope.categories.index_of(category_id)) {
            (Some(image), Some(category)) => by_category[category].push(Member { image: image as u32, index }),
            _ if known_categories.index_of(category_id).is_none() => unknown.get_or_insert((0, category_id)).0 += 1,
            _ => {}
        }
    }
    if let Some((detections, category_id)) = unknown {
        warnings.push(Warning::UnknownCategory { detections, category_id });
    }
    let mut truths = vec![Vec::new(); scope.categories.len()];
    for (annotation, index) in truth.annotations.iter().zip(0..) {
        let found = (scope.images.index_of(annotation.image_id), scope.categories.index_of(annotation.category_id));
        if let (Some(image), Some(category)) = found {
            truths[category].push(Member { image: image as u32, index });
        }
    }
    if params.use_categories {
        Ok(Bins { detections: by_category, truths })
    } else {
        Ok(Bins { detections: vec![by_category.concat()], truths: vec![truths.concat()] })
    }
}

/// Detections of one category, grouped by image and sorted by score in each: see [`sort_by_score`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ranked {
    pub image: u32,
    key: ScoreKey,
    /// Position in the bin, so that equal scores keep their order.
    position: u32,
    pub index: u32,
}

/// Orders scores from high to low as a stable sort of their negatives does: 0 and −0 are equal, what is not a number is
/// last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ScoreKey(u64);

impl ScoreKey {
    #[inline]
    pub(crate) fn new(score: f64) -> ScoreKey {
        if score.is_nan() {
            return ScoreKey(u64::MAX);
        }
        // Adding 0 turns −0 into 0. Flipping makes the bits of floats ordered as numbers are.
        let bits = (-score + 0.0).to_bits();
        ScoreKey(if bits >> 63 == 1 { !bits } else { bits | 1 << 63 })
    }
}

/// Sorts by image, and in each image by score from high to low, equal scores in their order.
pub(crate) fn sort_by_score(bin: &[Member], detections: &[Detection]) -> Vec<Ranked> {
    let mut ranked: Vec<Ranked> = bin
        .iter()
        .zip(0..)
        .map(|(member, position)| Ranked {
            image: member.image,
            key: ScoreKey::new(detections[member.index as usize].score),
            position,
            index: member.index,
        })
        .collect();
    ranked.sort_unstable();
    ranked
}

#[cfg(test)]
mod tests {
    use super::ScoreKey;

    #[test]
    fn scores_sort_from_high_to_low() {
        let scores = [f64::INFINITY, 2.0, 1.0, 1e-310, 0.0, -1e-310, -1.0, f64::NEG_INFINITY, f64::NAN];
        for pair in scores.windows(2) {
            assert!(ScoreKey::new(pair[0]) < ScoreKey::new(pair[1]), "{pair:?}");
        }
        assert_eq!(ScoreKey::new(0.0), ScoreKey::new(-0.0));
    }
}
