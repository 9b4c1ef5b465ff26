//! A weight as its file has it.

use std::fmt;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

use crate::gpu;

/// Bytes in memory, or a file that is mapped there.
pub type RowBytes = Box<dyn AsRef<[u8]> + Send + Sync>;

/// A matrix or filters, row after row in the order of a checkpoint. The CPU's kernels read them where they are.
pub struct StoredRows {
    pub(crate) bytes: RowBytes,
    pub(crate) dims: Vec<usize>,
    pub(crate) dtype: DType,
}

impl StoredRows {
    /// `dims`: `(out, in)` or `(out, in, kernel height, kernel width)`; `dtype`: f32, f16 or bf16, which need not be
    /// aligned in `bytes`.
    ///
    /// # Errors
    /// Another type or shape, and bytes that are too few or too many for it.
    pub fn new(bytes: RowBytes, dims: Vec<usize>, dtype: DType) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            bail!("rows of {dtype:?}: F32, F16 and BF16 are read");
        }
        let elements = dims.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
        let (expected, given) =
            (elements.and_then(|n| n.checked_mul(dtype.size_in_bytes())), (*bytes).as_ref().len());
        if expected != Some(given) {
            bail!("{given} bytes are no weight of shape {dims:?} and {dtype:?}");
        }
        Ok(Self { bytes, dims, dtype })
    }

    /// The rows as a tensor on `device`.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        gpu::upload((*self.bytes).as_ref(), self.dtype, &Shape::from(self.dims.clone()), device)
    }

    /// The shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }
}

impl fmt::Debug for StoredRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredRows({:?}, {:?})", self.dims, self.dtype)
    }
}
