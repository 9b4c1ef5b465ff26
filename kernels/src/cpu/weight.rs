//! Weights as the matrix kernels take them: rows in the order and the type of a file, or blocks of a quantised format.
//!
//! Nothing is rearranged when a weight is loaded, so that it can stay in its file, mapped. The kernels get panels of 16
//! columns in f32, a stretch at a time, in a buffer that stays in the first-level cache.

use std::fmt;
use std::ops::Range;

use candle_core::{CpuStorage, DType, Result, Storage, Tensor, bail};

use super::panels::{Element, Line, turn};
use super::quantised::QuantisedPanels;
use super::tile::PANEL;
use super::{Level, by_level};
use crate::{EncodedWeight, Format, RowBytes, StoredRows};

enum Data {
    /// Row after row; numbers of eight bits may have a scale for each.
    Rows {
        bytes: RowBytes,
        element: Element,
        scales: Option<Vec<f32>>,
    },
    Quantised(Box<QuantisedPanels>),
}

/// A weight of `columns` outputs, each a sum over `parts * depth` inputs.
pub(crate) struct CpuWeight {
    data: Data,
    pub(crate) columns: usize,
    pub(crate) parts: usize,
    pub(crate) depth: usize,
}

impl fmt::Debug for CpuWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuWeight({} x {} x {})", self.columns, self.depth, self.parts)
    }
}

/// The bytes of elements that have no padding.
fn bytes_of<T: Copy>(elements: &[T]) -> RowBytes {
    // SAFETY: the types that this is called with are plain numbers.
    let bytes = unsafe { std::slice::from_raw_parts(elements.as_ptr().cast::<u8>(), size_of_val(elements)) };
    Box::new(bytes.to_vec())
}

impl CpuWeight {
    /// Takes over `(out, in)` or `(out, in, kernel height, kernel width)`; 16-bit weights stay 16 bits wide.
    pub(crate) fn new(weight: &Tensor) -> Result<Self> {
        let weight = match weight.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => weight.contiguous()?,
            _ => weight.to_dtype(DType::F32)?.contiguous()?,
        };
        let (storage, layout) = weight.storage_and_layout();
        let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
        let bytes = match &*storage {
            Storage::Cpu(CpuStorage::F32(w)) => bytes_of(&w[range]),
            Storage::Cpu(CpuStorage::F16(w)) => bytes_of(&w[range]),
            Storage::Cpu(CpuStorage::BF16(w)) => bytes_of(&w[range]),
            _ => bail!("a weight of type {:?} is not on the CPU", weight.dtype()),
        };
        Self::stored(StoredRows::new(bytes, weight.dims().to_vec(), weight.dtype())?)
    }

    /// A weight as a file has it.
    pub(crate) fn stored(rows: StoredRows) -> Result<Self> {
        let StoredRows { bytes, dims, dtype } = rows;
        let element = match dtype {
            DType::F16 => Element::F16,
            DType::BF16 => Element::Bf16,
            _ => Element::F32,
        };
        match dims.as_slice() {
            [columns, depth, kernel @ ..] if !dims.contains(&0) => Ok(Self {
                data: Data::Rows { bytes, element, scales: None },
                columns: *columns,
                parts: kernel.iter().product(),
                depth: *depth,
            }),
            _ => bail!("a weight of shape {dims:?} has no elements"),
        }
    }

    /// A matrix `(out, in)`, which keeps its format.
    pub(crate) fn encoded(weight: &EncodedWeight) -> Result<Self> {
        let (columns, depth) = weight.dims();
        let data = match QuantisedPanels::new(weight) {
            Some(panels) => Data::Quantised(Box::new(panels)),
            None => Data::Rows {
                bytes: Box::new(weight.bytes.clone()),
                element: match weight.format {
                    Format::F8E4M3 => Element::F8E4M3,
                    Format::I8 => Element::I8,
                    _ => Element::F8E5M2,
                },
                scales: weight.row_scales.clone(),
            },
        };
        Ok(Self { data, columns, parts: 1, depth })
    }

    /// What it takes in memory, or of a mapped file.
    pub(crate) fn bytes(&self) -> usize {
        match &self.data {
            Data::Rows { bytes, scales, .. } => {
                (**bytes).as_ref().len() + scales.as_ref().map_or(0, |scales| size_of_val(&scales[..]))
            }
            Data::Quantised(panels) => panels.bytes(),
        }
    }

    /// Steps of each column's sum.
    pub(crate) fn steps(&self) -> usize {
        self.parts * self.depth
    }

    /// Panels from panel `first` on, one after the other, as many as `panels` has lines for: a line for each of `channels`
    /// of the first part, then of the next. The columns that a last panel has too many are any numbers.
    pub(crate) fn panels(&self, level: Level, first: usize, channels: Range<usize>, panels: &mut [Line]) {
        let len = self.parts * channels.len();
        for (panel, to) in panels.chunks_exact_mut(len).enumerate() {
            let panel = first + panel;
            match &self.data {
                Data::Rows { bytes, element, scales } => {
                    let (size, all) = (element.bytes(), (**bytes).as_ref());
                    let row = |lane: usize| (panel * PANEL + lane).min(self.columns - 1);
                    let rows: [&[u8]; PANEL] = std::array::from_fn(|lane| {
                        let at = row(lane) * self.steps() + channels.start * self.parts;
                        &all[at * size..][..len * size]
                    });
                    turn(level, *element, &rows, self.parts, to);
                    if let Some(scales) = scales {
                        scale(level, &std::array::from_fn(|lane| scales[row(lane)]), to);
                    }
                }
                Data::Quantised(panels) => panels.decode(level, panel, channels.start, to),
            }
        }
    }
}

