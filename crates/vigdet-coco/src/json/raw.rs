//! What may stand in the files, before it is checked against itself.

use crate::rle::Rle;
use crate::types::{Category, Image, Segmentation};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// An annotation file.
#[derive(serde::Deserialize)]
#[serde(expecting = "an object with images, annotations and categories")]
pub(super) struct RawDataset<S = Segmentation> {
    pub images: Vec<RawImage>,
    pub annotations: Vec<RawAnnotation<S>>,
    pub categories: Vec<RawCategory>,
}

#[derive(serde::Deserialize)]
#[serde(expecting = "an image, {\"id\": ...}")]
pub(super) struct RawImage {
    pub id: Integer,
    pub file_name: Option<String>,
    pub width: Option<Pixels>,
    pub height: Option<Pixels>,
}

impl From<RawImage> for Image {
    fn from(raw: RawImage) -> Image {
        Image {
            id: raw.id.0,
            file_name: raw.file_name.unwrap_or_default(),
            width: raw.width.map_or(0, |p| p.0),
            height: raw.height.map_or(0, |p| p.0),
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(expecting = "a category, {\"id\": ...}")]
pub(super) struct RawCategory {
    pub id: Integer,
    pub name: Option<String>,
    pub supercategory: Option<String>,
}

impl From<RawCategory> for Category {
    fn from(raw: RawCategory) -> Category {
        Category { id: raw.id.0, name: raw.name.unwrap_or_default(), supercategory: raw.supercategory }
    }
}

#[derive(serde::Deserialize)]
#[serde(expecting = "an annotation, {\"id\": ...}")]
pub(super) struct RawAnnotation<S = Segmentation> {
    pub id: Integer,
    pub image_id: Integer,
    pub category_id: Integer,
    pub bbox: Option<Bbox>,
    pub area: Option<f64>,
    pub iscrowd: Option<Flag>,
    pub ignore: Option<Flag>,
    pub segmentation: Option<S>,
}

/// A segmentation, or why what stands there is none.
pub(super) enum Outline {
    Good(Segmentation),
    Bad(String),
}

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Outline, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(match Segmentation::deserialize(value) {
            Ok(segmentation) => Outline::Good(segmentation),
            Err(error) => Outline::Bad(error.to_string()),
        })
    }
}

impl RawDataset<Outline> {
    /// The file without the segmentations that are none. For each of these the id of its annotation and the reason.
    /// `None` where one of them has no box: then nothing says where the object is.
    pub fn without_bad_outlines(self) -> Option<(RawDataset, Vec<(i64, String)>)> {
        let mut bad = Vec::new();
        let mut annotations = Vec::with_capacity(self.annotations.len());
        for raw in self.annotations {
            let segmentation = match raw.segmentation {
                Some(Outline::Good(segmentation)) => Some(segmentation),
                Some(Outline::Bad(reason)) => {
                    raw.bbox.as_ref().and_then(|Bbox(bbox)| *bbox)?;
                    bad.push((raw.id.0, reason));
                    None
                }
                None => None,
            };
            let RawAnnotation { id, image_id, category_id, bbox, area, iscrowd, ignore, .. } = raw;
            annotations.push(RawAnnotation { id, image_id, category_id, bbox, area, iscrowd, ignore, segmentation });
        }
        Some((RawDataset { images: self.images, annotations, categories: self.categories }, bad))
    }
}

impl RawAnnotation {
    /// `ignore` is there and says something else than `iscrowd`.
    pub fn ignore_differs(&self) -> bool {
        let crowd = matches!(self.iscrowd, Some(Flag(true)));
        self.ignore.as_ref().is_some_and(|&Flag(ignore)| ignore != crowd)
    }
}

#[derive(serde::Deserialize)]
#[serde(expecting = "a result, {\"image_id\": ...}")]
pub(super) struct RawDetection {
    pub image_id: Integer,
    pub category_id: Integer,
    pub bbox: Option<Bbox>,
    pub score: f64,
    pub segmentation: Option<Segmentation>,
}

