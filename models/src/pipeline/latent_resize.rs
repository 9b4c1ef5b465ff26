//! Latents at another size, as `torch.nn.functional.interpolate` makes them without corner alignment.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How values between latents are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Interpolation {
    /// `nearest`: the latent at or before.
    Nearest,
    /// `nearest-exact`: the latent under the centre.
    NearestExact,
    /// `bilinear`.
    Bilinear,
    /// `bicubic`, with torch's slope of -0.75 at distance 1.
    Bicubic,
}

/// `latents`: `(batch, h, w, channels)` in f32; the result is `(batch, height, width, channels)` on the same device.
pub(super) fn resize(latents: &Tensor, height: usize, width: usize, how: Interpolation) -> Result<Tensor> {
    let (batch, h, w, channels) = latents.dims4()?;
    if [batch, h, w, channels, height, width].contains(&0) {
        return Err(Error::invalid(format!("latents of {h} x {w} cannot be resized to {height} x {width}")));
    }
    let values: Vec<f32> = latents.flatten_all()?.to_vec1()?;
    let values = along(&values, w, channels, &taps(w, width, how));
    let values = along(&values, h, width * channels, &taps(h, height, how));
    Ok(Tensor::from_vec(values, (batch, height, width, channels), latents.device())?)
}

/// Resizes the middle axis of `(outer, from, inner)`.
fn along(values: &[f32], from: usize, inner: usize, taps: &[Vec<(usize, f32)>]) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len() / from * taps.len());
    for block in values.chunks_exact(from * inner) {
        for taps in taps {
            let value =
                |i: usize| taps.iter().map(|(at, weight)| block[at * inner + i] * weight).sum::<f32>();
            out.extend((0..inner).map(value));
        }
    }
    out
}

/// The inputs of each output and their weights; beyond an edge its own value goes on.
fn taps(from: usize, to: usize, how: Interpolation) -> Vec<Vec<(usize, f32)>> {
    let scale = from as f64 / to as f64;
    let last = from - 1;
    let one = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        match how {
            Interpolation::Nearest => vec![(((i as f64 * scale) as usize).min(last), 1.0)],
            Interpolation::NearestExact => vec![((centre as usize).min(last), 1.0)],
            Interpolation::Bilinear => {
                let at = (centre - 0.5).max(0.0);
                let (first, part) = (at as usize, at.fract() as f32);
                vec![(first.min(last), 1.0 - part), ((first + 1).min(last), part)]
            }
            Interpolation::Bicubic => {
                let (first, part) = ((centre - 0.5).floor(), (centre - 0.5).rem_euclid(1.0));
                let tap = |k: i64| {
                    let at = (first as i64 + k).clamp(0, last as i64) as usize;
                    (at, cubic(part - k as f64) as f32)
                };
                (-1..=2).map(tap).collect()
            }
        }
    };
    (0..to).map(one).collect()
}

/// Keys' cubic.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.75;
    let x = x.abs();
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Recorded: `torch.nn.functional.interpolate(torch.tensor([[[1., 2., 4.]]])[..., None, :], (1, 6), mode=...)`.
    #[test]
    fn interpolates_as_torch_does() {
        let row = Tensor::new(&[[[[1f32], [2.], [4.]]]], &Device::Cpu).unwrap();
        for (how, expected) in [
            (Interpolation::Nearest, [1., 1., 2., 2., 4., 4.]),
            (Interpolation::NearestExact, [1., 1., 2., 2., 4., 4.]),
            (Interpolation::Bilinear, [1., 1.25, 1.75, 2.5, 3.5, 4.]),
            (Interpolation::Bicubic, [0.8945, 1.1562, 1.5625, 2.5586, 3.5820, 4.2109]),
        ] {
            let made: Vec<f32> = resize(&row, 1, 6, how).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            for (made, expected) in made.iter().zip(expected) {
                assert!((made - expected).abs() < 1e-4, "{how:?}: {made} for {expected}");
            }
        }
    }

    /// Recorded as above, to `(1, 5)`.
    #[test]
    fn nearest_and_exact_differ() {
        let row = Tensor::new(&[[[[1f32], [2.], [4.]]]], &Device::Cpu).unwrap();
        for (how, expected) in [
            (Interpolation::Nearest, [1., 1., 2., 2., 4.]),
            (Interpolation::NearestExact, [1., 1., 2., 4., 4.]),
        ] {
            let made: Vec<f32> = resize(&row, 1, 5, how).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(made, expected, "{how:?}");
        }
    }

    #[test]
    fn rows_and_columns_go_their_own_ways() {
        let square = Tensor::new(&[[[[0f32], [1.]], [[2.], [3.]]]], &Device::Cpu).unwrap();
        let wide = resize(&square, 2, 4, Interpolation::Nearest).unwrap();
        let values: Vec<f32> = wide.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(values, [0., 0., 1., 1., 2., 2., 3., 3.]);
        assert!(resize(&square, 0, 4, Interpolation::Nearest).is_err());
    }
}
