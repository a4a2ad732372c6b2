//! The twelve numbers.

use super::accumulate::Row;
use super::{Evaluation, Params};
use ndarray::{s, Axis};
use std::fmt;

/// COCO's twelve numbers. `Display` gives the twelve lines of pycocotools.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// AP, AP at IoU 0.5, at 0.75, of small, medium and large objects; average recall with 1, 10 and 100 detections, of
    /// small, medium and large objects. −1 where there are no objects.
    pub stats: [f64; 12],
    lines: [String; 12],
}

/// Keys of the twelve numbers, in order, as detection papers name them.
pub const STAT_NAMES: [&str; 12] =
    ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"];

/// Names of the area ranges that the twelve numbers are of. Others have lines of their own:
/// [`Evaluation::extra_lines`].
pub const AREA_LABELS: [&str; 4] = ["all", "small", "medium", "large"];

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

/// One line of the summary: a mean over part of precision or recall.
struct Line<'a> {
    average_precision: bool,
    /// A single IoU threshold, or all.
    iou: Option<f64>,
    area: &'a str,
    max_dets: usize,
}

impl Summary {
    pub(crate) fn of(evaluation: &Evaluation) -> Summary {
        let params = &evaluation.params;
        let lines = lines(params);
        let stats = lines.each_ref().map(|line| line.value(evaluation));
        let mut texts = lines.iter().zip(stats).map(|(line, value)| line.text(params, value));
        Summary { stats, lines: std::array::from_fn(|_| texts.next().unwrap_or_default()) }
    }
}

impl Evaluation {
    /// Lines in pycocotools' style for the area ranges that its twelve lines leave out: average precision, then average
    /// recall, of each that is not named in [`AREA_LABELS`], with the largest number of detections.
    pub fn extra_lines(&self) -> Vec<String> {
        let params = &self.params;
        let extra = params.areas.iter().filter(|area| !AREA_LABELS.contains(&area.label.as_str()));
        let line = |average_precision, area| Line { average_precision, iou: None, area, max_dets: params.most_dets() };
        let lines = extra.flat_map(|area| [true, false].map(|average_precision| line(average_precision, &area.label)));
        lines.map(|line| line.text(params, line.value(self))).collect()
    }
}

fn lines(params: &Params) -> [Line<'static>; 12] {
    // pycocotools reads the first three numbers of detections, whatever they are; but the first line is for 100.
    let max = |i: usize| params.max_dets[i.min(params.max_dets.len() - 1)];
    let line = |average_precision, iou, area, max_dets| Line { average_precision, iou, area, max_dets };
    [
        line(true, None, "all", 100),
        line(true, Some(0.5), "all", max(2)),
        line(true, Some(0.75), "all", max(2)),
        line(true, None, "small", max(2)),
        line(true, None, "medium", max(2)),
        line(true, None, "large", max(2)),
        line(false, None, "all", max(0)),
        line(false, None, "all", max(1)),
        line(false, None, "all", max(2)),
        line(false, None, "small", max(2)),
        line(false, None, "medium", max(2)),
        line(false, None, "large", max(2)),
    ]
}

/// The twelve numbers, from the rows of one category after another: nothing is kept of them but sums.
pub(crate) struct Means {
    lines: [MeanOf; 12],
    sums: [f64; 12],
    counts: [usize; 12],
}

/// The rows that a line is the mean of.
struct MeanOf {
    average_precision: bool,
    /// Area range and number of detections. `None` where the parameters lack them.
    at: Option<(usize, usize)>,
    /// For each IoU threshold.
    thresholds: Vec<bool>,
}

impl Means {
    pub(crate) fn new(params: &Params) -> Means {
        let lines = lines(params).map(|line| {
            let chosen = line.thresholds(params);
            MeanOf {
                average_precision: line.average_precision,
                at: line.index(params),
                thresholds: (0..params.iou_thresholds.len()).map(|t| chosen.contains(&t)).collect(),
            }
        });
        Means { lines, sums: [0.0; 12], counts: [0; 12] }
    }

