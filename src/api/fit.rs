//! A picture or a mask at another size.

use image::imageops::{self, FilterType};
use image::{ImageBuffer, Pixel};

/// `(width, height)` in pixels.
type Size = (u32, u32);
type Image<P> = ImageBuffer<P, Vec<u8>>;

/// The proportions change.
pub(super) fn stretch<P: Pixel<Subpixel = u8> + 'static>(image: &Image<P>, size: Size) -> Image<P> {
    if image.dimensions() == size {
        return image.clone();
    }
    imageops::resize(image, size.0, size.1, FilterType::Lanczos3)
}

/// The proportions are kept, and what stands out on two sides is cut off.
pub(super) fn cover<P: Pixel<Subpixel = u8> + 'static>(image: &Image<P>, size: Size) -> Image<P> {
    // Cut first: a picture of one row would become huge.
    stretch(&crop(image, size), size)
}

/// The middle of a picture, as much of it as has the proportions of `size`.
pub(super) fn crop<P: Pixel<Subpixel = u8> + 'static>(image: &Image<P>, size: Size) -> Image<P> {
    let (width, height) = image.dimensions();
    let scale = ratios(image.dimensions(), size).into_iter().fold(0.0, f64::max);
    let side = |px: u32, most: u32| ((f64::from(px) / scale).round() as u32).clamp(1, most.max(1));
    let (across, down) = (side(size.0, width), side(size.1, height));
    let (left, top) = (width.saturating_sub(across) / 2, height.saturating_sub(down) / 2);
    imageops::crop_imm(image, left, top, across, down).to_image()
}

/// The proportions are kept, and what is missing on two sides is filled with the rows and columns at the edge.
pub(super) fn contain<P: Pixel<Subpixel = u8> + 'static>(image: &Image<P>, size: Size) -> Image<P> {
    let (width, height) = image.dimensions();
    let scale = ratios(image.dimensions(), size).into_iter().fold(f64::INFINITY, f64::min);
    let side = |px: u32, most: u32| ((f64::from(px) * scale).round() as u32).clamp(1, most.max(1));
    let scaled = stretch(image, (side(width, size.0), side(height, size.1)));
    let (left, top) = ((size.0 - scaled.width()) / 2, (size.1 - scaled.height()) / 2);
    Image::from_fn(size.0, size.1, |x, y| {
        let at = |position: u32, start: u32, length: u32| position.saturating_sub(start).min(length - 1);
        *scaled.get_pixel(at(x, left, scaled.width()), at(y, top, scaled.height()))
    })
}

/// How many times as wide and as high `to` is.
fn ratios(from: Size, to: Size) -> [f64; 2] {
    let ratio = |from: u32, to: u32| f64::from(to.max(1)) / f64::from(from.max(1));
    [ratio(from.0, to.0), ratio(from.1, to.1)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma};

    /// Left half black, right half white.
    fn halves() -> GrayImage {
        GrayImage::from_fn(40, 20, |x, _| Luma([if x < 20 { 0 } else { 255 }]))
    }

    #[test]
    fn covering_cuts_and_containing_fills() {
        let covered = cover(&halves(), (20, 20));
        assert_eq!(covered.dimensions(), (20, 20));
        assert_eq!((covered.get_pixel(0, 10).0, covered.get_pixel(19, 10).0), ([0], [255]));
        let contained = contain(&halves(), (20, 20));
        assert_eq!(contained.dimensions(), (20, 20));
        // Ten rows of picture in the middle, and above them their first row again.
        assert_eq!((contained.get_pixel(0, 0).0, contained.get_pixel(19, 0).0), ([0], [255]));
        assert_eq!(stretch(&halves(), (7, 31)).dimensions(), (7, 31));
        for size in [(1, 1), (3, 4000), (4000, 3)] {
            assert_eq!(cover(&halves(), size).dimensions(), size);
            assert_eq!(contain(&halves(), size).dimensions(), size);
        }
    }
}
