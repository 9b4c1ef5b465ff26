//! Weights in formats that need decoding: the block formats of GGUF files, and numbers of eight bits.
//!
//! A layer keeps such a weight in its format and decodes it as it is used. The result is the one of the decoded
//! weight: activations are not rounded to fit a format.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::f16;
use rayon::prelude::*;

use crate::cpu;
use crate::float8;
use crate::ggml_block::{Block, Shape};

/// A format of weights that candle has no type for, or none that its CPU computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of ggml and of the OCP specification")]
pub enum Format {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    F8E4M3,
    F8E5M2,
    /// A signed byte.
    I8,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::I8,
    ];

    /// Elements of a block; rows are whole blocks.
    pub fn block_len(self) -> usize {
        Shape::of(self).map_or(1, |shape| shape.len)
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        Shape::of(self).map_or(1, |shape| shape.bytes)
    }

    /// Decodes whole blocks; a row of `row_len` elements is multiplied by its scale where there are any.
    ///
    /// # Errors
    /// Bytes that are no whole blocks, or rows that are none, or scales that are not one a row.
    pub fn decode(self, bytes: &[u8], row_len: usize, row_scales: Option<&[f32]>) -> Result<Vec<f32>> {
        let (block_len, block_bytes) = (self.block_len(), self.block_bytes());
        let len = bytes.len() / block_bytes * block_len;
        let fits = bytes.len().is_multiple_of(block_bytes)
            && (len == 0 || row_len > 0 && row_len.is_multiple_of(block_len) && len.is_multiple_of(row_len));
        if !fits {
            bail!("{} bytes of {self:?} are no rows of {row_len}", bytes.len());
        }
        if let Some(scales) = row_scales
            && scales.len() * row_len != len
        {
            bail!("{} scales for {len} elements in rows of {row_len}", scales.len());
        }
        let mut values = vec![0f32; len];
        let row_bytes = (row_len / block_len * block_bytes).max(1);
        let rows = values.par_chunks_mut(row_len.max(1)).zip(bytes.par_chunks(row_bytes));
        rows.enumerate().for_each(|(row, (values, bytes))| {
            match Shape::of(self) {
                Some(shape) => {
                    let mut block = Block::new();
                    for (values, bytes) in values.chunks_mut(shape.len).zip(bytes.chunks(shape.bytes)) {
                        block.read(self, bytes);
                        block.values(&shape, values);
                    }
                }
                None => {
                    let decode = match self {
                        Self::F8E4M3 => float8::e4m3,
                        Self::I8 => |byte: u8| f32::from(byte.cast_signed()),
                        _ => float8::e5m2,
                    };
                    values.iter_mut().zip(bytes).for_each(|(y, &b)| *y = decode(b));
                }
            }
            if let Some(scale) = row_scales.and_then(|scales| scales.get(row)) {
                values.iter_mut().for_each(|y| *y *= scale);
            }
        });
        Ok(values)
    }
}

/// A matrix in a [`Format`].
#[derive(Clone, Debug)]
pub struct EncodedWeight {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) bytes: Vec<u8>,
    pub(crate) row_scales: Option<Vec<f32>>,
}

impl EncodedWeight {
    /// `(rows, columns)`, row after row; `row_scales`: what each row of decoded eight-bit floats is multiplied by.
    ///
    /// # Errors
    /// A shape that does not fit the bytes, or scales of a block format, which has its own.
    pub fn new(
        format: Format,
        (rows, columns): (usize, usize),
        bytes: Vec<u8>,
        row_scales: Option<Vec<f32>>,
    ) -> Result<Self> {
        let row_bytes = (columns / format.block_len()).checked_mul(format.block_bytes());
        let fits = rows > 0
            && columns > 0
            && columns.is_multiple_of(format.block_len())
            && row_bytes.and_then(|n| n.checked_mul(rows)) == Some(bytes.len());
        if !fits {
            bail!("{} bytes of {format:?} are no matrix of {rows} x {columns}", bytes.len());
        }
        match &row_scales {
            Some(scales) if scales.len() != rows => bail!("{} scales for {rows} rows", scales.len()),
            Some(_) if format.block_len() > 1 => bail!("{format:?} has scales of its own"),
            _ => Ok(Self { format, rows, columns, bytes, row_scales }),
        }
    }