    /// Whether the summary reads the rows of this area range and number of detections.
    pub(crate) fn reads(&self, area: usize, max_dets: usize) -> bool {
        self.lines.iter().any(|line| line.at == Some((area, max_dets)))
    }

    pub(crate) fn add(&mut self, (area, max_dets, threshold): (usize, usize, usize), row: &Row<'_>) {
        let mut precision = None;
        for (i, line) in self.lines.iter().enumerate() {
            if line.at != Some((area, max_dets)) || !line.thresholds[threshold] {
                continue;
            }
            let (sum, count) = if line.average_precision {
                *precision.get_or_insert_with(|| {
                    row.precisions().fold((0.0, 0), |(sum, count), value| (sum + value, count + 1))
                })
            } else {
                (row.recall, 1)
            };
            self.sums[i] += sum;
            self.counts[i] += count;
        }
    }

    /// −1 where there were no rows.
    pub(crate) fn finish(&self) -> [f64; 12] {
        std::array::from_fn(|i| if self.counts[i] == 0 { -1.0 } else { self.sums[i] / self.counts[i] as f64 })
    }
}

impl Line<'_> {
    /// Indices of the area range and the number of detections, if the parameters have them.
    fn index(&self, params: &Params) -> Option<(usize, usize)> {
        let area = params.area(self.area)?;
        let max = params.max_dets.iter().position(|&max| max == self.max_dets)?;
        Some((area, max))
    }

    /// Indices of the IoU thresholds.
    fn thresholds(&self, params: &Params) -> Vec<usize> {
        let chosen = |t: usize| self.iou.is_none_or(|iou| params.iou_thresholds[t] == iou);
        (0..params.iou_thresholds.len()).filter(|&t| chosen(t)).collect()
    }

    fn value(&self, evaluation: &Evaluation) -> f64 {
        let params = &evaluation.params;
        let Some((a, m)) = self.index(params) else { return -1.0 };
        let thresholds = self.thresholds(params);
        if self.average_precision {
            mean_of_present(&evaluation.precision.slice(s![.., .., .., a, m]).select(Axis(0), &thresholds))
        } else {
            mean_of_present(&evaluation.recall.slice(s![.., .., a, m]).select(Axis(0), &thresholds))
        }
    }

    fn text(&self, params: &Params, value: f64) -> String {
        let (title, kind) =
            if self.average_precision { ("Average Precision", "(AP)") } else { ("Average Recall", "(AR)") };
        let iou = match self.iou {
            Some(iou) => format!("{iou:.2}"),
            None => {
                let (first, last) = (params.iou_thresholds.first(), params.iou_thresholds.last());
                format!("{:.2}:{:.2}", first.unwrap_or(&0.0), last.unwrap_or(&0.0))
            }
        };
        format!(
            " {title:<18} {kind} @[ IoU={iou:<9} | area={:>6} | maxDets={:>3} ] = {value:.3}",
            self.area, self.max_dets
        )
    }
}

/// Mean of what is above −1, as numpy computes it, to the last bit; −1 of nothing.
pub(crate) fn mean_of_present<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    let values: Vec<f64> = values.into_iter().copied().filter(|&value| value > -1.0).collect();
    if values.is_empty() {
        -1.0
    } else {
        pairwise_sum(&values) / values.len() as f64
    }
}

/// numpy's order of summation: eight running sums in blocks of up to 128, halves above.
fn pairwise_sum(values: &[f64]) -> f64 {
    let count = values.len();
    if count < 8 {
        return values.iter().fold(0.0, |sum, value| sum + value);
    }
    if count <= 128 {
        let mut sums: [f64; 8] = std::array::from_fn(|i| values[i]);
        let blocks = values[8..].chunks_exact(8);
        let rest = blocks.remainder();
        for block in blocks {
            for (sum, value) in sums.iter_mut().zip(block) {
                *sum += value;
            }
        }
        let [a, b, c, d, e, f, g, h] = sums;
        return rest.iter().fold(((a + b) + (c + d)) + ((e + f) + (g + h)), |sum, value| sum + value);
    }
    let half = count / 2 / 8 * 8;
    pairwise_sum(&values[..half]) + pairwise_sum(&values[half..])
}
