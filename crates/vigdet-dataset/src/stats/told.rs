//! Statistics as tables.

use super::{classes, Stats, OVERLAPS};

/// Statistics as tables for people.
pub fn lines(stats: &[Stats]) -> Vec<String> {
    let titles = |first: &str, others: &[&str]| {
        std::iter::once(first).chain(others.iter().copied()).map(str::to_owned).collect::<Vec<_>>()
    };
    let names: Vec<&str> = stats.iter().map(|stats| stats.split.as_str()).collect();
    let row = |title: &str, of: &dyn Fn(&Stats) -> String| {
        std::iter::once(title.to_owned()).chain(stats.iter().map(of)).collect::<Vec<_>>()
    };
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let mut rows = vec![titles("", &names)];
    rows.push(row("images", &|s| s.images.to_string()));
    rows.push(row("  without objects", &|s| s.images_without_objects.to_string()));
    rows.push(row("objects", &|s| s.objects.to_string()));
    rows.push(row("  with an outline", &|s| s.with_outline.to_string()));
    for (i, least) in OVERLAPS.iter().enumerate() {
        rows.push(row(&format!("  overlapped, IoU > {least}"), &|s| percent(s.overlapped[i])));
    }
    rows.push(row("crowds", &|s| s.crowds.to_string()));
    for (i, range) in ["below 32", "32 to 96", "above 96"].iter().enumerate() {
        rows.push(row(&format!("  {range} pixels, resized"), &|s| percent(s.small_medium_large[i])));
    }
    let mut lines = crate::table::lines(&rows);
    lines.push(String::new());
    let mut rows = vec![titles("class", &names)];
    for class in classes(stats) {
        rows.push(row(class, &|s| s.objects_of(class).to_string()));
    }
    lines.extend(crate::table::lines(&rows));
    for stats in stats {
        lines.push(String::new());
        let mut rows = vec![titles(&stats.split, &["least", "10%", "median", "90%", "most"])];
        let mut add = |title: &str, values: [f64; 5], decimals: usize| {
            let cells = values.iter().map(|value| format!("{value:.decimals$}"));
            rows.push(std::iter::once(title.to_owned()).chain(cells).collect());
        };
        add("shorter side of images", stats.image_short_side, 0);
        add("√area of objects", stats.size, 1);
        add("√area, resized", stats.size_resized, 1);
        add("height / width", stats.aspect, 2);
        add("objects an image", stats.objects_per_image, 0);
        lines.extend(crate::table::lines(&rows));
        let thirds = stats.thirds();
        let thirds = thirds.chunks(3).map(|row| row.iter().map(|s| percent(*s)).collect::<Vec<_>>().join(" "));
        lines.push(format!("centres by thirds of the image: {}", thirds.collect::<Vec<_>>().join(" | ")));
    }
    lines
}
