//! PNG files whose pixels are numbers of objects: Pascal VOC's palette images, and masks of two values.

use anyhow::{bail, Context, Result};
use std::collections::HashMap;
use std::io::Cursor;

/// Pixels row by row.
pub(super) struct Numbers {
    pub width: u32,
    pub height: u32,
    pub pixels: Vec<u8>,
}

/// Pascal VOC's colour of a number: bit by bit, the lowest three bits are the highest of red, green, blue.
pub(super) fn colour(number: u8) -> [u8; 3] {
    let mut colour = [0; 3];
    for bit in 0..8u8 {
        colour[usize::from(bit % 3)] |= (number >> bit & 1) << (7 - bit / 3);
    }
    colour
}

/// Reads a PNG: the indices of a palette, the values of a grey image, or the numbers of VOC's colours.
///
/// # Errors
/// The bytes are no PNG, or one with colours that are not VOC's.
pub(super) fn read(bytes: &[u8]) -> Result<Numbers> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info()?;
    let (width, height) = reader.info().size();
    anyhow::ensure!(u64::from(width) * u64::from(height) <= 178_956_970, "{width}×{height} is too large a mask");
    let mut buffer = vec![0; reader.output_buffer_size().context("the mask is too large")?];
    let frame = reader.next_frame(&mut buffer)?;
    let depth = frame.bit_depth as usize;
    let channels = frame.color_type.samples();
    let line_bytes = frame.line_size;
    let numbers: HashMap<[u8; 3], u8> = (0..=255).rev().map(|number| (colour(number), number)).collect();
    let mut pixels = Vec::with_capacity(width as usize * height as usize);
    for line in buffer.chunks_exact(line_bytes).take(height as usize) {
        for x in 0..width as usize {
            let sample = |channel: usize| {
                let bit = (x * channels + channel) * depth;
                match depth {
                    // Of 16 bits the upper 8.
                    8 | 16 => line[bit / 8],
                    _ => line[bit / 8] >> (8 - depth - bit % 8) & ((1 << depth) - 1),
                }
            };
            pixels.push(match channels {
                1 | 2 => sample(0),
                _ => match numbers.get(&[sample(0), sample(1), sample(2)]) {
                    Some(&number) => number,
                    None => bail!("a colour that is not one of Pascal VOC's"),
                },
            });
        }
    }
    Ok(Numbers { width, height, pixels })
}

/// Writes an image of numbers with VOC's palette.
pub(super) fn write_palette(width: u32, height: u32, pixels: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette((0..=255).flat_map(colour).collect::<Vec<u8>>());
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(bytes)
}

/// Writes a mask as a PNG of one bit a pixel.
pub(super) fn write_mask(width: u32, height: u32, pixels: &[bool]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let pack = |line: &[bool]| {
        line.chunks(8)
            .map(|bits| bits.iter().enumerate().fold(0, |byte, (i, &bit)| byte | u8::from(bit) << (7 - i)))
            .collect::<Vec<u8>>()
    };
    let data: Vec<u8> = pixels.chunks(width.max(1) as usize).flat_map(pack).collect();
    encoder.write_header()?.write_image_data(&data)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_those_of_the_voc_development_kit() {
        // From its function VOClabelcolormap.
        let expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]];
        assert_eq!([0, 1, 2, 3, 4].map(colour), expected);
        assert_eq!((colour(15), colour(20), colour(255)), ([192, 128, 128], [0, 64, 128], [224, 224, 192]));
    }

    #[test]
    fn numbers_come_back_from_palettes_and_bits() {
        let pixels: Vec<u8> = (0..30).map(|i| i * 7).collect();
        let palette = read(&write_palette(6, 5, &pixels).unwrap()).unwrap();
        assert_eq!((palette.width, palette.height, palette.pixels), (6, 5, pixels));
        let mask: Vec<bool> = (0..33).map(|i| i % 3 == 0).collect();
        let bits = read(&write_mask(11, 3, &mask).unwrap()).unwrap();
        assert_eq!(bits.pixels.iter().map(|&p| p != 0).collect::<Vec<_>>(), mask);
    }
}
