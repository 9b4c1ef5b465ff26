//! Fixed pseudo-random weights that are computed from a tensor's name, so that no bytes need to be stored.
//!
//! The built-in model and the parity tests use them; `tests/reference/synthetic.py` is the same formula in numpy.
//! Scales are chosen so that every part of a network matters: norms and biases are far from 1 and 0, queries and keys
//! are large enough for attention to choose, output layers reach unit variance.

use rayon::prelude::*;

/// The scale and offset of a tensor, by its name and shape.
pub(super) fn range(name: &str, shape: &[usize]) -> (f32, f32) {
    if shape.len() < 2 {
        return if name.ends_with(".weight") { (0.25, 1.0) } else { (0.1, 0.0) };
    }
    if name.contains("embedding.weight") {
        return (0.5, 0.0);
    }
    let fan_in: usize = shape[1..].iter().product();
    let ends = |suffixes: &[&str]| suffixes.iter().any(|s| name.ends_with(s));
    let gain = if ends(&["to_q.weight", "to_k.weight", "q_proj.weight", "k_proj.weight"]) {
        2.0
    } else if name.ends_with("decoder.conv_out.weight") {
        0.6
    } else if name.ends_with("conv_out.weight") {
        1.6
    } else {
        1.0
    };
    ((gain * (3.0 / fan_in as f64).sqrt()) as f32, 0.0)
}

/// 64-bit FNV-1a.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The values of the tensor `name`: `offset + scale * u`, `u` uniform in -1..1 from splitmix64.
pub fn tensor(name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let (scale, offset) = range(name, shape);
    let start = fnv1a(name) ^ seed.wrapping_mul(GOLDEN);
    (1..=shape.iter().product::<usize>() as u64)
        .into_par_iter()
        .map(|i| {
            let mut z = start.wrapping_add(i.wrapping_mul(GOLDEN));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            let u = (z >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
            offset + scale * u
        })
        .collect()
}

#[cfg(test)]
mod tests {
    /// Values printed by `tests/reference/synthetic.py`.
    #[test]
    fn equals_the_numpy_formula() {
        let expected = include!("synthetic_golden.in");
        for (name, shape, seed, values) in expected {
            let ours = super::tensor(name, &shape, seed);
            assert_eq!(&ours[..4], &values, "{name}");
        }
    }
}
