//! The rows of a stored matrix or of filters, read while they are put into the layout of their device.

use std::ops::Range;

use aquatint_kernels::RowSource;
use candle_core::{DType, Result};

use super::file::CheckpointFile;
use super::meter;
use super::stored::{Entry, StoredType};

/// Rows of one tensor under the shape that a layer asked for.
pub(super) struct RowReader<'a> {
    pub(super) file: &'a CheckpointFile,
    pub(super) entry: &'a Entry,
    /// The stretches of stored rows that it consists of; none where it is the whole tensor.
    pub(super) stretches: &'a [Range<usize>],
    pub(super) dims: Vec<usize>,
    pub(super) dtype: DType,
}

impl RowReader<'_> {
    /// The types that can be read so.
    pub(super) fn reads(stored: StoredType) -> Option<DType> {
        match stored {
            StoredType::Plain(dtype @ (DType::F32 | DType::F16 | DType::BF16)) => Some(dtype),
            StoredType::Plain(_) | StoredType::Encoded(_) => None,
        }
    }

    fn read_stored(&self, row_bytes: usize, first: usize, into: &mut [u8]) -> Result<()> {
        let at = self.entry.start + (first * row_bytes) as u64;
        self.file.read_at(into, at).map_err(candle_core::Error::wrap)?;
        meter::count(into);
        Ok(())
    }
}

impl RowSource for RowReader<'_> {
    fn dims(&self) -> &[usize] {
        &self.dims
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn read(&self, first: usize, mut into: &mut [u8]) -> Result<()> {
        let row_bytes = self.dims[1..].iter().product::<usize>() * self.dtype.size_in_bytes();
        if self.stretches.is_empty() {
            return self.read_stored(row_bytes, first, into);
        }
        let mut skip = first;
        for stretch in self.stretches {
            let rows = (stretch.len().saturating_sub(skip)).min(into.len() / row_bytes);
            let part = into.split_off_mut(..rows * row_bytes).unwrap_or_default();
            self.read_stored(row_bytes, stretch.start + skip, part)?;
            skip = skip.saturating_sub(stretch.len());
        }
        Ok(())
    }
}
