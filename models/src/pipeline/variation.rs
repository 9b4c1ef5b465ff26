//! A second noise mixed into the first: pictures near a seed's own.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::Result;

/// The second noise and its share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variation {
    /// Where the second noise starts.
    pub seed: u64,
    /// 0 is the first noise alone, 1 the second alone.
    pub strength: f64,
}

/// Spherical interpolation from `low` to `high`, `(1, height, width, channels)` each, column by column.
///
/// Source: `slerp` in the web UI's `modules/rng.py`, whose norms go over the rows of a column of one channel.
pub(super) fn slerp(low: &Tensor, high: &Tensor, t: f64) -> Result<Tensor> {
    let (_, height, width, channels) = low.dims4()?;
    let (a, b): (Vec<f32>, Vec<f32>) = (low.flatten_all()?.to_vec1()?, high.flatten_all()?.to_vec1()?);
    let columns = width * channels;
    let cosine = |column: usize| {
        let mut sums = [0f64; 3];
        for row in 0..height {
            let i = row * columns + column;
            let (x, y) = (f64::from(a[i]), f64::from(b[i]));
            sums = [sums[0] + x * y, sums[1] + x * x, sums[2] + y * y];
        }
        sums[0] / (sums[1] * sums[2]).sqrt().max(f64::MIN_POSITIVE)
    };
    let cosines: Vec<f64> = (0..columns).map(cosine).collect();
    let weights = |cosine: f64| {
        let omega = cosine.clamp(-1.0, 1.0).acos();
        let sine = omega.sin();
        // Where the two point the same way, or opposite ways, there is no arc between them.
        if sine < 1e-6 { (1.0 - t, t) } else { (((1.0 - t) * omega).sin() / sine, (t * omega).sin() / sine) }
    };
    let weights: Vec<(f64, f64)> = cosines.into_iter().map(weights).collect();
    let mixed = a.iter().zip(&b).enumerate().map(|(i, (x, y))| {
        let (wx, wy) = weights[i % columns];
        (wx * f64::from(*x) + wy * f64::from(*y)) as f32
    });
    Ok(Tensor::from_vec(mixed.collect::<Vec<_>>(), low.dims(), low.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, (1, 2, values.len() / 2, 1), &Device::Cpu).unwrap()
    }

    #[test]
    fn goes_along_the_arc() {
        // Column 0 turns by a right angle; column 1 is the same in both.
        let (low, high) = (tensor(&[1., 2., 0., 3.]), tensor(&[0., 2., 1., 3.]));
        let half: Vec<f32> = slerp(&low, &high, 0.5).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let expected = [0.5f32.sqrt(), 2.0, 0.5f32.sqrt(), 3.0];
        assert!(half.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{half:?}");
        for (t, end) in [(0.0, &low), (1.0, &high)] {
            let made: Vec<f32> = slerp(&low, &high, t).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let end: Vec<f32> = end.flatten_all().unwrap().to_vec1().unwrap();
            assert!(made.iter().zip(end).all(|(a, b)| (a - b).abs() < 1e-6), "{made:?}");
        }
    }
}
