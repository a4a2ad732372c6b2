//! Reading a run's log.jsonl.

use std::path::Path;

use anyhow::{ensure, Context, Result};

use crate::runs::{Evaluation, Line, Step};

/// Numbers of one name over the steps of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// As in the log.
    pub name: String,
    /// (step from 1, value), in the log's order. Values are finite.
    pub points: Vec<(f64, f64)>,
}

/// A run so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunLog {
    /// `loss` first, then its parts.
    pub losses: Vec<Series>,
    /// Learning rate.
    pub lr: Vec<(f64, f64)>,
    /// Metrics of the evaluations: AP, AP50, … of boxes, and `mask AP`, or a classifier's `top-1` and `top-5`; those
    /// that an evaluation could not tell (−1) are left out.
    pub metrics: Vec<Series>,
    /// Steps done.
    pub steps: u64,
}

impl RunLog {
    /// Reads a log.jsonl: a line a step (`iter`, `loss`, its parts, `lr`, …), a line an evaluation (`iter`, `bbox`). A
    /// last line that is cut off, as by a kill, is left out.
    ///
    /// # Errors
    /// If there is no such file, if another line is not JSON, or if it has no step and no evaluation.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the log {} (is this the folder of a run?)", path.display()))?;
        let mut log = Self::default();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match Line::parse(line) {
                Ok(line) => log.add(line),
                Err(_) if !text.ends_with('\n') && number + 1 == text.lines().count() => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("{}, line {}", path.display(), number + 1));
                }
            }
        }
        ensure!(
            !log.losses.is_empty() || !log.metrics.is_empty(),
            "{} has no step and no evaluation yet",
            path.display()
        );
        Ok(log)
    }

    fn add(&mut self, line: Line) {
        let at = line.iter() as f64;
        self.steps = self.steps.max(line.iter());
        match line {
            Line::Step(Step { loss, parts, lr, .. }) => {
                push(&mut self.losses, "loss", (at, loss));
                parts.iter().for_each(|(name, value)| push(&mut self.losses, name, (at, *value)));
                self.lr.push((at, lr));
            }
            Line::Skipped(_) => {}
            Line::Evaluation(Evaluation { found, .. }) => {
                let boxes = found.get("bbox").and_then(|boxes| boxes.as_object()).into_iter().flatten();
                let boxes = boxes.map(|(name, value)| (name.as_str(), Some(value)));
                let named = [
                    ("mask AP", found.get("segm").and_then(|masks| masks.get("AP"))),
                    ("top-1", found.get("top1")),
                    ("top-5", found.get("top5")),
                ];
                for (name, value) in boxes.chain(named) {
                    if let Some(value) = value.and_then(|v| v.as_f64()).filter(|v| *v >= 0.0) {
                        push(&mut self.metrics, name, (at, value));
                    }
                }
            }
        }
    }
}

fn push(all: &mut Vec<Series>, name: &str, point: (f64, f64)) {
    match all.iter_mut().find(|series| series.name == name) {
        Some(series) => series.points.push(point),
        None => all.push(Series { name: name.to_string(), points: vec![point] }),
    }
}

/// The mean of the points around each point: within a window of one part in `parts` of the series, cut off at its ends.
pub fn smooth(points: &[(f64, f64)], parts: usize) -> Vec<(f64, f64)> {
    let half = points.len() / parts.max(1) / 2;
    (0..points.len())
        .map(|i| {
            let window = &points[i.saturating_sub(half)..(i + half + 1).min(points.len())];
            (points[i].0, window.iter().map(|p| p.1).sum::<f64>() / window.len() as f64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RunLog> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        std::fs::write(&path, text).unwrap();
        RunLog::read(&path)
    }

    const STEP: &str = concat!(
        r#"{"iter":1,"epoch":1,"loss":2.5,"classification":2.0,"box":0.5,"lr":0.1,"#,
        r#""grad_norm":7,"seconds":1.0,"data_wait":0.1}"#
    );

    #[test]
    fn steps_and_evaluations_become_series() {
        let evaluation = r#"{"iter":1,"epoch":1,"bbox":{"AP":0.25,"APs":-1.0},"seconds":3.0}"#;
        let log = read(&format!("{STEP}\n{evaluation}\n{}\n", STEP.replace("\"iter\":1", "\"iter\":2"))).unwrap();
        let names: Vec<&str> = log.losses.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["loss", "classification", "box"]);
        assert_eq!(log.losses[2].points, [(1.0, 0.5), (2.0, 0.5)]);
        assert_eq!(log.lr, [(1.0, 0.1), (2.0, 0.1)]);
        assert_eq!(log.metrics, [Series { name: "AP".into(), points: vec![(1.0, 0.25)] }]);
        assert_eq!(log.steps, 2);
    }

    #[test]
    fn a_cut_off_last_line_is_left_out_and_any_other_is_an_error() {
        assert_eq!(read(&format!("{STEP}\n{{\"iter\":2,\"lo")).unwrap().steps, 1);
        let error = format!("{:#}", read(&format!("{{\"iter\":2,\"lo\n{STEP}\n")).unwrap_err());
        assert!(error.contains("line 1"), "{error}");
        assert!(format!("{:#}", read("").unwrap_err()).contains("no step"));
    }

    #[test]
    fn smoothing_keeps_length_and_level() {
        let flat: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), 3.0)).collect();
        assert_eq!(smooth(&flat, 10), flat);
        let zigzag: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        assert!(smooth(&zigzag, 10)[40..60].iter().all(|p| (p.1 - 0.5).abs() < 0.06));
        assert!(smooth(&[], 10).is_empty());
    }
}