    /// A matrix rounded to Q8_0: 32 weights share a scale, a 127th of the largest of them, and are whole multiples of it.
    ///
    /// Source: `quantize_row_q8_0_ref` of ggml.
    ///
    /// # Errors
    /// Rows that are no whole blocks.
    pub fn q8_0(weight: &Tensor) -> Result<Self> {
        let dims = weight.dims2()?;
        let weight = weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let values = cpu::elements(&weight)?;
        let (len, size) = (Format::Q8_0.block_len(), Format::Q8_0.block_bytes());
        let mut bytes = vec![0u8; values.len() / len * size];
        bytes.par_chunks_mut(size).zip(values.par_chunks(len)).for_each(|(block, values)| {
            let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            let scale = largest / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            let (head, codes) = block.split_at_mut(2);
            head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            codes.iter_mut().zip(values).for_each(|(code, v)| *code = (v * inverse).round() as i8 as u8);
        });
        Self::new(Format::Q8_0, dims, bytes, None)
    }

    /// `(rows, columns)`.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The decoded matrix in f32.
    pub fn decode(&self, device: &Device) -> Result<Tensor> {
        let values = self.format.decode(&self.bytes, self.columns, self.row_scales.as_deref())?;
        Tensor::from_vec(values, self.dims(), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No value is off by more than half a step of its block, and f16's rounding of the step.
    #[test]
    fn q8_0_rounds_to_a_127th_of_the_largest() -> Result<()> {
        let weight = crate::testing::random((48, 96), 5)?;
        let rounded = EncodedWeight::q8_0(&weight)?.decode(&Device::Cpu)?;
        let (weight, rounded) = (crate::testing::f64s(&weight)?, crate::testing::f64s(&rounded)?);
        for (values, rounded) in weight.chunks(32).zip(rounded.chunks(32)) {
            let step = values.iter().fold(0f64, |m, v| m.max(v.abs())) / 127.0;
            for (v, r) in values.iter().zip(rounded) {
                assert!((v - r).abs() <= step * (0.5 + 127.0 / 2048.0), "{v} became {r}, a step is {step}");
            }
        }
        assert_ne!(weight, rounded);
        let zeros = Tensor::zeros((1, 32), DType::F32, &Device::Cpu)?;
        assert_eq!(crate::testing::f64s(&EncodedWeight::q8_0(&zeros)?.decode(&Device::Cpu)?)?, [0.0; 32]);
        assert!(EncodedWeight::q8_0(&crate::testing::random((2, 33), 1)?).is_err());
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (format, shape, bytes, scales) in [
            (Format::Q4_0, (2, 32), 35, None),
            (Format::Q4_0, (2, 33), 36, None),
            (Format::Q4_0, (0, 32), 0, None),
            (Format::Q4K, (1, 128), 72, None),
            (Format::Q8_0, (usize::MAX, 32), 34, None),
            (Format::Q8_0, (1, 32), 34, Some(vec![1.0])),
            (Format::F8E4M3, (2, 3), 7, None),
            (Format::F8E4M3, (2, 3), 6, Some(vec![1.0])),
        ] {
            assert!(
                EncodedWeight::new(format, shape, vec![0; bytes], scales).is_err(),
                "{format:?} {shape:?}"
            );
        }
        assert!(Format::Q4_0.decode(&[0; 17], 32, None).is_err());
        assert!(Format::Q4_0.decode(&[0; 18], 16, None).is_err());
        assert!(Format::F8E4M3.decode(&[0; 4], 2, Some(&[1.0])).is_err());
        assert_eq!(Format::Q4K.decode(&[], 256, None).unwrap_or(vec![0.0]), Vec::<f32>::new());
    }

    #[test]
    fn rows_are_scaled() -> Result<()> {
        let w =
            EncodedWeight::new(Format::F8E4M3, (2, 2), vec![0x38, 0xb8, 0x38, 0x40], Some(vec![0.5, 3.0]))?;
        assert_eq!(w.decode(&Device::Cpu)?.to_vec2::<f32>()?, [[0.5, -0.5], [3.0, 6.0]]);
        Ok(())
    }
}
