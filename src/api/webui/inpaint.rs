//! Masks: blurred, inverted, the masked part alone at full resolution, and what is put back afterwards.
//!
//! Source: `modules/masking.py`, and `StableDiffusionProcessingImg2Img.init` and `apply_overlay` in
//! `modules/processing.py`, of the web UI.

use image::imageops::{self, fast_blur};
use image::{DynamicImage, GrayImage, ImageBuffer, Luma, Rgb, RgbImage, Rgba};

use crate::api::fit;
use crate::picture::on_white;

/// How a picture comes to the size of the pictures to be made.
pub(super) type Resize<P> = fn(&ImageBuffer<P, Vec<u8>>, (u32, u32)) -> ImageBuffer<P, Vec<u8>>;

/// What a request says of its mask.
pub(super) struct Options {
    pub(super) blur_x: f32,
    pub(super) blur_y: f32,
    pub(super) invert: bool,
    /// The masked part alone is made, with so many pixels around it.
    pub(super) only_masked: Option<u32>,
    /// What is under the mask is replaced by the colours around it.
    pub(super) fill: bool,
    /// `(width, height)` to be made; `None` is the picture's own.
    pub(super) size: Option<(u32, u32)>,
    pub(super) resize: Resize<Rgb<u8>>,
    pub(super) resize_mask: Resize<Luma<u8>>,
}

/// A picture and a mask as the model gets them, and how its answer becomes the whole picture.
pub(super) struct Prepared {
    pub(super) image: RgbImage,
    pub(super) mask: GrayImage,
    pub(super) finish: Finish,
}

/// How the model's answer becomes the whole picture.
#[derive(Clone)]
pub(super) struct Finish {
    /// What is kept where the mask is black.
    original: RgbImage,
    /// How much is new, of the original's size.
    new: GrayImage,
    /// The part that was made; `None` is all of it.
    region: Option<Region>,
}

/// A part of a picture in pixels: from the first to before the last.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Region {
    x: (u32, u32),
    y: (u32, u32),
}

/// `None` where nothing is masked, which leaves an ordinary image-to-image request.
pub(super) fn prepare(image: &RgbImage, mask: &DynamicImage, options: &Options) -> Option<Prepared> {
    let mut mask = fit::stretch(&grey(mask), image.dimensions());
    if options.invert {
        imageops::invert(&mut mask);
    }
    let mask = blurred(&mask, options.blur_x, options.blur_y);
    let size = options.size.unwrap_or(image.dimensions());
    let prepared = match options.only_masked {
        Some(padding) => {
            let region = around(&mask, padding)?.widened(size, mask.dimensions());
            // As "resize and fill": the proportions are right but for rounding.
            Prepared {
                image: fit::contain(&region.of(image), size),
                mask: fit::contain(&region.of(&mask), size),
                finish: Finish { original: image.clone(), new: mask, region: Some(region) },
            }
        }
        None => {
            around(&mask, 0)?;
            let image = (options.resize)(image, size);
            let mask = (options.resize_mask)(&mask, size);
            // So that what is half new for the model does not show through.
            let new = GrayImage::from_fn(mask.width(), mask.height(), |x, y| {
                Luma([mask.get_pixel(x, y).0[0].saturating_mul(2)])
            });
            let finish = Finish { original: image.clone(), new, region: None };
            Prepared { image, mask, finish }
        }
    };
    Some(match options.fill {
        true => Prepared { image: filled(&prepared.image, &prepared.mask), ..prepared },
        false => prepared,
    })
}

impl Finish {
    /// The whole picture.
    pub(super) fn apply(&self, made: &RgbImage) -> RgbImage {
        let mut whole = self.original.clone();
        match self.region {
            Some(region) => {
                let part = fit::cover(made, (region.x.1 - region.x.0, region.y.1 - region.y.0));
                imageops::replace(&mut whole, &part, region.x.0.into(), region.y.0.into());
            }
            None => whole = fit::stretch(made, self.original.dimensions()),
        }
        for (x, y, pixel) in whole.enumerate_pixels_mut() {
            let (new, old) = (u32::from(self.new.get_pixel(x, y).0[0]), self.original.get_pixel(x, y).0);
            for (value, old) in pixel.0.iter_mut().zip(old) {
                *value = ((u32::from(*value) * new + u32::from(old) * (255 - new) + 127) / 255) as u8;
            }
        }
        whole
    }
}

