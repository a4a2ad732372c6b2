//! Image files to 8-bit RGB, as Pillow's `convert("RGB")` gives it.
//!
//! JPEG (grey, YCbCr, RGB, CMYK, YCCK; baseline and progressive) and PNG (grey, palette, RGB, 8 or 16 bits, with or
//! without alpha). Alpha is dropped, not blended, and of 16 bits the upper 8 are kept. The EXIF orientation is ignored
//! unless asked for: that is what users of torchvision and pycocotools expect, whose boxes are in the pixels as
//! stored. BMP, GIF (its first frame), PNM, TIFF and WebP are read by the `image` crate.

use std::path::Path;

use anyhow::{anyhow, bail, ensure, Context, Result};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, Limits, RgbImage};
use vigdet_dataset::images::has_end;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::ahead::caught;

/// More pixels than this are refused, as Pillow does: a small file can claim any size.
pub(crate) const MOST_PIXELS: u64 = 178_956_970;
/// Nor may a decoder take more memory than so many pixels of 16 bits with alpha have, in bytes.
const MOST_BYTES: u64 = 8 * MOST_PIXELS;

/// Formats beside JPEG and PNG.
const OTHERS: [ImageFormat; 5] =
    [ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::Pnm, ImageFormat::Tiff, ImageFormat::WebP];

/// Reads an image file. The format is taken from the content, not from the name.
///
/// With `exif`, the image is turned as its EXIF orientation says.
///
/// Errors name the file: not there, of no format that is known, damaged, truncated, too large.
pub fn open(path: &Path, exif: bool) -> Result<RgbImage> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read image {}", path.display()))?;
    // A decoder that panics has met a file that it cannot read.
    let decode = || from_bytes(&bytes, exif).with_context(|| format!("cannot decode image {}", path.display()));
    caught(|| format!("decoding image {}", path.display()), decode)
}

/// [`open`] for a file that is in memory.
pub fn from_bytes(bytes: &[u8], exif: bool) -> Result<RgbImage> {
    let (image, orientation) = match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => jpeg(bytes, exif)?,
        Ok(ImageFormat::Png) => png(bytes, exif)?,
        _ if bytes.is_empty() => bail!("the file is empty"),
        Ok(format) if OTHERS.contains(&format) => other(bytes, format, exif)?,
        _ => bail!("neither JPEG nor PNG, nor BMP, GIF, PNM, TIFF or WebP"),
    };
    if orientation == Orientation::NoTransforms {
        return Ok(image);
    }
    let mut turned = DynamicImage::ImageRgb8(image);
    turned.apply_orientation(orientation);
    Ok(turned.into_rgb8())
}

/// Width and height as stored in the file's header, and whether its EXIF orientation swaps them.
pub fn dimensions(path: &Path) -> Result<(u32, u32, bool)> {
    let reader = image::ImageReader::open(path)
        .and_then(|reader| reader.with_guessed_format())
        .with_context(|| format!("cannot read image {}", path.display()))?;
    let mut decoder = reader.into_decoder().with_context(|| format!("cannot decode image {}", path.display()))?;
    let (width, height) = decoder.dimensions();
    Ok((width, height, decoder.orientation().is_ok_and(swaps_sides)))
}

fn swaps_sides(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    )
}

fn check_size(width: u64, height: u64) -> Result<()> {
    ensure!(width > 0 && height > 0, "the image has no pixels ({width}×{height})");
    ensure!(
        width.saturating_mul(height) <= MOST_PIXELS,
        "{width}×{height} is more than the {MOST_PIXELS} pixels that an image may have"
    );
    Ok(())
}

/// What a decoder may take: a few bytes can unpack to any number.
fn limits() -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MOST_BYTES);
    limits
}

/// All pixels of an image whose header was read.
fn pixels(decoder: impl ImageDecoder) -> Result<RgbImage> {
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    let bytes = decoder.total_bytes();
    ensure!(bytes <= MOST_BYTES, "its pixels take {bytes} bytes, more than the {MOST_BYTES} that they may");
    Ok(to_rgb8(DynamicImage::from_decoder(decoder)?))
}

fn jpeg(bytes: &[u8], exif: bool) -> Result<(RgbImage, Orientation)> {
    match jpeg_pixels(bytes, exif, true) {
        Ok(image) => Ok(image),
        // Without an end marker the rest of the image is missing. With one, the file is only untidy or lightly damaged:
        // what libjpeg decodes with a warning is decoded here too.
        Err(error) if !has_end(bytes) => Err(error.context("the file is truncated")),
        Err(_) => jpeg_pixels(bytes, exif, false),
    }
}

fn jpeg_pixels(bytes: &[u8], exif: bool, strict: bool) -> Result<(RgbImage, Orientation)> {
    let options = DecoderOptions::default()
        .set_strict_mode(strict)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| anyhow!("{e}"))?;
    let (width, height) = decoder.dimensions().context("no size in the header")?;
    check_size(width as u64, height as u64)?;
    let orientation = match decoder.exif() {
        Some(chunk) if exif => Orientation::from_exif_chunk(chunk).unwrap_or(Orientation::NoTransforms),
        _ => Orientation::NoTransforms,
    };
    let pixels = decoder.decode().map_err(|e| anyhow!("{e}"))?;
    let image = RgbImage::from_raw(width as u32, height as u32, pixels)
        .context("the decoder gave fewer pixels than the header says")?;
    Ok((image, orientation))
}

fn png(bytes: &[u8], exif: bool) -> Result<(RgbImage, Orientation)> {
    let mut decoder = image::codecs::png::PngDecoder::with_limits(std::io::Cursor::new(bytes), limits())?;
    let orientation = if exif { decoder.orientation()? } else { Orientation::NoTransforms };
    Ok((pixels(decoder)?, orientation))
}

fn other(bytes: &[u8], format: ImageFormat, exif: bool) -> Result<(RgbImage, Orientation)> {
    let reader = image::ImageReader::with_format(std::io::Cursor::new(bytes), format);
    let mut decoder = reader.into_decoder()?;
    decoder.set_limits(limits())?;
    let orientation = if exif { decoder.orientation()? } else { Orientation::NoTransforms };
    Ok((pixels(decoder)?, orientation))
}

/// 8-bit RGB without alpha. The upper byte of 16 bits is kept, as libpng, Pillow and OpenCV do; `image` would round.
fn to_rgb8(image: DynamicImage) -> RgbImage {
    let (width, height) = (image.width(), image.height());
    let upper = |samples: &[u16], channels: usize| {
        let mut out = RgbImage::new(width, height);
        for (pixel, sample) in out.pixels_mut().zip(samples.chunks_exact(channels)) {
            let colour = if channels < 3 { [sample[0]; 3] } else { [sample[0], sample[1], sample[2]] };
            pixel.0 = colour.map(|v| (v >> 8) as u8);
        }
        out
    };
    match &image {
        DynamicImage::ImageLuma16(i) => upper(i.as_raw(), 1),
        DynamicImage::ImageLumaA16(i) => upper(i.as_raw(), 2),
        DynamicImage::ImageRgb16(i) => upper(i.as_raw(), 3),
        DynamicImage::ImageRgba16(i) => upper(i.as_raw(), 4),
        _ => image.into_rgb8(),
    }
}
