//! Weights in the layout that the matrix kernels read: panels of 16 output columns, in the type they came in.
//!
//! Only f32 is read in place. Everything else is widened a few panels and a few hundred steps at a time, into a buffer
//! that stays in the first-level cache while all rows of a piece of work are multiplied with it.

use candle_core::{CpuStorage, DType, Result, Storage, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

use super::quantised::QuantisedPanels;
use super::tile::PANEL;
use super::{Level, by_level};
use crate::{EncodedWeight, Format, RowSource, float8};

/// Sixteen columns of one step of the sum, on one cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; PANEL]);

#[derive(Debug)]
enum Data {
    F32(Vec<Line>),
    F16(Vec<[f16; PANEL]>),
    Bf16(Vec<[bf16; PANEL]>),
    /// Eight-bit floats, and a scale for each column where there are any.
    F8E4M3(Vec<[u8; PANEL]>, Option<Vec<Line>>),
    F8E5M2(Vec<[u8; PANEL]>, Option<Vec<Line>>),
    Quantised(Box<QuantisedPanels>),
}

/// A weight of `columns` outputs, each a sum over `parts * depth` inputs.
#[derive(Debug)]
pub(crate) struct PackedWeight {
    data: Data,
    pub(crate) columns: usize,
    pub(crate) parts: usize,
    pub(crate) depth: usize,
}

/// Bytes of a weight that are read and packed at a time: what fits a second-level cache with its packed form.
const READ_BYTES: usize = 1 << 17;

/// Rows of a checkpoint's `(out, in, kernel height, kernel width)` to panels, a few of them at a time.
///
/// `read` fills in rows from the given one on; `line` makes a line of the elements of 16 rows at one place. Every line is
/// written once, into memory that was not touched before: there is no second copy, and no clearing.
fn pack<T: Copy + Default + Send, L: Send>(
    (columns, parts, depth): (usize, usize, usize),
    read: impl Fn(usize, &mut [T]) -> Result<()> + Sync,
    line: impl Fn([T; PANEL]) -> L + Sync,
) -> Result<Vec<L>> {
    let steps = parts * depth;
    let panels = columns.div_ceil(PANEL);
    let together = (READ_BYTES / (steps * PANEL * size_of::<T>()).max(1)).clamp(1, panels);
    let mut packed = Vec::with_capacity(panels * steps);
    let chunks = packed.spare_capacity_mut()[..panels * steps].par_chunks_mut(together * steps);
    chunks.enumerate().try_for_each_init(Vec::new, |rows, (i, to)| -> Result<()> {
        let first = i * together * PANEL;
        let count = (together * PANEL).min(columns - first);
        rows.resize(together * PANEL * steps, T::default());
        rows[count * steps..].fill(T::default());
        read(first, &mut rows[..count * steps])?;
        for (rows, to) in rows.chunks_exact(PANEL * steps).zip(to.chunks_exact_mut(steps)) {
            for (part, to) in to.chunks_exact_mut(depth).enumerate() {
                for (channel, to) in to.iter_mut().enumerate() {
                    let at = channel * parts + part;
                    to.write(line(std::array::from_fn(|lane| rows[lane * steps + at])));
                }
            }
        }
        Ok(())
    })?;
    // SAFETY: every line was written.
    unsafe { packed.set_len(panels * steps) };
    Ok(packed)
}

/// Rows of a weight that is in memory.
fn in_memory<T: Copy + Sync>(all: &[T], steps: usize) -> impl Fn(usize, &mut [T]) -> Result<()> + Sync {
    move |first, into| {
        into.copy_from_slice(&all[first * steps..][..into.len()]);
        Ok(())
    }
}

/// A type whose bytes mean the same in a file.
trait Plain: Copy + Default + Send + Sync {}
impl Plain for f32 {}
impl Plain for f16 {}
impl Plain for bf16 {}

/// Rows of a weight that are read when they are packed.
fn from_source<T: Plain>(source: &dyn RowSource) -> impl Fn(usize, &mut [T]) -> Result<()> + Sync {
    move |first, into| {
        // SAFETY: `Plain` types have no padding, and every pattern of bits is one of them.
        let bytes = unsafe { std::slice::from_raw_parts_mut(into.as_mut_ptr().cast(), size_of_val(into)) };
        source.read(first, bytes)
    }
}

/// Columns, parts and depth of a weight `(out, in)` or `(out, in, kernel height, kernel width)`.
fn packed_shape(dims: &[usize]) -> Result<(usize, usize, usize)> {
    match dims {
        [columns, depth, kernel @ ..] if !dims.contains(&0) => {
            Ok((*columns, kernel.iter().product(), *depth))
        }
        _ => bail!("a weight of shape {dims:?} has no elements"),
    }
}

impl PackedWeight {
    /// Packs `(out, in)` or `(out, in, kernel height, kernel width)`; 16-bit weights stay 16 bits wide.
    pub(crate) fn new(weight: &Tensor) -> Result<Self> {
        let shape = packed_shape(weight.dims())?;
        let (columns, parts, depth) = shape;
        let weight = match weight.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => weight.contiguous()?,
            _ => weight.to_dtype(DType::F32)?.contiguous()?,
        };
        let (storage, layout) = weight.storage_and_layout();
        let (start, end) = (layout.start_offset(), layout.start_offset() + layout.shape().elem_count());
        let steps = parts * depth;
        let data = match &*storage {
            Storage::Cpu(CpuStorage::F32(w)) => {
                Data::F32(pack(shape, in_memory(&w[start..end], steps), Line)?)
            }
            Storage::Cpu(CpuStorage::F16(w)) => {
                Data::F16(pack(shape, in_memory(&w[start..end], steps), |line| line)?)
            }
            Storage::Cpu(CpuStorage::BF16(w)) => {
                Data::Bf16(pack(shape, in_memory(&w[start..end], steps), |line| line)?)
            }
            _ => bail!("a weight of type {:?} is not on the CPU", weight.dtype()),
        };
        Ok(Self { data, columns, parts, depth })
    }

    /// Packs a weight as it is read, to be held in `dtype`.
    pub(crate) fn read(source: &dyn RowSource, dtype: DType) -> Result<Self> {
        let shape = packed_shape(source.dims())?;
        let (columns, parts, depth) = shape;
        let level = Level::best();
        let data = match (source.dtype(), dtype) {
            (DType::F32, DType::F32) => Data::F32(pack(shape, from_source::<f32>(source), Line)?),
            (DType::F16, DType::F16) => Data::F16(pack(shape, from_source::<f16>(source), |line| line)?),
            (DType::BF16, DType::BF16) => Data::Bf16(pack(shape, from_source::<bf16>(source), |line| line)?),
            (DType::F16, DType::F32) => Data::F32(pack(shape, from_source::<f16>(source), |values| {
                let mut line = [Line::default()];
                widen_f16(level, &[values], &mut line);
                line[0]
            })?),
            (DType::BF16, DType::F32) => {
                Data::F32(pack(shape, from_source::<bf16>(source), |values| Line(values.map(bf16::to_f32)))?)
            }
            (stored, held) => bail!("a weight of {stored:?} cannot be read as {held:?}"),
        };
        Ok(Self { data, columns, parts, depth })
    }

    /// Packs a matrix `(out, in)`, which keeps its format.
    pub(crate) fn encoded(weight: &EncodedWeight) -> Result<Self> {
        let (columns, depth) = weight.dims();
        let float8 = || -> Result<_> {
            let lines: Vec<[u8; PANEL]> =
                pack((columns, 1, depth), in_memory(&weight.bytes, depth), |line| line)?;
            let scales = weight.row_scales.as_ref().map(|scales| {
                let mut lines = vec![Line::default(); columns.div_ceil(PANEL)];
                lines
                    .iter_mut()
                    .flat_map(|line| &mut line.0)
                    .zip(scales)
                    .for_each(|(to, &scale)| *to = scale);
                lines
            });
            Ok((lines, scales))
        };
        let data = match QuantisedPanels::new(weight) {
            Some(panels) => Data::Quantised(Box::new(panels)),
            None => {
                let (lines, scales) = float8()?;
                if weight.format == Format::F8E4M3 {
                    Data::F8E4M3(lines, scales)
                } else {
                    Data::F8E5M2(lines, scales)
                }
            }
        };
        Ok(Self { data, columns, parts: 1, depth })
    }

    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(lines) => size_of_val(&lines[..]),
            Data::F16(lines) => size_of_val(&lines[..]),
            Data::Bf16(lines) => size_of_val(&lines[..]),
            Data::F8E4M3(lines, scales) | Data::F8E5M2(lines, scales) => {
                size_of_val(&lines[..]) + scales.as_ref().map_or(0, |scales| size_of_val(&scales[..]))
            }
            Data::Quantised(panels) => panels.bytes(),
        }
    }

    /// Steps of the sum.
    pub(crate) fn steps(&self) -> usize {
        self.parts * self.depth
    }

    /// `count` panels from panel `first` on, their steps `from..from + len`: a pointer to the first, and the distance
    /// of two in floats. Narrower weights are widened into `scratch`, which the pointer then borrows.
    pub(crate) fn panels(
        &self,
        level: Level,
        (first, count): (usize, usize),
        (from, len): (usize, usize),
        scratch: &mut Vec<Line>,
    ) -> (*const f32, usize) {
        let steps = self.steps();
        if let Data::F32(lines) = &self.data {
            return (lines[first * steps + from..].as_ptr().cast(), steps * PANEL);
        }
        scratch.resize(count * len, Line::default());
        for (panel, to) in scratch.chunks_exact_mut(len).enumerate() {
            let at = (first + panel) * steps + from;
            match &self.data {
                Data::F32(_) => {}
                Data::F16(lines) => widen_f16(level, &lines[at..at + len], to),
                Data::Bf16(lines) => widen_bf16(level, &lines[at..at + len], to),
                Data::F8E4M3(lines, scales) => {
                    widen_e4m3(level, &lines[at..at + len], to);
                    scale(level, scales.as_ref().map(|scales| &scales[first + panel]), to);
                }
                Data::F8E5M2(lines, scales) => {
                    widen_e5m2(level, &lines[at..at + len], to);
                    scale(level, scales.as_ref().map(|scales| &scales[first + panel]), to);
                }
                Data::Quantised(panels) => panels.decode(level, first + panel, from, to),
            }
        }
        (scratch.as_ptr().cast(), len * PANEL)
    }
}