/// A whole number, which some writers give as `7.0`.
#[derive(Clone, Copy)]
pub(super) struct Integer(pub i64);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Integer, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Integer;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Integer, E> {
                Ok(Integer(value))
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Integer, E> {
                i64::try_from(value).map(Integer).map_err(|_| E::custom(format!("{value} is too large")))
            }
            fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Integer, E> {
                // Beyond 2⁵³ a float no longer tells one whole number from the next.
                if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 {
                    Ok(Integer(value as i64))
                } else {
                    Err(E::custom(format!("{value:?} is not a whole number")))
                }
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// A number of pixels.
pub(super) struct Pixels(pub u32);

impl<'de> Deserialize<'de> for Pixels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pixels, D::Error> {
        let Integer(value) = Integer::deserialize(deserializer)?;
        u32::try_from(value).map(Pixels).map_err(|_| D::Error::custom(format!("{value} is not a number of pixels")))
    }
}

/// 0 or 1, false or true.
pub(super) struct Flag(pub bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Flag, D::Error> {
        struct ZeroOrOne;
        impl Visitor<'_> for ZeroOrOne {
            type Value = Flag;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("0 or 1")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Flag, E> {
                Ok(Flag(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Flag, E> {
                Ok(Flag(value != 0))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Flag, E> {
                Ok(Flag(value != 0))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Flag, E> {
                Ok(Flag(value != 0.0))
            }
        }
        deserializer.deserialize_any(ZeroOrOne)
    }
}

/// Four numbers, or nothing: an empty list stands for no box.
pub(super) struct Bbox(pub Option<[f64; 4]>);

impl<'de> Deserialize<'de> for Bbox {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bbox, D::Error> {
        struct Four;
        impl<'de> Visitor<'de> for Four {
            type Value = Bbox;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a box of four numbers, [x, y, width, height]")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bbox, A::Error> {
                let mut bbox = [0.0; 4];
                for (i, slot) in bbox.iter_mut().enumerate() {
                    match seq.next_element()? {
                        Some(value) => *slot = value,
                        None if i == 0 => return Ok(Bbox(None)),
                        None => return Err(A::Error::invalid_length(i, &self)),
                    }
                }
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(Bbox(Some(bbox))),
                    Some(_) => Err(A::Error::invalid_length(5, &self)),
                }
            }
        }
        deserializer.deserialize_seq(Four)
    }
}

/// Polygons or a run-length-coded mask of either kind, as in COCO's files.
impl<'de> Deserialize<'de> for Segmentation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Segmentation, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Segmentation;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a list of polygons [[x, y, ...], ...] or a mask {\"size\": [height, width], \"counts\": ...}",
                )
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Segmentation, A::Error> {
                let mut polygons = Vec::new();
                while let Some(mut polygon) = seq.next_element::<Vec<f64>>()? {
                    polygon.shrink_to_fit();
                    polygons.push(polygon);
                }
                polygons.shrink_to_fit();
                Ok(Segmentation::Polygons(polygons))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Segmentation, A::Error> {
                let (mut size, mut counts) = (None, None);
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    match &*key {
                        "size" => size = Some(map.next_value::<[Pixels; 2]>()?),
                        "counts" => counts = Some(map.next_value::<Counts<'de>>()?),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                let [Pixels(height), Pixels(width)] = size.ok_or_else(|| A::Error::missing_field("size"))?;
                let rle = match counts.ok_or_else(|| A::Error::missing_field("counts"))? {
                    Counts::Text(text) => Rle::from_compressed(height, width, &text),
                    Counts::Runs(runs) => Rle::from_runs(height, width, &runs),
                };
                rle.map(Segmentation::Rle).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

enum Counts<'a> {
    Text(Cow<'a, str>),
    Runs(Vec<u32>),
}

impl<'de> Deserialize<'de> for Counts<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Counts<'de>, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Counts<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the runs of a mask, compressed (text) or as a list of whole numbers")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Counts<'de>, E> {
                Ok(Counts::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Counts<'de>, E> {
                Ok(Counts::Text(Cow::Owned(text.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Counts<'de>, A::Error> {
                let mut runs = Vec::new();
                while let Some(Pixels(run)) = seq.next_element()? {
                    runs.push(run);
                }
                Ok(Counts::Runs(runs))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