#[inline(always)]
fn scale_body<const FUSED: bool>(scales: &[f32; PANEL], to: &mut [Line]) {
    for to in to {
        to.0.iter_mut().zip(scales).for_each(|(y, s)| *y *= s);
    }
}

by_level! { fn scale(scales: &[f32; PANEL], to: &mut [Line]) = scale_body; }

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_weight_takes_little_more_than_in_its_file() -> Result<()> {
        for (format, most) in [
            (Format::Q4_0, 1.0),
            (Format::Q8_0, 1.0),
            (Format::Q2K, 1.2),
            (Format::Q3K, 1.04),
            (Format::Q4K, 1.03),
            (Format::Q5K, 1.03),
            (Format::Q6K, 1.0),
            (Format::F8E4M3, 1.0),
        ] {
            let bytes = 512 * 64 / format.block_len() * format.block_bytes();
            let weight = EncodedWeight::new(format, (64, 512), vec![0; bytes], None)?;
            let held = CpuWeight::encoded(&weight)?;
            assert!(held.bytes() as f64 <= most * bytes as f64, "{format:?}: {}", held.bytes());
        }
        let weight = CpuWeight::new(&Tensor::zeros((20, 5, 3, 3), DType::F16, &Device::Cpu)?)?;
        assert_eq!(weight.bytes(), 20 * 5 * 9 * 2);
        Ok(())
    }

    /// Step after step of the formula: element `(column, channel, part)` stands in the line of its part and channel.
    #[test]
    fn panels_are_the_rows_side_by_side() -> Result<()> {
        for dims in [vec![1, 1], vec![20, 5, 3, 3], vec![16, 7], vec![48, 640], vec![33, 37, 2, 1]] {
            let weight = crate::testing::random(dims.as_slice(), 7)?;
            let parts: usize = dims[2..].iter().product();
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let weight = weight.to_dtype(dtype)?;
                let values = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                let held = CpuWeight::new(&weight)?;
                let channels = dims[1] / 3..dims[1];
                for first in 0..dims[0].div_ceil(PANEL) {
                    let mut lines = vec![Line::default(); parts * channels.len()];
                    held.panels(Level::best(), first, channels.clone(), &mut lines);
                    for (i, line) in lines.iter().enumerate() {
                        let (part, channel) = (i / channels.len(), channels.start + i % channels.len());
                        for (column, value) in (first * PANEL..dims[0]).zip(line.0) {
                            assert_eq!(
                                value,
                                values[(column * dims[1] + channel) * parts + part],
                                "{dims:?} {dtype:?}"
                            );
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Files need not align their tensors.
    #[test]
    fn rows_may_lie_anywhere() -> Result<()> {
        struct Odd(Vec<u8>);
        impl AsRef<[u8]> for Odd {
            fn as_ref(&self) -> &[u8] {
                &self.0[1..]
            }
        }
        let weight = crate::testing::random((17, 11), 3)?;
        let bytes = weight.flatten_all()?.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes);
        let odd = Odd(std::iter::once(0).chain(bytes).collect());
        let stored = CpuWeight::stored(StoredRows::new(Box::new(odd), vec![17, 11], DType::F32)?)?;
        for level in Level::available() {
            let (mut a, mut b) = ([Line::default(); 22], [Line::default(); 22]);
            stored.panels(level, 0, 0..11, &mut a);
            CpuWeight::new(&weight)?.panels(level, 0, 0..11, &mut b);
            assert!(a.iter().zip(&b).all(|(a, b)| a.0 == b.0));
        }
        Ok(())
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let rows = |bytes: usize, dims: &[usize], dtype| {
            StoredRows::new(Box::new(vec![0u8; bytes]), dims.to_vec(), dtype).and_then(CpuWeight::stored)
        };
        assert!(rows(24, &[3, 4], DType::F16).is_ok());
        for (bytes, dims, dtype) in [
            (23, &[3, 4][..], DType::F16),
            (24, &[3, 4], DType::F32),
            (24, &[3, 4], DType::I16),
            (0, &[0, 4], DType::F32),
            (0, &[usize::MAX, 4], DType::F32),
        ] {
            assert!(rows(bytes, dims, dtype).is_err(), "{bytes} {dims:?} {dtype:?}");
        }
    }
}
