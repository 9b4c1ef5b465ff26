//! A layer's weight in the layout its device wants.

use std::borrow::Cow;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Module, Result, Tensor};

use crate::cpu::CpuWeight;
use crate::eight_bit_rows::EightBitRows;
use crate::in_place::{moved, overwrite};
use crate::{EightBits, EncodedWeight, Format, StoredRows};

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
    /// A matrix in eight bits, multiplied by inputs in eight bits.
    EightBits(EightBitRows),
}

impl Weight {
    /// `rounding`: a matrix is rounded so, and its inputs will be.
    fn new(weight: &Tensor, rounding: Option<EightBits>) -> Result<Self> {
        Ok(match rounding {
            Some(to) => Self::EightBits(EightBitRows::new(weight, to)?),
            None if weight.device().is_cpu() => Self::Cpu(CpuWeight::new(weight)?),
            None => Self::Plain(weight.clone()),
        })
    }

    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Cpu(weight) => weight.bytes(),
            Self::Plain(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Self::Encoded(weight) => weight.bytes(),
            Self::EightBits(weight) => weight.bytes(),
            Self::Absent => 0,
        }
    }

    /// A format stays as it is, and only inputs of a weight that is in the same codes are rounded.
    fn encoded(weight: &EncodedWeight, device: &Device, rounding: Option<EightBits>) -> Result<Self> {
        Ok(match rounding {
            Some(to) if weight.format == to.format() => {
                Self::EightBits(EightBitRows::encoded(weight, to, device)?)
            }
            _ if device.is_cpu() => Self::Cpu(CpuWeight::encoded(weight)?),
            _ => Self::Encoded(Box::new(EncodedOnDevice::new(weight, device)?)),
        })
    }
}

/// A matrix in a format on a device that candle computes on.
#[derive(Debug)]
pub(crate) enum EncodedOnDevice {
    /// A block format: candle multiplies with it.
    Blocks(QMatMul),
    /// Numbers of eight bits: codes, the 256 values, and a column of scales. Decoded for each product.
    Codes { codes: Tensor, values: Tensor, scales: Option<Tensor> },
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
        Ok(Self::Codes {
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
            Self::Codes { codes, scales, .. } => tensor(codes) + scales.as_ref().map_or(0, tensor),
        }
    }

    /// `x W^T`, in the type of `x`.
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            // candle's kernels take f32.
            Self::Blocks(matrix) => {
                matrix.forward(&x.to_dtype(DType::F32)?.contiguous()?)?.to_dtype(x.dtype())
            }
            Self::Codes { codes, values, scales } => {
                // In 32 bits: the largest number of an index type selects nothing.
                let at = codes.flatten_all()?.to_dtype(DType::U32)?;
                let weight = values.index_select(&at, 0)?.reshape(codes.shape())?;
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
        Format::F8E4M3 | Format::F8E5M2 | Format::I8 => return None,
    })
}

/// A [`Weight`] that can be replaced while others hold its layer.
#[derive(Debug)]
pub(crate) struct ReplaceableWeight {
    weight: RwLock<Weight>,
    /// What matrices are rounded to that are put here.
    rounding: Option<EightBits>,
}

impl ReplaceableWeight {
    fn holding(weight: Weight) -> Self {
        Self { weight: RwLock::new(weight), rounding: None }
    }

    /// Takes the weight over.
    pub(crate) fn new(weight: &Tensor) -> Result<Self> {
        Ok(Self::holding(Weight::new(weight, None)?))
    }

    /// A weight that comes later, and is then rounded if that is said.
    pub(crate) fn absent(rounding: Option<EightBits>) -> Self {
        Self { rounding, ..Self::holding(Weight::Absent) }
    }

    /// Frees the present weight.
    pub(crate) fn drop_weight(&self) {
        self.put(Weight::Absent);
    }

    /// The same as [`Self::new`] for a matrix in a format, on `device`.
    pub(crate) fn encoded(weight: &EncodedWeight, device: &Device) -> Result<Self> {
        Ok(Self::holding(Weight::encoded(weight, device, None)?))
    }

    /// The same for a weight on the CPU as its file has it.
    pub(crate) fn stored(rows: StoredRows) -> Result<Self> {
        Ok(Self::holding(Weight::Cpu(CpuWeight::stored(rows)?)))
    }

    /// What matrices are rounded to that are put here.
    pub(crate) fn rounding(&self) -> Option<EightBits> {
        self.rounding
    }

    /// Puts another weight in place of the present one, whose shape the caller has compared. On a GPU it is copied to
    /// where the present one is, if that has its type.
    pub(crate) fn replace(&self, weight: &Tensor) -> Result<()> {
        let stays = match &*self.read() {
            Weight::Plain(present) => overwrite(present, weight)?,
            Weight::EightBits(present) => present.overwrite(weight)?,
            _ => false,
        };
        if !stays {
            self.put(Weight::new(weight, self.rounding)?);
        }
        Ok(())
    }

    /// The same for a matrix in a format, on `device`.
    pub(crate) fn replace_encoded(&self, weight: &EncodedWeight, device: &Device) -> Result<()> {
        self.put(Weight::encoded(weight, device, self.rounding)?);
        Ok(())
    }

    /// The same for a weight on the CPU as its file has it.
    pub(crate) fn replace_stored(&self, rows: StoredRows) -> Result<()> {
        self.put(Weight::Cpu(CpuWeight::stored(rows)?));
        Ok(())
    }

    fn put(&self, weight: Weight) {
        // What is on the CPU is in no graph.
        if !matches!(weight, Weight::Cpu(_) | Weight::EightBits(EightBitRows::Cpu(..))) {
            moved();
        }
        *self.weight.write().unwrap_or_else(PoisonError::into_inner) = weight;
    }

    /// The present weight.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Weight> {
        self.weight.read().unwrap_or_else(PoisonError::into_inner)
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
        let held = ReplaceableWeight::holding(Weight::Plain(random((5, 7), 1)?));
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