impl Region {
    fn of<P: image::Pixel<Subpixel = u8> + 'static>(
        self,
        image: &ImageBuffer<P, Vec<u8>>,
    ) -> ImageBuffer<P, Vec<u8>> {
        let (width, height) = (self.x.1 - self.x.0, self.y.1 - self.y.0);
        imageops::crop_imm(image, self.x.0, self.y.0, width, height).to_image()
    }

    /// Widened on two sides to the proportions of what is to be made, as far as the picture goes.
    fn widened(self, to: (u32, u32), within: (u32, u32)) -> Self {
        let (width, height) = (f64::from(self.x.1 - self.x.0), f64::from(self.y.1 - self.y.0));
        let ratio = f64::from(to.0) / f64::from(to.1.max(1));
        if width / height > ratio {
            Self { y: widened(self.y, (width / ratio) as u32, within.1), ..self }
        } else {
            Self { x: widened(self.x, (height * ratio) as u32, within.0), ..self }
        }
    }
}

/// A span made `length` long about its middle, moved to where it lies within `0..end`, and cut there.
fn widened((first, last): (u32, u32), length: u32, end: u32) -> (u32, u32) {
    let missing = i64::from(length.saturating_sub(last - first));
    let (mut first, mut last, end) = (i64::from(first), i64::from(last), i64::from(end));
    first -= missing / 2;
    last += missing - missing / 2;
    if last >= end {
        first -= last - end;
        last = end;
    }
    if first < 0 {
        last -= first;
        first = 0;
    }
    (first as u32, last.min(end) as u32)
}

/// The region that is not black, with `padding` pixels around it.
fn around(mask: &GrayImage, padding: u32) -> Option<Region> {
    let mut seen: Option<Region> = None;
    for (x, y, _) in mask.enumerate_pixels().filter(|(_, _, pixel)| pixel.0[0] > 0) {
        let region = seen.get_or_insert(Region { x: (x, x + 1), y: (y, y + 1) });
        region.x = (region.x.0.min(x), region.x.1.max(x + 1));
        region.y = (region.y.0.min(y), region.y.1.max(y + 1));
    }
    let padded =
        |(first, last): (u32, u32), end: u32| (first.saturating_sub(padding), (last + padding).min(end));
    seen.map(|r| Region { x: padded(r.x, mask.width()), y: padded(r.y, mask.height()) })
}

/// A mask's alpha channel where it has one that says something, else its brightness.
fn grey(mask: &DynamicImage) -> GrayImage {
    let rgba = mask.to_rgba8();
    if mask.color().has_alpha() && rgba.pixels().any(|pixel| pixel.0[3] != 255) {
        let on = |x, y| if rgba.get_pixel(x, y).0[3] > 128 { 255 } else { 0 };
        return GrayImage::from_fn(rgba.width(), rgba.height(), |x, y| Luma([on(x, y)]));
    }
    DynamicImage::from(on_white(mask)).to_luma8()
}

fn blurred(mask: &GrayImage, x: f32, y: f32) -> GrayImage {
    let along = |mask: &GrayImage, sigma: f32, horizontal: bool| match sigma > 0.0 {
        true => blurred_along(mask, sigma, horizontal),
        false => mask.clone(),
    };
    along(&along(mask, x, true), y, false)
}

/// A Gaussian of `sigma` pixels over as many pixels as the web UI's, and edges reflected as OpenCV does.
fn blurred_along(mask: &GrayImage, sigma: f32, horizontal: bool) -> GrayImage {
    let radius = (2.5 * sigma + 0.5) as i64;
    let weight = |d: i64| (-((d * d) as f32) / (2.0 * sigma * sigma)).exp();
    let weights: Vec<f32> = (-radius..=radius).map(weight).collect();
    let sum: f32 = weights.iter().sum();
    let reflected = |at: i64, length: u32| {
        let last = i64::from(length) - 1;
        if last == 0 {
            return 0;
        }
        let at = at.rem_euclid(2 * last);
        (if at > last { 2 * last - at } else { at }) as u32
    };
    let (width, height) = mask.dimensions();
    GrayImage::from_fn(width, height, |x, y| {
        let at = |d: i64| match horizontal {
            true => mask.get_pixel(reflected(i64::from(x) + d, width), y),
            false => mask.get_pixel(x, reflected(i64::from(y) + d, height)),
        };
        let value: f32 = (-radius..=radius).zip(&weights).map(|(d, w)| f32::from(at(d).0[0]) * w).sum();
        Luma([(value / sum).round() as u8])
    })
}

