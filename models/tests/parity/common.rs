//! Fixtures and the one way of comparing.

use std::path::Path;

use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use candle_core::{DType, Device, Tensor};

/// A recorded file of `tests/fixtures`.
pub(crate) struct Fixture(SafetensorsFile);

impl Fixture {
    /// Opens `tests/fixtures/{name}.safetensors`.
    pub(crate) fn open(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{name}.safetensors"));
        Self(SafetensorsFile::open(path).unwrap())
    }

    /// One recorded tensor, as f32 (or I64 as stored).
    pub(crate) fn tensor(&self, name: &str) -> Tensor {
        let t = self.0.tensor(name, &Device::Cpu).unwrap();
        if t.dtype() == DType::I64 { t } else { t.to_dtype(DType::F32).unwrap() }
    }

    /// One recorded text of the header.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0.metadata().get(name).unwrap_or_else(|| panic!("the fixture has no text {name}"))
    }

    /// Names of all recorded tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.entries().keys().map(String::as_str)
    }
}

/// The largest absolute difference.
pub(crate) fn max_difference(actual: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(actual.dims(), expected.dims(), "shapes differ");
    let f = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let pairs = f(actual).into_iter().zip(f(expected));
    // NaN must not pass: f32::max would swallow it.
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() || d > m { d } else { m })
}

/// Fails unless every element of `actual` is within `tolerance` of `expected`.
#[track_caller]
pub(crate) fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f32) {
    let d = max_difference(actual, expected);
    assert!(d <= tolerance, "{what}: differs by {d:e}, at most {tolerance:e} is allowed");
}

/// `(batch, channels, height, width)` of the reference as our `(batch, height, width, channels)`.
pub(crate) fn channels_last(t: &Tensor) -> Tensor {
    t.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
}
