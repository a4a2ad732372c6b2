//! Tables and lists of text.

/// Lines of columns under each other: the first row is the titles; numbers stand to the right.
pub(crate) fn lines(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|t| t.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let is_number = |text: &str| text.starts_with(|c: char| c.is_ascii_digit() || c == '-') || text.is_empty();
    let right: Vec<bool> = (0..columns)
        .map(|column| rows.iter().skip(1).all(|row| row.get(column).is_none_or(|text| is_number(text))))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, text)| {
            let gap = " ".repeat(widths[column] - text.chars().count());
            if right[column] {
                format!("{gap}{text}")
            } else {
                format!("{text}{gap}")
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Names with commas between; of many the first.
pub(crate) fn shortened(names: &[String]) -> String {
    const MOST: usize = 20;
    let more = if names.len() > MOST { format!(", … ({} more)", names.len() - MOST) } else { String::new() };
    names.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ") + &more
}
