//! New names for the tensors of a file, and what else happens to them on the way to vigdet's.

use tch::Tensor;

use super::{Change, Renamed};
use crate::classes::Classes;
use crate::weights::WeightFile;

/// What vigdet calls a tensor, and what happens to its numbers.
pub struct New {
    /// vigdet's name.
    pub name: String,
    /// What happens to the numbers; `None`: nothing.
    pub change: Option<Change>,
}

impl New {
    /// Another name, the same numbers.
    pub fn name(name: impl Into<String>) -> Option<Self> {
        Some(Self { name: name.into(), change: None })
    }

    /// Another name and other numbers.
    pub fn changed(name: impl Into<String>, change: impl Fn(&Tensor) -> Tensor + 'static) -> Option<Self> {
        Some(Self { name: name.into(), change: Some(Box::new(change)) })
    }

    /// The same name, other numbers.
    pub fn with(self, change: impl Fn(&Tensor) -> Tensor + 'static) -> Self {
        Self { change: Some(Box::new(change)), ..self }
    }

    /// The same under `prefix`.
    pub fn under(self, prefix: &str) -> Self {
        Self { name: format!("{prefix}{}", self.name), ..self }
    }
}

/// The tensors of a file under vigdet's names, and the names of those that have none: they keep their own, so that
/// whoever loads the file is told of them.
pub fn rename(names: &[String], new: impl Fn(&str) -> Vec<New>, useless: impl Fn(&str) -> bool) -> Renaming {
    let mut renaming = Renaming { tensors: Vec::new(), unknown: Vec::new() };
    for from in names.iter().filter(|name| !useless(name) && !name.ends_with("num_batches_tracked")) {
        let found = new(from);
        if found.is_empty() {
            renaming.unknown.push(from.clone());
            renaming.tensors.push(Renamed { name: from.clone(), from: from.clone(), change: None });
        }
        let tensors = found.into_iter().map(|New { name, change }| Renamed { name, from: from.clone(), change });
        renaming.tensors.extend(tensors);
    }
    renaming
}

/// What [`rename`] found.
pub struct Renaming {
    /// All tensors.
    pub tensors: Vec<Renamed>,
    /// Those of them that vigdet has no name for.
    pub unknown: Vec<String>,
}

impl Renaming {
    /// The file's shape of a tensor of this new name.
    pub fn shape(&self, file: &WeightFile, name: &str) -> Option<Vec<i64>> {
        file.shape(&self.tensors.iter().find(|tensor| tensor.name == name)?.from)
    }

    /// How many of `name(0)`, `name(1)`, … there are, without a gap.
    pub fn count(&self, name: impl Fn(usize) -> String) -> usize {
        let has = |i: &usize| self.tensors.iter().any(|tensor| tensor.name == name(*i));
        (0..).take_while(has).count()
    }

    /// What to say of a file with tensors that vigdet has no use for; `None`: there are none.
    pub fn note(&self) -> Option<String> {
        let first = self.unknown.first()?;
        Some(format!(
            "{} of its tensors ({first}{}) are of parts that vigdet does not have, so it gets no config by itself",
            self.unknown.len(),
            if self.unknown.len() > 1 { ", …" } else { "" }
        ))
    }
}

/// The last of the rows comes first: a classifier whose background is its last class.
pub fn last_row_first(t: &Tensor) -> Tensor {
    match t.size().first() {
        Some(&rows) if rows > 0 => Tensor::cat(&[t.narrow(0, rows - 1, 1), t.narrow(0, 0, rows - 1)], 0),
        _ => t.shallow_clone(),
    }
}

/// So many rows of zeros come first: a layer that has none for background.
pub fn zero_rows_first(rows: i64) -> impl Fn(&Tensor) -> Tensor {
    move |t| {
        let mut size = t.size();
        if size.is_empty() {
            return t.shallow_clone();
        }
        size[0] = rows;
        Tensor::cat(&[Tensor::zeros(&size, (t.kind(), t.device())), t.shallow_clone()], 0)
    }
}

