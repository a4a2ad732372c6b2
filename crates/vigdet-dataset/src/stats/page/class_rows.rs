//! How many objects each class has in each split.

use super::{left, most, titled, Area, Stats, MARGIN, WIDTH};
use crate::stats::classes;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use vigdet_coco::plot::{shortened, style};

/// Height of a bar, and space between classes, in pixels.
const GAP: i32 = 8;
/// Of the title, and of the end of the page.
const HEAD: i32 = 44;
/// So many classes make a column before there is a second.
const COLUMN: usize = 12;
/// Beyond this many classes those with the most and the fewest objects are shown.
const MOST: usize = 120;
/// Beside a bar there are so many counts at most.
const COUNTS: usize = 4;
/// Width of the names.
const NAMES: i32 = 150;

/// Classes with their counts, those that are shown.
fn shown(stats: &[Stats]) -> (Vec<(&str, Vec<usize>)>, usize) {
    let all = classes(stats).into_iter();
    let mut rows: Vec<(&str, Vec<usize>)> =
        all.map(|class| (class, stats.iter().map(|stats| stats.objects_of(class)).collect())).collect();
    let total = rows.len();
    if total > MOST {
        rows.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.iter().sum::<usize>()));
        rows.drain(MOST / 2..total - MOST / 2);
    }
    (rows, total)
}

fn columns(rows: usize) -> usize {
    rows.div_ceil(COLUMN).clamp(1, 3)
}

/// Height of a bar: thinner where there are many splits.
fn bar(splits: usize) -> i32 {
    match splits {
        0 | 1 => 14,
        2 => 8,
        3 => 6,
        _ => 4,
    }
}

fn row_height(splits: usize) -> i32 {
    (bar(splits) * splits.max(1) as i32 + GAP).max(22)
}

/// Height that [`draw`] needs.
pub(super) fn height(stats: &[Stats]) -> u32 {
    let rows = classes(stats).len().min(MOST);
    let lines = rows.div_ceil(columns(rows)) as i32;
    (HEAD + lines * row_height(stats.len()) + 16) as u32
}

pub(super) fn draw<DB: DrawingBackend>(area: &Area<DB>, stats: &[Stats]) -> style::DrawResult<(), DB> {
    let (rows, total) = shown(stats);
    let which = if total > rows.len() {
        format!(", the {} with most and the {} with fewest of {total}", MOST / 2, MOST / 2)
    } else {
        String::new()
    };
    let title = format!("Objects of each class{which} (bars: share of the split's objects; numbers: objects)");
    let below = titled(area, &title)?;
    let share = |split: usize, count: usize| count as f64 / stats[split].objects.max(1) as f64;
    let shares: Vec<f64> =
        rows.iter().flat_map(|(_, counts)| counts.iter().enumerate().map(|(s, &count)| share(s, count))).collect();
    let high = most(&shares);
    let note = |counts: &[usize]| {
        if counts.len() > COUNTS {
            return counts.iter().sum::<usize>().to_string();
        }
        counts.iter().map(usize::to_string).collect::<Vec<_>>().join(" / ")
    };
    let longest = rows.iter().map(|(_, counts)| note(counts).chars().count()).max().unwrap_or(0) as i32;
    let columns = columns(rows.len());
    let width = (WIDTH as i32 - MARGIN) / columns as i32;
    // What names and numbers leave.
    let room = (width - MARGIN - NAMES - 9 * longest - 24).max(40);
    let (splits, lines) = (stats.len(), rows.len().div_ceil(columns));
    let step = row_height(splits);
    for (at, (class, counts)) in rows.iter().enumerate() {
        let (x, y) = (MARGIN + width * (at / lines) as i32 + NAMES, step * (at % lines) as i32);
        let middle = y + step / 2;
        let right = style::text(14.0).pos(Pos::new(HPos::Right, VPos::Center));
        below.draw(&Text::new(shortened(class, 18), (x - 8, middle), right))?;
        let top = middle - bar(splits) * splits as i32 / 2;
        let mut end = x;
        for (split, &count) in counts.iter().enumerate() {
            let length = (share(split, count) / high * f64::from(room)).round() as i32;
            let from = top + bar(splits) * split as i32;
            let corners = [(x, from), (x + length, from + bar(splits) - 1)];
            below.draw(&Rectangle::new(corners, style::colour(split).filled()))?;
            end = end.max(x + length);
        }
        below.draw(&Text::new(note(counts), (end + 8, middle), left(13.0)))?;
    }
    Ok(())
}
