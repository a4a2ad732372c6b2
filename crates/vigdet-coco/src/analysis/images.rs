//! All detections of an image against all its objects, whatever their categories.

use crate::error::Result;
use crate::eval::geometry::{Candidate, Overlaps};
use crate::eval::group::{sort_by_score, Member, Ranked};
use crate::eval::matching::Group;
use crate::eval::{IouType, Params, Task};
use crate::types::{Category, Dataset, Detection};
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
    /// Index in the results.
    pub index: u32,
    /// Index among the categories.
    pub category: usize,
    pub score: f64,
    /// The object of its category that it finds, as the evaluation matches: never the one with id 0, unless it is a
    /// crowd.
    pub found: Option<usize>,
    /// Objects, crowds excluded, that it overlaps by at least the least overlap, with the overlap.
    pub overlaps: Vec<(usize, f64)>,
}

/// One object.
pub(crate) struct Object {
    /// Index among the categories.
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
        let matching = Params { iou_thresholds: vec![iou], areas: vec![all], ..params.clone() }.checked()?;
        // The overlaps kept are those from the smallest threshold on.
        let kept = Params { iou_thresholds: vec![least, iou], ..matching.clone() };
        let task = Task::new(truth, detections, iou_type, &kept)?;
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

    /// Number of categories. One without `use_categories`.
    pub(crate) fn categories(&self) -> usize {
        self.task.bins.truths.len()
    }

    /// The categories, by id. Without `use_categories` the one that all are.
    pub(crate) fn category_list(&self) -> Vec<Category> {
        if self.matching.use_categories {
            crate::eval::categories(self.task.truth, &self.task.scope)
        } else {
            vec![Category { name: "object".to_owned(), ..Category::default() }]
        }
    }

    /// What `of` makes of each image, in the order of their ids.
    pub(crate) fn each<T: Send>(&self, of: impl Fn(ImageView) -> T + Sync) -> Result<Vec<T>> {
        (0..self.detections.len()).into_par_iter().map(|image| self.view(image).map(&of)).collect()
    }

    fn view(&self, image: usize) -> Result<ImageView> {
        let annotations = &self.task.truth.annotations;
        let mut view = ImageView {
            detections: Vec::new(),
            objects: (self.objects[image].iter())
                .map(|&(category, member)| Object { category, crowd: annotations[member.index as usize].iscrowd })
                .collect(),
        };
        if self.detections[image].is_empty() {
            return Ok(view);
        }
        // A mask evaluation draws the objects of an image and category only where something is detected in it, and
        // fails where it cannot. What cannot be drawn and is not asked for overlaps nothing.
        let detected = |category| self.detections[image].binary_search_by_key(&category, |&(other, _)| other).is_ok();
        let (indices, members): (Vec<usize>, Vec<Member>) = (self.objects[image].iter().enumerate())
            .filter(|&(_, (category, member))| detected(*category) || self.task.shapes.can_draw(member))
            .map(|(index, &(_, member))| (index, member))
            .unzip();
        let mut overlaps = Overlaps::default();
        let mut group = Group::new(&self.matching);
        let mut rest = &self.detections[image][..];
        while let Some(&(category, _)) = rest.first() {
            let (these, others) = rest.split_at(rest.iter().take_while(|(other, _)| *other == category).count());
            rest = others;
            let bin: Vec<Member> = these.iter().map(|&(_, member)| member).collect();
            let mut ranked: Vec<Ranked> = sort_by_score(&bin, self.task.detections);
            ranked.truncate(self.matching.most_dets());
            self.task.shapes.compute(&ranked, &members, &mut overlaps)?;
            group.begin(members.iter().map(|member| &annotations[member.index as usize]));
            for (rank, ranked) in ranked.iter().enumerate() {
                let candidates = overlaps.candidates(rank);
                let object_of = |candidate: &Candidate| indices[candidate.truth as usize];
                let own: Vec<_> = (candidates.iter().copied())
                    .filter(|candidate| view.objects[object_of(candidate)].category == category)
                    .collect();
                // An object with id 0 is taken but never counts as found, as in the evaluation; a crowd counts for
                // nothing anyway.
                let counts = |&found: &usize| {
                    view.objects[indices[found]].crowd || annotations[members[found].index as usize].id != 0
                };
                let found = group.find(&own, 0, 0).filter(counts).map(|found| indices[found]);
                let overlaps = (candidates.iter())
                    .map(|candidate| (object_of(candidate), candidate.iou))
                    .filter(|&(object, overlap)| !view.objects[object].crowd && !(overlap < self.task.shapes.least))
                    .collect();
                let score = self.task.detections[ranked.index as usize].score;
                view.detections.push(Seen { index: ranked.index, category, score, found, overlaps });
            }
        }
        Ok(view)
    }
}
