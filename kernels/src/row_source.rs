//! A weight that is read while it is put into the layout of its device.

use candle_core::{DType, Result};

/// The rows of a weight in a file.
pub trait RowSource: Sync {
    /// `(out, in)` or `(out, in, kernel height, kernel width)`.
    fn dims(&self) -> &[usize];

    /// What is stored: f32, f16 or bf16.
    fn dtype(&self) -> DType;

    /// Fills `into` with the bytes of whole rows, from row `first` on. Called from several threads.
    ///
    /// # Errors
    /// What reading the file says.
    fn read(&self, first: usize, into: &mut [u8]) -> Result<()>;
}
