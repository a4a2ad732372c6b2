//! Pictures in rows, each with its name.

use anyhow::Result;
use image::{Rgb, RgbImage};

use super::canvas::{text_size, Canvas, Color, Rect, Weight};

/// Text height in pixels.
const TEXT: f32 = 20.0;

/// Room between pictures in pixels.
const GAP: i64 = 14;

/// Lays pictures out in rows of `columns`, each row as tall as its tallest, under a title and, where there is one, a
/// legend of words and their colours.
///
/// # Errors
/// A font that cannot be read.
pub fn contact_sheet(
    title: &str,
    legend: &[(String, Color)],
    pictures: &[(String, RgbImage)],
    columns: usize,
) -> Result<RgbImage> {
    let line = (TEXT * 1.6) as i64;
    let columns = columns.clamp(1, pictures.len().max(1));
    let cell = pictures.iter().map(|(_, picture)| i64::from(picture.width())).max().unwrap_or(0);
    let rows: Vec<&[(String, RgbImage)]> = pictures.chunks(columns).collect();
    let tall = |row: &[(String, RgbImage)]| row.iter().map(|(_, p)| i64::from(p.height())).max().unwrap_or(0);
    let head = GAP + line * if legend.is_empty() { 1 } else { 2 };
    let height = head + rows.iter().map(|row| line + tall(row) + GAP).sum::<i64>();
    let own = text_size(title, TEXT, Weight::Bold)?.0 + 2 * GAP;
    let width = (GAP + columns as i64 * (cell + GAP)).max(own);
    let mut canvas = Canvas::new(RgbImage::from_pixel(width as u32, height as u32, Rgb([255; 3])));
    canvas.text(GAP, GAP / 2, title, TEXT, Weight::Bold, [0; 3])?;
    let mut x = GAP;
    for (word, color) in legend {
        let y = GAP / 2 + line;
        canvas.fill(Rect { x, y: y + 3, w: line / 2, h: line / 2 }, *color, 1.0);
        x += line / 2 + GAP / 2;
        canvas.text(x, y, word, TEXT, Weight::Regular, [0; 3])?;
        x += text_size(word, TEXT, Weight::Regular)?.0 + 2 * GAP;
    }
    let mut y = head;
    for row in rows {
        for (column, (name, picture)) in row.iter().enumerate() {
            let x = GAP + column as i64 * (cell + GAP);
            canvas.text(x, y, &shortened(name, cell)?, TEXT, Weight::Regular, [60; 3])?;
            canvas.paste(picture, x, y + line);
        }
        y += line + tall(row) + GAP;
    }
    Ok(canvas.into_image())
}

/// The end of a name, which tells more than its beginning, where the whole is wider than `width` pixels.
fn shortened(name: &str, width: i64) -> Result<String> {
    let mut shown = name.to_string();
    let mut rest = name;
    while text_size(&shown, TEXT, Weight::Regular)?.0 > width {
        let mut letters = rest.chars();
        if letters.next().is_none() {
            return Ok(String::new());
        }
        rest = letters.as_str();
        shown = format!("…{rest}");
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_unequal_sizes_lie_in_rows_without_touching() {
        let picture =
            |width, height, grey| (format!("{grey}.png"), RgbImage::from_pixel(width, height, Rgb([grey; 3])));
        let pictures = [picture(60, 40, 10), picture(80, 20, 20), picture(30, 90, 30)];
        let sheet = contact_sheet("t", &[], &pictures, 2).unwrap();
        let count = |grey| sheet.pixels().filter(|p| p.0 == [grey; 3]).count();
        assert!(count(10) >= 60 * 40 && count(20) >= 80 * 20 && count(30) >= 30 * 90);
        assert_eq!(i64::from(sheet.width()), GAP + 2 * (80 + GAP));
        assert_eq!(shortened("a_very_long_name_of_an_image.jpg", 60).unwrap().chars().next(), Some('…'));
    }
}
