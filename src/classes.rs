//! The classes of a data set or of a model: which there are, in which order, under which ids and names.
//!
//! Ids are an annotation file's own affair and change with a new export. Wherever data, weights and runs meet, classes
//! are compared by name ([`Classes::find`]).

use std::ops::Deref;

use anyhow::{ensure, Result};
use serde::{Deserialize, Serialize};

/// Outputs of torchvision's models of COCO: ids 0 to 90.
pub const COCO_OUTPUTS: i64 = 91;
/// Names that a message has room for.
const NAMED: usize = 6;

/// A class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(i64, String)", into = "(i64, String)")]
pub struct Class {
    /// The annotation file's category id: any number. A classifier's: the number of the output.
    pub id: i64,
    /// Its name; empty where there is none.
    pub name: String,
}

impl From<(i64, String)> for Class {
    fn from((id, name): (i64, String)) -> Self {
        Self { id, name }
    }
}

impl From<Class> for (i64, String) {
    fn from(class: Class) -> Self {
        (class.id, class.name)
    }
}

/// Classes in the order of their labels. As JSON: `[[id, name], …]`, which weights have in their metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Classes(Vec<Class>);

impl Deref for Classes {
    type Target = [Class];

    fn deref(&self) -> &[Class] {
        &self.0
    }
}

impl<N: Into<String>> FromIterator<(i64, N)> for Classes {
    fn from_iter<I: IntoIterator<Item = (i64, N)>>(classes: I) -> Self {
        Self(classes.into_iter().map(|(id, name)| Class { id, name: name.into() }).collect())
    }
}

impl Classes {
    /// The classes of a classifier, numbered from 0.
    pub fn numbered(names: &[String]) -> Self {
        (0..).zip(names.iter().cloned()).collect()
    }

    /// Categories of an annotation file in the order of their ids, which is the order of labels.
    pub fn of_categories(categories: &[vigdet_coco::types::Category]) -> Self {
        let mut classes: Self = categories.iter().map(|c| (c.id, c.name.clone())).collect();
        classes.0.sort_by_key(|class| class.id);
        classes
    }

    /// The categories of COCO's detection task.
    pub fn coco() -> Self {
        (1..).zip(COCO.split(',')).filter(|(_, name)| !name.is_empty()).collect()
    }

    /// The labels of a model whose outputs stand for the category ids `first..outputs`, gaps included, as in
    /// torchvision's models of COCO. Ids that no category has get an empty name.
    ///
    /// # Errors
    /// If a category's id has no output.
    pub fn of_outputs(&self, first: i64, outputs: i64) -> Result<Self> {
        let mut classes: Self = (first..outputs).map(|id| (id, String::new())).collect();
        for Class { id, name } in self.iter() {
            ensure!(
                (first..outputs).contains(id),
                "category id {id} ({name}) has no output: model.outputs is {outputs}, for ids {first} to {} (null: \
                 one output \
                 for each category, whatever its id)",
                outputs - 1
            );
            classes.0[(id - first) as usize].name.clone_from(name);
        }
        Ok(classes)
    }

    /// The label of a class of somebody else: that of the same id and name, else of the same name, else of the same id
    /// where one of the two has no name.
    pub fn find(&self, class: &Class) -> Option<usize> {
        let named = |own: &Class| own.name == class.name && !own.name.is_empty();
        // Names need not be unique: of several, the one with the same id is meant.
        let same = self.iter().position(|own| named(own) && own.id == class.id);
        let by_name = || self.iter().position(named);
        let nameless = |own: &Class| own.name.is_empty() || class.name.is_empty();
        let by_id = || self.iter().position(|own| own.id == class.id && nameless(own));
        same.or_else(by_name).or_else(by_id)
    }

    /// Names in the order of the labels.
    pub fn names(&self) -> Vec<String> {
        self.iter().map(|class| class.name.clone()).collect()
    }