#[inline(always)]
pub(super) fn widen_f16_body<const FUSED: bool>(from: &[[f16; PANEL]], to: &mut [Line]) {
    for (from, to) in from.iter().zip(to) {
        #[cfg(target_arch = "x86_64")]
        if FUSED {
            use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
            for (from, to) in from.chunks_exact(8).zip(to.0.chunks_exact_mut(8)) {
                // SAFETY: both slices have eight elements, and the levels with a fused multiply-add have F16C.
                unsafe {
                    _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())))
                };
            }
            continue;
        }
        from.iter().zip(&mut to.0).for_each(|(h, f)| *f = h.to_f32());
    }
}

#[inline(always)]
fn widen_bf16_body<const FUSED: bool>(from: &[[bf16; PANEL]], to: &mut [Line]) {
    for (from, to) in from.iter().zip(to) {
        for (h, f) in from.iter().zip(&mut to.0) {
            *f = f32::from_bits(u32::from(h.to_bits()) << 16);
        }
    }
}

#[inline(always)]
fn widen_e4m3_body<const FUSED: bool>(from: &[[u8; PANEL]], to: &mut [Line]) {
    for (from, to) in from.iter().zip(to) {
        #[cfg(target_arch = "x86_64")]
        if FUSED {
            // SAFETY: the levels with a fused multiply-add have AVX2.
            unsafe { float8::e4m3_avx2(from, &mut to.0) };
            continue;
        }
        from.iter().zip(&mut to.0).for_each(|(&b, f)| *f = float8::e4m3(b));
    }
}

