//! Tensors as f32: what the CPU computes with, and scales, shifts and biases on a GPU, whose kernels read them so whatever
//! the type of activations.

use candle_core::{DType, Result, Tensor};

/// `x` as f32 in row-major order; the same tensor where it is that already.
pub(crate) fn floats(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.contiguous()
}
