//! What the ops' unit tests share.

use candle_core::{DType, Device, Result, Shape, Tensor};

/// Values in -1..1 that depend on the seed alone.
pub(crate) fn random(shape: impl Into<Shape>, seed: u64) -> Result<Tensor> {
    let shape = shape.into();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    Tensor::from_vec((0..shape.elem_count()).map(|_| next()).collect::<Vec<f32>>(), shape, &Device::Cpu)
}

/// All elements, in f64.
pub(crate) fn f64s(x: &Tensor) -> Result<Vec<f64>> {
    x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Asserts that no element is farther from `expected` than `tolerance`, relative to the larger of 1 and its size.
pub(crate) fn assert_close(actual: &Tensor, expected: &[f64], tolerance: f64) -> Result<()> {
    let values = f64s(actual)?;
    assert_eq!(values.len(), expected.len());
    for (i, (a, e)) in values.iter().zip(expected).enumerate() {
        let allowed = tolerance * e.abs().max(1.0);
        assert!((a - e).abs() <= allowed, "element {i} of {:?} is {a}, expected {e}", actual.dims());
    }
    Ok(())
}

/// Asserts that two tensors are equal bit for bit.
pub(crate) fn same_bytes(actual: &Tensor, expected: &Tensor) -> Result<()> {
    let bits =
        |t: &Tensor| Result::Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect());
    let (actual, expected): (Vec<u32>, Vec<u32>) = (bits(actual)?, bits(expected)?);
    assert!(actual == expected, "the bytes differ");
    Ok(())
}

/// Runs `f` on a pool of its own.
pub(crate) fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}
