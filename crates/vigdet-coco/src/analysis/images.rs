//! All detections of an image against all its objects, whatever their categories.

use crate::error::Result;
use crate::eval::group::{sort_by_score, Member, Ranked};
use crate::eval::matching::Group;
use crate::eval::shapes::Overlaps;
use crate::eval::{IouType, Params, Task};
use crate::types::{Dataset, Detection};
use rayon::prelude::*;

/// One image: what was detected, what is there, and which lie over each other.
pub(crate) struct ImageView {
    /// Detections that count (the best of each category), by category.
    pub detections: Vec<Seen>,
    /// Objects, crowds included.
    pub objects: Vec<Object>,
}

/// One detection.
pub(crate) struct Seen {
    /// Place in the results.
    pub index: u32,
    /// Place among the categories.
    pub category: usize,
    pub score: f64,
    /// The object of its category that it finds, as the evaluation matches: never the one with id 0, unless it is a crowd.
    pub found: Option<usize>,
    /// Objects, crowds excluded, that it overlaps by at least the least overlap, with the overlap.
    pub overlaps: Vec<(usize, f64)>,
}

/// One object.
pub(crate) struct Object {
    /// Place among the categories.
    pub category: usize,
    /// Neither right nor wrong to detect.
    pub crowd: bool,
}

/// Everything that is needed to look at images one by one.
pub(crate) struct Images<'a> {
    task: Task<'a>,
    /// One threshold, one area range.
    matching: Params,
    /// By image: (category, member).
    detections: Vec<Vec<(usize, Member)>>,
    objects: Vec<Vec<(usize, Member)>>,
}

impl<'a> Images<'a> {
    /// Matches at overlap `iou`; notes overlaps from `least` on.
    pub(crate) fn new(
        truth: &'a Dataset,
        detections: &'a [Detection],
        iou_type: IouType,
        params: &Params,
        iou: f64,
        least: f64,
    ) -> Result<Images<'a>> {
        let all = crate::eval::AreaRange::new("all", f64::NEG_INFINITY, f64::INFINITY);
        let matching =
            Params { iou_thresholds: vec![iou], areas: vec![all], use_categories: true, ..params.clone() }
                .checked()?;
        // The overlaps kept are those from the smallest threshold on.
        let task = Task::new(
            truth,
            detections,
            iou_type,
            &Params { iou_thresholds: vec![least, iou], ..matching.clone() },
        )?;
        let by_image = |bins: &[Vec<Member>]| {
            let mut images = vec![Vec::new(); task.scope.images.len()];
            for (category, bin) in bins.iter().enumerate() {
                for &member in bin {
                    images[member.image as usize].push((category, member));
                }
            }
            images
        };
        let (detections, objects) = (by_image(&task.bins.detections), by_image(&task.bins.truths));
        Ok(Images { task, matching, detections, objects })
    }

    /// Number of categories.
    pub(crate) fn categories(&self) -> usize {
        self.task.scope.categories.len()
    }

    /// The categories, by id.
    pub(crate) fn category_list(&self) -> Vec<crate::types::Category> {
        crate::eval::categories(self.task.truth, &self.task.scope)
    }

    /// What `of` makes of each image, in the order of their ids.
    pub(crate) fn each<T: Send>(&self, of: impl Fn(ImageView) -> T + Sync) -> Result<Vec<T>> {
        (0..self.detections.len()).into_par_iter().map(|image| self.view(image).map(&of)).collect()
    }

    fn view(&self, image: usize) -> Result<ImageView> {
        let annotations = &self.task.truth.annotations;
        let members: Vec<Member> = self.objects[image].iter().map(|&(_, member)| member).collect();
        let mut view = ImageView {
            detections: Vec::new(),
            objects: (self.objects[image].iter())
                .map(|&(category, member)| Object {
                    category,
                    crowd: annotations[member.index as usize].iscrowd,
                })
                .collect(),
        };
        let mut overlaps = Overlaps::default();
        let mut group = Group::new(&self.matching);
        let mut rest = &self.detections[image][..];
        while let Some(&(category, _)) = rest.first() {
            let (these, others) =
                rest.split_at(rest.iter().take_while(|(other, _)| *other == category).count());
            rest = others;
            let bin: Vec<Member> = these.iter().map(|&(_, member)| member).collect();
            let mut ranked: Vec<Ranked> = sort_by_score(&bin, self.task.detections);
            ranked.truncate(self.matching.most_dets());
            self.task.shapes.compute(&ranked, &members, &mut overlaps)?;
            group.begin(members.iter().map(|member| &annotations[member.index as usize]));
            for (place, ranked) in ranked.iter().enumerate() {
                let candidates = overlaps.candidates(place);
                let own: Vec<_> = candidates
                    .iter()
                    .copied()
                    .filter(|candidate| view.objects[candidate.truth as usize].category == category)
                    .collect();
                // An object with id 0 is taken but never counts as found, as in the evaluation; a crowd counts for nothing anyway.
                let found = group.find(&own, 0, 0).filter(|&object| {
                    view.objects[object].crowd || annotations[members[object].index as usize].id != 0
                });
                let overlaps = candidates
                    .iter()
                    .map(|candidate| (candidate.truth as usize, candidate.iou))
                    .filter(|&(object, _)| !view.objects[object].crowd)
                    .collect();
                let score = self.task.detections[ranked.index as usize].score;
                view.detections.push(Seen { index: ranked.index, category, score, found, overlaps });
            }
        }
        Ok(view)
    }
}
