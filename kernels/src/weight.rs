//! A layer's weight in the layout its device wants.

use std::borrow::Cow;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Module, Result, Tensor};

use crate::cpu::CpuWeight;
use crate::in_place::{moved, overwrite};
use crate::{EncodedWeight, Format, StoredRows};

/// The weight of a matrix or of filters.
#[derive(Debug)]
pub(crate) enum Weight {
    /// On the CPU.
    Cpu(CpuWeight),
    /// On any other device: as checkpoints store it.
    Plain(Tensor),
    /// Not in memory at present.
    Absent,
    /// On any other device: a matrix in a format.
    Encoded(Box<EncodedOnDevice>),
}

impl Weight {
    fn new(weight: &Tensor) -> Result<Self> {
        Ok(if weight.device().is_cpu() {
            Self::Cpu(CpuWeight::new(weight)?)
        } else {
            Self::Plain(weight.clone())
        })
    }

    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Cpu(weight) => weight.bytes(),
            Self::Plain(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Self::Encoded(weight) => weight.bytes(),
            Self::Absent => 0,
        }
    }

    fn encoded(weight: &EncodedWeight, device: &Device) -> Result<Self> {
        Ok(if device.is_cpu() {
            Self::Cpu(CpuWeight::encoded(weight)?)
        } else {
            Self::Encoded(Box::new(EncodedOnDevice::new(weight, device)?))
        })
    }
}

/// A matrix in a format on a device that candle computes on.
#[derive(Debug)]
pub(crate) enum EncodedOnDevice {
    /// A block format: candle multiplies with it.
    Blocks(QMatMul),
    /// Eight-bit floats: codes, the 256 values, and a column of scales. Decoded for each product.
    Float8 { codes: Tensor, values: Tensor, scales: Option<Tensor> },
}

impl EncodedOnDevice {
    /// Puts a matrix on `device`.
    pub(crate) fn new(weight: &EncodedWeight, device: &Device) -> Result<Self> {
        if let Some(ggml) = ggml(weight.format) {
            let storage = QStorage::from_data(Cow::Borrowed(&weight.bytes), device, ggml)?;
            return Ok(Self::Blocks(QMatMul::from_qtensor(QTensor::new(storage, weight.dims())?)?));
        }
        let all: Vec<u8> = (0..=255).collect();
        let values = weight.format.decode(&all, 1, None)?;
        let column = |scales: &Vec<f32>| Tensor::from_slice(scales, (weight.rows, 1), device);
        Ok(Self::Float8 {
            codes: Tensor::from_slice(&weight.bytes, weight.dims(), device)?,
            values: Tensor::from_vec(values, 256, device)?,
            scales: weight.row_scales.as_ref().map(column).transpose()?,
        })
    }

    /// What it takes in memory.
    fn bytes(&self) -> usize {
        let tensor = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        match self {
            Self::Blocks(QMatMul::QTensor(weight)) => weight.storage_size_in_bytes(),
            Self::Blocks(QMatMul::Tensor(weight) | QMatMul::TensorF16(weight)) => tensor(weight),
            Self::Float8 { codes, scales, .. } => tensor(codes) + scales.as_ref().map_or(0, tensor),
        }
    }

    /// `x W^T`, in the type of `x`.
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            // candle's kernels take f32.
            Self::Blocks(matrix) => {
                matrix.forward(&x.to_dtype(DType::F32)?.contiguous()?)?.to_dtype(x.dtype())
            }
            Self::Float8 { codes, values, scales } => {
                let weight = values.index_select(&codes.flatten_all()?, 0)?.reshape(codes.shape())?;
                let weight = match scales {
                    Some(scales) => weight.broadcast_mul(scales)?,
                    None => weight,
                };
                x.contiguous()?.broadcast_matmul(&weight.to_dtype(x.dtype())?.t()?)
            }
        }
    }
}

fn ggml(format: Format) -> Option<GgmlDType> {
    Some(match format {
        Format::Q4_0 => GgmlDType::Q4_0,
        Format::Q4_1 => GgmlDType::Q4_1,
        Format::Q5_0 => GgmlDType::Q5_0,
        Format::Q5_1 => GgmlDType::Q5_1,
        Format::Q8_0 => GgmlDType::Q8_0,
        Format::Q2K => GgmlDType::Q2K,
        Format::Q3K => GgmlDType::Q3K,
        Format::Q4K => GgmlDType::Q4K,
        Format::Q5K => GgmlDType::Q5K,
        Format::Q6K => GgmlDType::Q6K,
        Format::F8E4M3 | Format::F8E5M2 => return None,
    })
}

/// A [`Weight`] that can be replaced while others hold its layer.
#[derive(Debug)]
pub(crate) struct ReplaceableWeight(RwLock<Weight>);

impl ReplaceableWeight {
    /// Takes the weight over.
    pub(crate) fn new(weight: &Tensor) -> Result<Self> {
        Ok(Self(RwLock::new(Weight::new(weight)?)))
    }

    /// A weight that comes later.
    pub(crate) fn absent() -> Self {
        Self(RwLock::new(Weight::Absent))
    }

    /// Frees the present weight.
    pub(crate) fn drop_weight(&self) {
        self.put(Weight::Absent);
    }

    /// The same for a matrix in a format, on `device`.
    pub(crate) fn encoded(weight: &EncodedWeight, device: &Device) -> Result<Self> {
        Ok(Self(RwLock::new(Weight::encoded(weight, device)?)))
    }

    /// The same for a weight on the CPU as its file has it.
    pub(crate) fn stored(rows: StoredRows) -> Result<Self> {
        Ok(Self(RwLock::new(Weight::Cpu(CpuWeight::stored(rows)?))))
    }

    /// Puts another weight in place of the present one, whose shape the caller has compared. On a GPU it is copied to
    /// where the present one is, if that has its type.
    pub(crate) fn replace(&self, weight: &Tensor) -> Result<()> {
        if let Weight::Plain(present) = &*self.read()
            && overwrite(present, weight)?
        {
            return Ok(());
        }
        self.put(Weight::new(weight)?);
        Ok(())
    }

    /// The same for a matrix in a format, on `device`.
    pub(crate) fn replace_encoded(&self, weight: &EncodedWeight, device: &Device) -> Result<()> {
        self.put(Weight::encoded(weight, device)?);
        Ok(())
    }

    /// The same for a weight on the CPU as its file has it.
    pub(crate) fn replace_stored(&self, rows: StoredRows) -> Result<()> {
        self.put(Weight::Cpu(CpuWeight::stored(rows)?));
        Ok(())
    }

    fn put(&self, weight: Weight) {
        // What is on the CPU is in no graph.
        if !matches!(weight, Weight::Cpu(_)) {
            moved();
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = weight;
    }

    /// The present weight.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Weight> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_place::layer_moves;
    use crate::testing::{random, same_bytes};

    /// The arm of other devices, on candle's CPU.
    #[test]
    fn a_weight_on_a_device_stays_where_it_is() -> Result<()> {
        let held = ReplaceableWeight(RwLock::new(Weight::Plain(random((5, 7), 1)?)));
        let seen = match &*held.read() {
            Weight::Plain(weight) => weight.clone(),
            other => unreachable!("{other:?}"),
        };
        let other = random((5, 7), 2)?;
        held.replace(&other)?;
        same_bytes(&seen, &other)?;
        // Another type cannot lie there; what is put down then is noticed.
        let before = layer_moves();
        held.replace(&other.to_dtype(DType::F16)?)?;
        same_bytes(&seen, &other)?;
        held.drop_weight();
        assert!(layer_moves() > before);
        Ok(())
    }
}