#[inline(always)]
fn widen_e5m2_body<const FUSED: bool>(from: &[[u8; PANEL]], to: &mut [Line]) {
    for (from, to) in from.iter().zip(to) {
        let halves = from.map(|b| f16::from_bits(u16::from(b) << 8));
        widen_f16_body::<FUSED>(&[halves], std::slice::from_mut(to));
    }
}

#[inline(always)]
fn scale_body<const FUSED: bool>(scales: Option<&Line>, to: &mut [Line]) {
    let Some(scales) = scales else { return };
    for to in to {
        to.0.iter_mut().zip(&scales.0).for_each(|(y, s)| *y *= s);
    }
}

by_level! { fn widen_e4m3(from: &[[u8; PANEL]], to: &mut [Line]) = widen_e4m3_body; }
by_level! { fn widen_e5m2(from: &[[u8; PANEL]], to: &mut [Line]) = widen_e5m2_body; }
by_level! { fn scale(scales: Option<&Line>, to: &mut [Line]) = scale_body; }
by_level! { fn widen_f16(from: &[[f16; PANEL]], to: &mut [Line]) = widen_f16_body; }
by_level! { fn widen_bf16(from: &[[bf16; PANEL]], to: &mut [Line]) = widen_bf16_body; }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_widens_as_half_does() {
        let all: Vec<[f16; PANEL]> =
            (0..=u16::MAX / 16).map(|i| std::array::from_fn(|j| f16::from_bits(i * 16 + j as u16))).collect();
        for level in Level::available() {
            let mut wide = vec![Line::default(); all.len()];
            widen_f16(level, &all, &mut wide);
            for (h, f) in all.iter().flatten().zip(wide.iter().flat_map(|l| &l.0)) {
                assert!(h.to_f32() == *f || (h.is_nan() && f.is_nan()), "{level:?}: {h} became {f}");
                assert_eq!(h.is_sign_negative(), f.is_sign_negative(), "{level:?}: {h} became {f}");
            }
        }
    }

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
            let packed = PackedWeight::encoded(&weight)?;
            assert!(packed.bytes() as f64 <= most * bytes as f64, "{format:?}: {}", packed.bytes());
        }
        Ok(())
    }

    #[test]
    fn a_16_bit_weight_takes_16_bits() -> Result<()> {
        let weight = Tensor::zeros((20, 5, 3, 3), DType::F16, &candle_core::Device::Cpu)?;
        let packed = PackedWeight::new(&weight)?;
        assert!(matches!(&packed.data, Data::F16(lines) if size_of_val(&lines[..]) == 32 * 5 * 9 * 2));
        Ok(())
    }

    /// A file in memory.
    struct Rows {
        dims: Vec<usize>,
        dtype: DType,
        bytes: Vec<u8>,
    }

    impl RowSource for Rows {
        fn dims(&self) -> &[usize] {
            &self.dims
        }

        fn dtype(&self) -> DType {
            self.dtype
        }

        fn read(&self, first: usize, into: &mut [u8]) -> Result<()> {
            let at = first * self.dims[1..].iter().product::<usize>() * self.dtype.size_in_bytes();
            match self.bytes.get(at..at + into.len()) {
                Some(bytes) => into.copy_from_slice(bytes),
                None => bail!("the file ends here"),
            }
            Ok(())
        }
    }

    /// Every value that the kernels would see.
    fn values(packed: &PackedWeight) -> Vec<f32> {
        let mut scratch = Vec::new();
        let (panels, steps) = (packed.columns.div_ceil(PANEL), packed.steps());
        let (start, stride) = packed.panels(Level::best(), (0, panels), (0, steps), &mut scratch);
        assert_eq!(stride, steps * PANEL);
        // SAFETY: so many panels of so many steps were asked for.
        unsafe { std::slice::from_raw_parts(start, panels * steps * PANEL) }.to_vec()
    }

    #[test]
    fn a_weight_that_is_read_is_the_one_in_memory() -> Result<()> {
        // The last are read in several pieces, the very last with a part of a panel at its end.
        for dims in [vec![1, 1], vec![20, 5, 3, 3], vec![16, 7], vec![512, 640], vec![333, 37, 3, 3]] {
            let weight = crate::testing::random(dims.as_slice(), 7)?;
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let stored = weight.to_dtype(dtype)?;
                let flat = stored.flatten_all()?;
                let bytes = match dtype {
                    DType::F32 => flat.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    DType::F16 => flat.to_vec1::<f16>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    _ => flat.to_vec1::<bf16>()?.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>(),
                };
                let mut rows = Rows { dims: dims.clone(), dtype, bytes };
                for held in [dtype, DType::F32] {
                    let read = PackedWeight::read(&rows, held)?;
                    let expected = PackedWeight::new(&stored.to_dtype(held)?)?;
                    assert_eq!(values(&read), values(&expected), "{dims:?} {dtype:?} as {held:?}");
                    assert_eq!(read.bytes(), expected.bytes());
                }
                rows.bytes.pop();
                let error = PackedWeight::read(&rows, dtype).err().map(|e| e.to_string());
                assert!(error.is_some_and(|e| e.contains("the file ends here")));
            }
        }
        Ok(())
    }
}
