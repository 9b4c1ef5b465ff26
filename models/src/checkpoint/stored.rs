//! A tensor as it lies in a file: its type, its shape, and its rows as bytes.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::bytes::Bytes;
use crate::Result;

/// What a tensor's elements are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// One of candle's types.
    Plain(DType),
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
            if rows.start > rows.end || rows.end as u64 > count || count == 0 || !len.is_multiple_of(count) {
                return Err(format!("rows {rows:?} of a tensor of shape {shape:?}"));
            }
            let row = len / count;
            (at, len) = (at + row * rows.start as u64, row * rows.len() as u64);
            shape[0] = rows.len();
        }
        let mut data = vec![0u8; len as usize];
        bytes.read_at(&mut data, at).map_err(|e| e.to_string())?;
        Ok(Stored { stored_type: self.stored_type, shape, data })
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
}

impl Stored {
    /// As a tensor, in the stored type.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        match self.stored_type {
            StoredType::Plain(dtype) => Ok(Tensor::from_raw_buffer(&self.data, dtype, &self.shape, device)?),
        }
    }
}