/// Rows of anchors that go through the sizes and within each through the ratios, in vigdet's order: through the ratios,
/// and within each through the sizes.
pub fn ratios_before_sizes(sizes: i64, ratios: i64) -> impl Fn(&Tensor) -> Tensor {
    move |t| {
        let size = t.size();
        match size.first() {
            Some(&rows) if rows > 0 && rows % (sizes * ratios) == 0 => {
                t.reshape([sizes, ratios, rows / (sizes * ratios), -1]).transpose(0, 1).reshape(&size)
            }
            _ => t.shallow_clone(),
        }
    }
}

/// The input channels the other way round: blue, green, red become red, green, blue.
pub fn other_channels(t: &Tensor) -> Tensor {
    match t.dim() {
        4 => t.flip([1]),
        _ => t.shallow_clone(),
    }
}

/// A linear layer as a 1×1 convolution.
pub fn as_convolution(t: &Tensor) -> Tensor {
    match t.dim() {
        2 => t.unsqueeze(2).unsqueeze(3),
        _ => t.shallow_clone(),
    }
}

/// The classes of so many outputs under these names: COCO's under COCO's ids, others numbered from 1. Without names: if
/// there are as many as COCO has, they are COCO's.
pub fn classes_of(names: Option<Vec<String>>, outputs: usize) -> Option<Classes> {
    let coco = Classes::coco();
    match names.filter(|names| names.len() == outputs) {
        Some(names) if names != coco.names() => Some((1..).zip(names).collect()),
        _ => (outputs == coco.len()).then_some(coco),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(t: &Tensor) -> Vec<f32> {
        t.reshape(-1).try_into().unwrap()
    }

    #[test]
    fn rows_move_as_their_names_say_and_odd_shapes_stay() {
        let t = Tensor::from_slice(&[1f32, 2.0, 3.0]);
        assert_eq!(rows(&last_row_first(&t)), [3.0, 1.0, 2.0]);
        assert_eq!(rows(&zero_rows_first(2)(&t)), [0.0, 0.0, 1.0, 2.0, 3.0]);
        // Two sizes with three ratios each, two numbers for each anchor.
        let anchors =
            Tensor::from_slice(&[0f32, 1.0, 10.0, 11.0, 20.0, 21.0, 100.0, 101.0, 110.0, 111.0, 120.0, 121.0]);
        let expected = [0.0, 1.0, 100.0, 101.0, 10.0, 11.0, 110.0, 111.0, 20.0, 21.0, 120.0, 121.0];
        assert_eq!(rows(&ratios_before_sizes(2, 3)(&anchors)), expected);
        let weights = anchors.view([6, 2, 1, 1]);
        assert_eq!(ratios_before_sizes(2, 3)(&weights).size(), [6, 2, 1, 1]);
        assert_eq!(rows(&ratios_before_sizes(2, 3)(&weights)), expected);
        assert_eq!(rows(&other_channels(&t.view([1, 3, 1, 1]))), [3.0, 2.0, 1.0]);
        assert_eq!(as_convolution(&t.view([1, 3])).size(), [1, 3, 1, 1]);
        for odd in [Tensor::from(5f32), Tensor::from_slice::<f32>(&[]), t.shallow_clone()] {
            let changes: [&dyn Fn(&Tensor) -> Tensor; 4] =
                [&last_row_first, &ratios_before_sizes(2, 3), &other_channels, &as_convolution];
            assert!(changes.iter().all(|change| change(&odd).size() == odd.size()));
        }
        assert_eq!(zero_rows_first(2)(&Tensor::from(5f32)).dim(), 0);
    }

    #[test]
    fn classes_are_cocos_where_their_names_or_their_number_say_so() {
        let coco = Classes::coco();
        assert_eq!(classes_of(None, 80).unwrap(), coco);
        assert_eq!(classes_of(Some(coco.names()), 80).unwrap(), coco);
        let two = classes_of(Some(vec!["nut".into(), "bolt".into()]), 2).unwrap();
        assert_eq!((two[1].id, two.name(1)), (2, "bolt".to_string()));
        assert!(classes_of(None, 2).is_none() && classes_of(Some(vec!["nut".into()]), 2).is_none());
    }
}
