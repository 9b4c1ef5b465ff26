//! What tests of the CUDA arms share.

use candle_core::{DType, Device, Result, Shape, Tensor};

use super::cudnn::Request;
use crate::testing::{assert_close, f64s};

/// Types of activations, and how far a result may be from the formula's, relative to the larger of 1 and its size: a
/// rounding of the result and, for f32, of what it is summed of.
pub(crate) const TYPES: [(DType, f64); 3] = [(DType::F32, 1e-5), (DType::F16, 1e-3), (DType::BF16, 8e-3)];

/// The GPU where the build has CUDA and the machine a GPU, else the CPU, whose tensors the emulator takes. With
/// `AQUATINT_NEEDS_GPU` set the emulator is not enough.
pub(crate) fn device() -> Device {
    #[cfg(feature = "cuda")]
    {
        static DEVICE: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
        return DEVICE
            .get_or_init(|| match super::open() {
                Ok(gpu) => gpu,
                Err(e) if std::env::var_os("AQUATINT_NEEDS_GPU").is_some() => panic!("there is no GPU: {e}"),
                Err(_) => Device::Cpu,
            })
            .clone();
    }
    #[cfg(not(feature = "cuda"))]
    {
        let needed = std::env::var_os("AQUATINT_NEEDS_GPU").is_some();
        assert!(!needed, "there is no GPU: this was built without CUDA");
        Device::Cpu
    }
}

/// A tensor of a type on the device under test.
pub(crate) fn put(x: &Tensor, dtype: DType) -> Result<Tensor> {
    x.to_dtype(dtype)?.to_device(&device())
}

/// What a request to cuDNN means, computed in f64; results beside `y` are left out.
#[cfg(target_os = "linux")]
pub(super) fn evaluate(
    request: &Request,
    tensors: &[(i64, &Tensor)],
    y: i64,
    shape: Shape,
    dtype: DType,
) -> Result<Tensor> {
    let values = tensors.iter().map(|(number, x)| {
        assert!(x.is_contiguous(), "{request:?}: tensor {number} is not contiguous");
        Ok((*number, f64s(x)?))
    });
    let y = super::cudnn::evaluate(request, values.collect::<Result<_>>()?, y);
    Tensor::from_vec(y, shape, &Device::Cpu)?.to_dtype(dtype)
}

/// A tensor as the definition takes it: f32 on the CPU, with the values that the type has left of it.
pub(crate) fn seen(x: &Tensor) -> Result<Tensor> {
    x.to_device(&Device::Cpu)?.to_dtype(DType::F32)
}

/// Asserts that an arm's result has the type and shape of `like` and the values of `expected`.
pub(crate) fn assert_result(y: &Tensor, dtype: DType, expected: &Tensor, tolerance: f64) -> Result<()> {
    assert_eq!((y.dtype(), y.dims()), (dtype, expected.dims()));
    assert_close(&y.to_device(&Device::Cpu)?, &f64s(expected)?, tolerance)
}
