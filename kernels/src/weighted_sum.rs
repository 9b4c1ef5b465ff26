//! A sum of tensors with scalar weights: classifier-free guidance and every sampler's update are one.

use candle_core::{Result, Tensor, bail};

/// `sum_i weight_i * tensor_i`, added from left to right in f32; all tensors have one shape.
pub fn weighted_sum(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let Some(((w, first), rest)) = terms.split_first() else {
        bail!("weighted_sum: no terms");
    };
    let mut sum = first.affine(*w, 0.0)?;
    for (w, t) in rest {
        sum = (sum + t.affine(*w, 0.0)?)?;
    }
    Ok(sum)
}
