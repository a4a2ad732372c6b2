//! A line of a YOLO label file.

use super::draft::{Draft, Object};
use anyhow::{bail, ensure, Result};
use vigdet_coco::types::Segmentation;

/// One line: a class and fractions of the image.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    class: usize,
    shape: Shape,
    score: Option<f64>,
}

#[derive(Debug, PartialEq)]
enum Shape {
    /// Centre and size.
    Box([f64; 4]),
    Polygon(Vec<f64>),
}

impl Row {
    /// Reads a line. With `keypoints` what follows the box is passed over.
    pub fn parse(row: &str, classes: usize, keypoints: bool) -> Result<Row> {
        let mut values = Vec::with_capacity(5);
        for (at, text) in row.split_ascii_whitespace().enumerate() {
            match text.parse() {
                Ok(value) if f64::is_finite(value) => values.push(value),
                _ if at == 8 => bail!("{ORIENTED}"),
                _ => bail!("`{text}` is not a number"),
            }
        }
        let Some((&class, values)) = values.split_first() else { bail!("the line is empty") };
        ensure!(class >= 0.0 && class.fract() == 0.0, "`{class}` is not a class: a whole number from 0 is expected");
        ensure!(
            class < classes as f64,
            "class {class} is not among the {classes} classes (0 to {}) of `names`",
            classes.saturating_sub(1)
        );
        let four = |values: &[f64]| Shape::Box([values[0], values[1], values[2], values[3]]);
        let (shape, score) = match values.len() {
            4 => (four(values), None),
            5.. if keypoints => (four(values), None),
            5 if (0.0..=1.0).contains(&values[4]) => (four(values), Some(values[4])),
            5 => bail!("{ORIENTED}"),
            6.. if values.len() % 2 == 0 => (Shape::Polygon(values.to_vec()), None),
            count => bail!("{count} numbers after the class: expected 4 of a box, or pairs of a polygon"),
        };
        Ok(Row { class: class as usize, shape, score })
    }

    /// Adds the object to an image of this size.
    pub fn put(self, draft: &mut Draft, image: usize, (width, height): (u32, u32)) {
        let (width, height) = (f64::from(width), f64::from(height));
        let Row { class, shape, score } = self;
        draft.objects.push(match shape {
            Shape::Box([x, y, w, h]) => {
                let bbox = [(x - w / 2.0) * width, (y - h / 2.0) * height, w * width, h * height];
                Object { image, class, bbox, score, ..Object::default() }
            }
            Shape::Polygon(mut points) => {
                for point in points.chunks_exact_mut(2) {
                    point[0] *= width;
                    point[1] *= height;
                }
                Object::outlined(image, class, Segmentation::Polygons(vec![points]))
            }
        });
    }
}

/// Why oriented boxes are refused.
const ORIENTED: &str = "this looks like an oriented box (YOLO OBB): vigdet detects upright boxes only; convert the \
                        labels to upright boxes or polygons first";

/// Oriented boxes have four corners a line, just as polygons may. They are told apart by all objects being rectangles,
/// and some of them turned.
pub(super) fn refuse_oriented(drafts: &mut [Draft]) -> Result<()> {
    let mut turned = None;
    for object in drafts.iter().flat_map(|draft| &draft.objects) {
        match &object.segmentation {
            Some(Segmentation::Polygons(rings)) if rings[0].len() == 8 && is_rectangle(&rings[0]) => {
                let ring = &rings[0];
                let upright = (ring[0] - ring[2]).abs() < 1.0 || (ring[1] - ring[3]).abs() < 1.0;
                turned = turned.or((!upright).then_some(ring));
            }
            _ => return Ok(()),
        }
    }
    if turned.is_some() {
        bail!("every object has four corners at right angles: {ORIENTED}");
    }
    Ok(())
}

/// Whether four corners have diagonals of one length that halve each other, to a hundredth of them.
fn is_rectangle(ring: &[f64]) -> bool {
    let diagonal = |i: usize| (ring[i + 4] - ring[i]).hypot(ring[i + 5] - ring[i + 1]);
    let (a, b) = (diagonal(0), diagonal(2));
    let tolerance = 0.01 * a.max(b) + 0.5;
    let apart = (ring[0] + ring[4] - ring[2] - ring[6]).hypot(ring[1] + ring[5] - ring[3] - ring[7]) / 2.0;
    (a - b).abs() <= tolerance && apart <= tolerance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_each_kind_are_told_apart() {
        let parse = |row| Row::parse(row, 3, false);
        let shape = Shape::Box([0.5, 0.5, 0.25, 0.125]);
        assert_eq!(parse("2 0.5 0.5 0.25 0.125").unwrap(), Row { class: 2, shape, score: None });
        assert_eq!(parse("2.0 0.5 0.5 0.25 0.125 0.75").unwrap().score, Some(0.75));
        let triangle = Shape::Polygon(vec![0.0, 0.0, 1.0, 0.0, 1.0, 1.0]);
        assert_eq!(parse("0 0 0 1 0 1 1").unwrap().shape, triangle);
        assert!(matches!(Row::parse("0 .1 .2 .3 .4 9 9 2", 1, true).unwrap().shape, Shape::Box(_)));
    }

    #[test]
    fn lines_that_are_no_label_are_refused_with_their_reason() {
        let wrong = |row| Row::parse(row, 3, false).unwrap_err().to_string();
        assert!(wrong("3 0.5 0.5 0.1 0.1").contains("class 3 is not among the 3 classes (0 to 2)"));
        assert!(wrong("-1 0.5 0.5 0.1 0.1").contains("not a class"));
        assert!(wrong("0 0.5 0.5 0.1 0.1 1.57").contains("oriented"));
        assert!(wrong("0 10 10 20 10 20 20 10 car 0").contains("oriented"));
        assert!(wrong("0 0.5 x 0.1 0.1").contains("`x` is not a number"));
        assert!(wrong("0 0.5 0.5 0.1").contains("3 numbers"));
        assert!(wrong("0 0.5 NaN 0.1 0.1").contains("`NaN` is not a number"));
    }
}
