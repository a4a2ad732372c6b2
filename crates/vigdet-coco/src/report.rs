//! Results as text.

use crate::eval::{Evaluation, AREA_LABELS};
use std::fmt::Write;

/// A table of the classes, best AP first, those without objects last. Area ranges that COCO does not have add columns with the AP in each.
pub fn class_table(evaluation: &Evaluation) -> String {
    let mut classes = evaluation.per_class();
    classes.sort_by(|a, b| b.ap.total_cmp(&a.ap));
    let name_of = |class: &crate::eval::ClassResult| {
        if class.name.is_empty() {
            class.category_id.to_string()
        } else {
            class.name.clone()
        }
    };
    let width = classes.iter().map(|class| name_of(class).chars().count()).max().unwrap_or(0).max(5);
    let mut table = format!("{:<width$} {:>8}", "class", "objects");
    for title in ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR"] {
        let _ = write!(table, " {title:>6}");
    }
    let areas = evaluation.params.areas.iter().enumerate();
    let extra: Vec<(usize, &str)> = areas
        .map(|(a, area)| (a, area.label.as_str()))
        .filter(|(_, label)| !AREA_LABELS.contains(label))
        .collect();
    for (_, label) in &extra {
        let _ = write!(table, " {label:>6}");
    }
    for class in &classes {
        let _ = write!(table, "\n{:<width$} {:>8}", name_of(class), class.objects);
        let cell = |value: f64| if value < 0.0 { "-".to_owned() } else { format!("{value:.3}") };
        for value in
            [class.ap, class.ap50, class.ap75, class.ap_small, class.ap_medium, class.ap_large, class.ar]
        {
            let _ = write!(table, " {:>6}", cell(value));
        }
        for &(a, label) in &extra {
            let width = label.chars().count().max(6);
            let _ = write!(table, " {:>width$}", cell(class.ap_per_area[a]));
        }
    }
    table
}
