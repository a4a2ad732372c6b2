//! From pixels to runs.

/// Lengths of equal stretches, starting with `false`, which may be 0 long.
pub(super) fn runs_of(pixels: impl Iterator<Item = bool>) -> Vec<u32> {
    let mut runs = Vec::new();
    let (mut value, mut length) = (false, 0);
    for pixel in pixels {
        if pixel != value {
            runs.push(length);
            (value, length) = (pixel, 0);
        }
        length += 1;
    }
    runs.push(length);
    runs
}
