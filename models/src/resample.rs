//! Resizing of 8-bit pictures, byte for byte as Pillow does it.
//!
//! diffusers and transformers resize pictures and masks through Pillow, so equal pictures need its arithmetic: weights
//! in fixed point, rows first, and a rounding to bytes between the two passes. Source: `Resample.c` of Pillow.

/// What weighs the input pixels around an output pixel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Filter {
    /// `LANCZOS`: a sinc under the middle lobe of another, three lobes on either side.
    Lanczos,
    /// `BICUBIC`: Keys' cubic with a slope of -0.5 at distance 1, two pixels on either side.
    Bicubic,
}

impl Filter {
    /// How far it reaches on either side, in pixels of the coarser grid.
    fn support(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The weight at a distance of `x` such pixels.
    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Lanczos => lanczos(x),
            Self::Bicubic => bicubic(x),
        }
    }
}

/// Bits behind the point of a weight: 32, less 8 for the byte, less 2 for the sum.
const PRECISION: u32 = 22;

/// The input pixels of one output pixel: the first of them, and a weight for each.
struct Window {
    first: usize,
    weights: Vec<i64>,
}

/// Resizes `channels` interleaved bytes a pixel from `(width, height)` to another; sizes are at least 1.
pub(crate) fn resize(
    pixels: &[u8],
    channels: usize,
    from: (usize, usize),
    to: (usize, usize),
    filter: Filter,
) -> Vec<u8> {
    let mut pixels = pixels.to_vec();
    if from.0 != to.0 {
        pixels = along_rows(&pixels, channels, from.0, &windows(from.0, to.0, filter));
    }
    if from.1 != to.1 {
        pixels = along_columns(&pixels, channels * to.0, &windows(from.1, to.1, filter));
    }
    pixels
}

fn along_rows(pixels: &[u8], channels: usize, from: usize, windows: &[Window]) -> Vec<u8> {
    let mut out = Vec::with_capacity(pixels.len() / from * windows.len());
    for row in pixels.chunks_exact(from * channels) {
        for window in windows {
            for c in 0..channels {
                let values = row[window.first * channels + c..].iter().step_by(channels);
                out.push(weighted(values, &window.weights));
            }
        }
    }
    out
}

fn along_columns(pixels: &[u8], row: usize, windows: &[Window]) -> Vec<u8> {
    let mut out = Vec::with_capacity(windows.len() * row);
    for window in windows {
        for x in 0..row {
            out.push(weighted(pixels[window.first * row + x..].iter().step_by(row), &window.weights));
        }
    }
    out
}

fn weighted<'a>(values: impl Iterator<Item = &'a u8>, weights: &[i64]) -> u8 {
    let sum: i64 = values.zip(weights).map(|(&v, w)| i64::from(v) * w).sum();
    ((sum + (1 << (PRECISION - 1))) >> PRECISION).clamp(0, 255) as u8
}

fn windows(from: usize, to: usize, filter: Filter) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    // Shrinking widens the filter, so that every input pixel counts.
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let window = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weight = |x: usize| filter.weight((x as f64 - centre + 0.5) * (1.0 / filter_scale));
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |w: f64| (w / sum * f64::from(1 << PRECISION)).round() as i64;
        Window { first, weights: weights.into_iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}

fn lanczos(x: f64) -> f64 {
    let sinc =
        |x: f64| if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) };
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