    /// The name of a label, or its number where it has none.
    pub fn name(&self, label: i64) -> String {
        let class = usize::try_from(label).ok().and_then(|label| self.get(label));
        let name = class.map(|class| class.name.clone()).filter(|name| !name.is_empty());
        name.unwrap_or_else(|| format!("class {label}"))
    }
}

/// Names for a message: the first few, and how many more there are.
pub fn list(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let names = names.into_iter().filter(|name| !name.as_ref().is_empty());
    let names: Vec<String> = names.map(|name| format!("`{}`", name.as_ref())).collect();
    let more = names.len().saturating_sub(NAMED);
    let named = names[..names.len() - more].join(", ");
    if more > 0 {
        format!("{named} and {more} more")
    } else {
        named
    }
}

/// Names of the ids 1 to 90; those of ids without a category are empty.
const COCO: &str = "\
    person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,,stop sign,parking meter,\
    bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,,backpack,umbrella,,,handbag,tie,suitcase,\
    frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,,\
    wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,\
    chair,couch,potted plant,bed,,dining table,,,toilet,,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,\
    toaster,sink,refrigerator,,book,clock,vase,scissors,teddy bear,hair drier,toothbrush";

#[cfg(test)]
mod tests {
    use super::*;
    use vigdet_coco::types::Category;

    fn classes(list: &[(i64, &str)]) -> Classes {
        list.iter().copied().collect()
    }

    #[test]
    fn labels_stand_for_ids_where_the_model_says_so() {
        let categories = classes(&[(1, "person"), (90, "toothbrush")]);
        let retinanet = categories.of_outputs(0, 91).unwrap();
        assert_eq!((retinanet.len(), &*retinanet[90].name, &*retinanet[0].name), (91, "toothbrush", ""));
        let mask = categories.of_outputs(1, 91).unwrap();
        assert_eq!((mask.len(), &mask[0], mask[89].id), (90, &categories[0], 90));
        assert!(categories.of_outputs(1, 80).unwrap_err().to_string().contains("90 (toothbrush)"));
        // What was made once is not changed by making it again.
        assert_eq!(mask.of_outputs(1, 91).unwrap(), mask);
        assert_eq!(Classes::coco().len(), 80);
    }

    #[test]
    fn classes_come_in_order_of_their_ids() {
        let category = |id, name: &str| Category { id, name: name.into(), supercategory: None };
        let found = Classes::of_categories(&[category(7, "nut"), category(3, "bolt")]);
        assert_eq!(found, classes(&[(3, "bolt"), (7, "nut")]));
    }

    #[test]
    fn names_tell_classes_apart_and_ids_only_where_there_are_no_names_or_twins() {
        let own = classes(&[(3, "bolt"), (7, "nut"), (9, "bolt"), (11, "")]);
        let find = |id, name: &str| own.find(&Class { id, name: name.into() });
        assert_eq!([find(7, "bolt"), find(3, "nut"), find(9, "bolt")], [Some(0), Some(1), Some(2)]);
        assert_eq!([find(11, "washer"), find(3, "washer"), find(11, "")], [Some(3), None, Some(3)]);
        assert_eq!([find(7, ""), find(8, "")], [Some(1), None]);
    }

    #[test]
    fn classes_are_pairs_in_json_and_a_message_names_a_few() {
        let own = classes(&[(3, "bolt"), (7, "nut")]);
        let text = serde_json::to_string(&own).unwrap();
        assert_eq!(text, r#"[[3,"bolt"],[7,"nut"]]"#);
        assert_eq!(serde_json::from_str::<Classes>(&text).unwrap(), own);
        assert_eq!((own.name(1), own.name(2), own.name(-1)), ("nut".into(), "class 2".into(), "class -1".into()));
        assert_eq!(list(own.names()), "`bolt`, `nut`");
        assert_eq!(list((0..8).map(|i| i.to_string())), "`0`, `1`, `2`, `3`, `4`, `5` and 2 more");
    }
}