/// `(radius, repeats)`: the nearer colours come last and count most.
const FILL: [(f32, usize); 6] = [(256.0, 1), (64.0, 1), (16.0, 2), (4.0, 4), (2.0, 2), (0.0, 1)];

/// What is under the mask replaced by the blurred colours around it.
fn filled(image: &RgbImage, mask: &GrayImage) -> RgbImage {
    type Premultiplied = ImageBuffer<Rgba<f32>, Vec<f32>>;
    let kept = Premultiplied::from_fn(image.width(), image.height(), |x, y| {
        let alpha = f32::from(255 - mask.get_pixel(x, y).0[0]) / 255.0;
        let [r, g, b] = image.get_pixel(x, y).0.map(|c| f32::from(c) / 255.0 * alpha);
        Rgba([r, g, b, alpha])
    });
    let mut painted = Premultiplied::new(image.width(), image.height());
    for (radius, repeats) in FILL {
        let blurred = if radius > 0.0 { fast_blur(&kept, radius) } else { kept.clone() };
        for _ in 0..repeats {
            for (under, over) in painted.pixels_mut().zip(blurred.pixels()) {
                let through = 1.0 - over.0[3];
                under.0 = std::array::from_fn(|c| over.0[c] + under.0[c] * through);
            }
        }
    }
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [r, g, b, alpha] = painted.get_pixel(x, y).0;
        // Where nothing is kept far and wide there are no colours to go by.
        if alpha < 1e-4 {
            return *image.get_pixel(x, y);
        }
        Rgb([r, g, b].map(|c| (c / alpha * 255.0).round().clamp(0.0, 255.0) as u8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_grow_to_the_proportions_and_stay_inside() {
        let region = Region { x: (40, 60), y: (10, 20) };
        // 20 x 10 for a square: 5 more above and below.
        assert_eq!(region.widened((64, 64), (100, 100)), Region { x: (40, 60), y: (5, 25) });
        // At the lower edge it moves up.
        let low = Region { x: (40, 60), y: (90, 100) };
        assert_eq!(low.widened((64, 64), (100, 100)), Region { x: (40, 60), y: (80, 100) });
        // For twice as wide as high: what is 20 wide must be 10 high, and is.
        assert_eq!(region.widened((128, 64), (100, 100)), region);
        // More than there is.
        let all = Region { x: (0, 10), y: (0, 100) };
        assert_eq!(all.widened((400, 100), (50, 100)), Region { x: (0, 50), y: (0, 100) });
    }

    #[test]
    fn padding_ends_at_the_edges() {
        let mut mask = GrayImage::new(20, 10);
        mask.put_pixel(3, 8, Luma([1]));
        assert_eq!(around(&mask, 4), Some(Region { x: (0, 8), y: (4, 10) }));
        assert_eq!(around(&GrayImage::new(4, 4), 4), None);
    }

    #[test]
    fn blur_keeps_flat_parts_and_halves_edges() {
        let edge = GrayImage::from_fn(41, 5, |x, _| Luma([if x < 20 { 0 } else { 255 }]));
        let soft = blurred(&edge, 4.0, 4.0);
        assert_eq!((soft.get_pixel(2, 2).0, soft.get_pixel(38, 2).0), ([0], [255]));
        // The integral of a Gaussian of sigma 4 from -0.5: 0.5 + 0.0497.
        let middle = soft.get_pixel(20, 2).0[0];
        assert!((139..=142).contains(&middle), "{middle}");
        assert_eq!(blurred(&edge, 0.0, 4.0), edge, "along the edge there is nothing to soften");
    }

    #[test]
    fn filling_takes_the_colours_around() {
        let image =
            RgbImage::from_fn(32, 32, |x, _| Rgb([if (8..24).contains(&x) { 255 } else { 40 }, 90, 10]));
        let mask = GrayImage::from_fn(32, 32, |x, _| Luma([if (8..24).contains(&x) { 255 } else { 0 }]));
        let filled = filled(&image, &mask);
        assert!(filled.get_pixel(16, 16).0[0].abs_diff(40) <= 1, "{:?}", filled.get_pixel(16, 16));
        assert_eq!(filled.get_pixel(2, 2), image.get_pixel(2, 2));
    }
}
