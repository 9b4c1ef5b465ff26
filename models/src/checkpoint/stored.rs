//! A tensor as it lies in a file: its type, its shape, and its rows as bytes.

use std::fmt;
use std::ops::Range;

use aquatint_kernels::{EncodedWeight, Format};
use candle_core::{DType, Device, Tensor};

use super::bytes::Bytes;
use super::meter;
use crate::Result;

/// What a tensor's elements are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// One of candle's types.
    Plain(DType),
    /// A format that needs decoding.
    Encoded(Format),
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => write!(f, "{dtype:?}"),
            Self::Encoded(Format::F8E4M3) => f.write_str("F8_E4M3"),
            Self::Encoded(Format::F8E5M2) => f.write_str("F8_E5M2"),
            // Q4K is ggml's Q4_K.
            Self::Encoded(format) => match format!("{format:?}").strip_suffix('K') {
                Some(bits) => write!(f, "{bits}_K"),
                None => write!(f, "{format:?}"),
            },
        }
    }
}

impl StoredType {
    /// Elements of a block, and its bytes; rows are whole blocks.
    pub(crate) fn block(self) -> (usize, usize) {
        match self {
            Self::Plain(dtype) => (1, dtype.size_in_bytes()),
            Self::Encoded(format) => (format.block_len(), format.block_bytes()),
        }
    }
}

/// Where one tensor lies. Whoever makes one has compared the bytes with the shape.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The type it is stored in.
    pub stored_type: StoredType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub(super) start: u64,
    /// One past its last byte in the file.
    pub(super) end: u64,
}

impl Entry {
    /// Bytes of the tensor.
    pub(super) fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Reads rows (of the first dimension), or all of them. The error is a reason, without a name.
    pub(super) fn read(
        &self,
        bytes: &Bytes,
        rows: Option<Range<usize>>,
    ) -> std::result::Result<Stored, String> {
        let mut shape = self.shape.clone();
        let (mut at, mut len) = (self.start, self.bytes());
        if let Some(rows) = rows {
            let count = shape.first().copied().unwrap_or(0) as u64;
            let whole_blocks = shape.len() > 1 || self.stored_type.block().0 == 1;
            if rows.start > rows.end || rows.end as u64 > count || count == 0 || !whole_blocks {
                return Err(format!("it has shape {shape:?}, of which no rows {rows:?} can be read"));
            }
            let row = len / count;
            (at, len) = (at + row * rows.start as u64, row * rows.len() as u64);
            shape[0] = rows.len();
        }
        let mut data = vec![0u8; len as usize];
        bytes.read_at(&mut data, at).map_err(|e| e.to_string())?;
        meter::count(&data);
        Ok(Stored { stored_type: self.stored_type, shape, data, row_scales: None })
    }
}

/// Rows of a tensor, as they lay in the file.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The type they are stored in.
    pub stored_type: StoredType,
    /// Their shape.
    pub shape: Vec<usize>,
    /// Their bytes.
    pub data: Vec<u8>,
    /// What each row, decoded, is multiplied by.
    pub row_scales: Option<Vec<f32>>,
}

impl Stored {
    /// As a tensor: in the stored type where that is one of candle's and there are no scales; f16 for eight-bit floats
    /// without scales, each of which it holds; otherwise in f32.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        let scales = self.row_scales.as_deref();
        Ok(match self.stored_type {
            StoredType::Plain(dtype) => {
                let tensor = Tensor::from_raw_buffer(&self.data, dtype, &self.shape, device)?;
                let Some(scales) = scales else { return Ok(tensor) };
                let column: Vec<_> =
                    (0..self.shape.len()).map(|i| if i == 0 { scales.len() } else { 1 }).collect();
                tensor.to_dtype(DType::F32)?.broadcast_mul(&Tensor::from_slice(scales, column, device)?)?
            }
            StoredType::Encoded(format) => {
                let row = match self.shape.as_slice() {
                    [len] if format.block_len() > 1 => *len,
                    shape => shape.iter().skip(1).product(),
                };
                let values = format.decode(&self.data, row, scales)?;
                let tensor = Tensor::from_vec(values, self.shape.as_slice(), device)?;
                let as_f16 = format.block_len() == 1 && scales.is_none();
                if as_f16 { tensor.to_dtype(DType::F16)? } else { tensor }
            }
        })
    }

    /// Some rows of it; `None` where it has no such rows. Blocks of a one-dimensional tensor cannot be divided.
    pub(super) fn rows(&self, rows: Range<usize>) -> Option<Self> {
        let (count, rest) = self.shape.split_first()?;
        let whole_blocks = !rest.is_empty() || self.stored_type.block().0 == 1;
        let row = self.data.len().checked_div(*count).filter(|_| whole_blocks && !rows.is_empty())?;
        let data = self.data.get(rows.start.checked_mul(row)?..rows.end.checked_mul(row)?)?.to_vec();
        let row_scales = match &self.row_scales {
            Some(scales) => Some(scales.get(rows.clone())?.to_vec()),
            None => None,
        };
        let shape = std::iter::once(rows.len()).chain(rest.iter().copied()).collect();
        Some(Self { stored_type: self.stored_type, shape, data, row_scales })
    }

    /// The transpose of a matrix. The error is a reason: blocks lie along rows and cannot be turned, nor can scales of
    /// rows.
    pub(crate) fn transposed(self) -> std::result::Result<Self, String> {
        let (block_len, size) = self.stored_type.block();
        let &[rows, columns] = self.shape.as_slice() else {
            return Err(format!("the shape {:?} is no matrix's", self.shape));
        };
        if block_len > 1 || self.row_scales.is_some() {
            return Err("a quantised matrix cannot be transposed".into());
        }
        let mut data = Vec::with_capacity(self.data.len());
        for column in 0..columns {
            let elements = self.data.chunks_exact(size).skip(column).step_by(columns.max(1));
            elements.for_each(|element| data.extend_from_slice(element));
        }
        Ok(Self { shape: vec![columns, rows], data, ..self })
    }

    /// As a matrix `(rows, columns)` that keeps its format; the tensor itself where that is one of candle's types.
    pub fn into_matrix(self, dims: (usize, usize), device: &Device) -> Result<Matrix> {
        Ok(match self.stored_type {
            StoredType::Encoded(format) => {
                Matrix::Encoded(EncodedWeight::new(format, dims, self.data, self.row_scales)?)
            }
            StoredType::Plain(_) => Matrix::Tensor(self.tensor(device)?.reshape(dims)?),
        })
    }
}

/// A matrix in the type or format that it is held in.
#[derive(Clone, Debug)]
pub enum Matrix {
    /// In one of candle's types.
    Tensor(Tensor),
    /// In a format.
    Encoded(EncodedWeight),
}
