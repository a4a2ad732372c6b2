//! The lines of a run's log.jsonl.

use anyhow::{ensure, Context, Result};
use serde_json::{Map, Value};

/// A line of the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A step was done.
    Step(Step),
    /// A step was skipped.
    Skipped(Skipped),
    /// An evaluation was done.
    Evaluation(Evaluation),
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Number of the step, from 1.
    pub iter: u64,
    /// Number of the epoch, from 1.
    pub epoch: usize,
    /// Sum of the parts.
    pub loss: f64,
    /// Each part of the loss.
    pub parts: Vec<(String, f64)>,
    /// Learning rate, without the factor of the backbone.
    pub lr: f64,
    /// 2-norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// Seconds that the step took, waiting for data included.
    pub seconds: f64,
    /// Seconds of it that were spent waiting for data.
    pub data_wait: f64,
    /// Seconds of it that went to the other processes: waiting for them, and summing gradients. 0 without any.
    pub ranks_wait: f64,
}

/// One step that changed nothing, as its loss or gradient was not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Skipped {
    /// Number of the step, from 1.
    pub iter: u64,
    /// Number of the epoch, from 1.
    pub epoch: usize,
    /// What was not finite, and where.
    pub reason: String,
    /// Seconds that the step took.
    pub seconds: f64,
}

/// One evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The step it came after.
    pub iter: u64,
    /// The epoch it came after, from 1.
    pub epoch: usize,
    /// What it found: a detector's `bbox` and `segm`, a classifier's `top1`, `top5`, …
    pub found: Map<String, Value>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Keys of a step's line beside the parts of the loss, in the order of the line: those before the parts, and those
/// after.
const BEFORE: [&str; 3] = ["iter", "epoch", "loss"];
const AFTER: [&str; 4] = ["lr", "grad_norm", "seconds", "data_wait"];
/// The last, in a line of several processes.
const RANKS_WAIT: &str = "ranks_wait";
/// The key that only the line of a skipped step has.
const SKIPPED: &str = "skipped";

impl Line {
    /// As it stands in the log.
    pub fn to_json(&self) -> Value {
        let mut line = Map::new();
        match self {
            Self::Step(step) => {
                let before: [Value; 3] = [step.iter.into(), step.epoch.into(), step.loss.into()];
                line.extend(BEFORE.map(String::from).into_iter().zip(before));
                line.extend(step.parts.iter().map(|(name, value)| (name.clone(), (*value).into())));
                let after = [step.lr, step.grad_norm, step.seconds, step.data_wait].map(Value::from);
                line.extend(AFTER.map(String::from).into_iter().zip(after));
                if step.ranks_wait > 0.0 {
                    line.insert(RANKS_WAIT.into(), step.ranks_wait.into());
                }
            }
            Self::Skipped(skipped) => {
                line.insert("iter".into(), skipped.iter.into());
                line.insert("epoch".into(), skipped.epoch.into());
                line.insert(SKIPPED.into(), skipped.reason.as_str().into());
                line.insert("seconds".into(), skipped.seconds.into());
            }
            Self::Evaluation(evaluation) => {
                line.insert("iter".into(), evaluation.iter.into());
                line.insert("epoch".into(), evaluation.epoch.into());
                line.extend(evaluation.found.clone());
                line.insert("seconds".into(), evaluation.seconds.into());
            }
        }
        Value::Object(line)
    }

    /// The inverse of [`Line::to_json`]; numbers that are missing are 0.
    ///
    /// # Errors
    /// If it is not the text of a JSON object with the number of a step.
    pub fn parse(text: &str) -> Result<Self> {
        let mut fields: Map<String, Value> = serde_json::from_str(text)?;
        let iter = fields.get("iter").and_then(Value::as_u64).context("it has no `iter`")?;
        let number = |key: &str| fields.get(key).and_then(Value::as_f64);
        let (loss, epoch) = (number("loss"), number("epoch").unwrap_or(0.0) as usize);
        let [lr, grad_norm, seconds, data_wait] = AFTER.map(|key| number(key).unwrap_or(0.0));
        let ranks_wait = number(RANKS_WAIT).unwrap_or(0.0);
        fields.remove(RANKS_WAIT);
        if let Some(reason) = fields.get(SKIPPED).and_then(Value::as_str) {
            return Ok(Self::Skipped(Skipped { iter, epoch, reason: reason.to_string(), seconds }));
        }
        fields.retain(|key, _| !BEFORE.contains(&key.as_str()) && !AFTER.contains(&key.as_str()));
        Ok(match loss {
            Some(loss) => {
                let part = |(name, value): (String, Value)| Some((name, value.as_f64()?));
                let parts = fields.into_iter().filter_map(part).collect();
                Self::Step(Step { iter, epoch, loss, parts, lr, grad_norm, seconds, data_wait, ranks_wait })
            }
            None => {
                ensure!(!fields.is_empty(), "it is neither a step nor an evaluation");
                Self::Evaluation(Evaluation { iter, epoch, found: fields, seconds })
            }
        })
    }

    /// The step that it is of.
    pub fn iter(&self) -> u64 {
        match self {
            Self::Step(step) => step.iter,
            Self::Skipped(skipped) => skipped.iter,
            Self::Evaluation(evaluation) => evaluation.iter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_themselves_back_and_keep_the_order_of_their_keys() {
        let step = concat!(
            r#"{"iter":3,"epoch":1,"loss":2.5,"box":0.5,"classification":2.0,"#,
            r#""lr":0.1,"grad_norm":7.0,"seconds":1.0,"data_wait":0.1}"#
        );
        let evaluation = r#"{"iter":3,"epoch":1,"bbox":{"AP":0.25},"segm":{"AP":0.125},"seconds":3.0}"#;
        let of_ranks = step.replace(r#""data_wait":0.1"#, r#""data_wait":0.1,"ranks_wait":0.5"#);
        let skipped = r#"{"iter":4,"epoch":1,"skipped":"the loss `box` became NaN","seconds":1.0}"#;
        for text in [step, &of_ranks, skipped, evaluation] {
            assert_eq!(Line::parse(text).unwrap().to_json().to_string(), text);
        }
        assert!(matches!(Line::parse(step).unwrap(), Line::Step(step) if step.parts[1].0 == "classification"));
        for bad in ["{\"ite", "3", "{\"loss\":1}", "{\"iter\":1,\"epoch\":1}"] {
            assert!(Line::parse(bad).is_err(), "{bad}");
        }
    }
}
