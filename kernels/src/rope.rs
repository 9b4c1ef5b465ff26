//! RMS normalisation of queries or keys, head by head, and their rotation by position, in one pass.

use std::mem::MaybeUninit;

use candle_core::{D, DType, Device, Result, Tensor, bail};

use crate::cpu::{self, Level, STEPS_A_FLOAT, Shared, by_level, for_each_piece, math};
use crate::floats::floats;
use crate::gpu::{self, Launch};

/// By how much each pair of a head's channels is turned, token by token. Source: Su et al. 2021.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// `(tokens, d)`, each cosine twice.
    cos: Tensor,
    /// `(tokens, d)`, each sine twice: negative for the first channel of a pair.
    sin: Tensor,
}

impl Rotation {
    /// `angles`: radians, `(tokens, pairs)` in row-major order; cosines and sines are taken in f64 and rounded to f32.
    pub fn new(angles: &[f64], pairs: usize, device: &Device) -> Result<Self> {
        if pairs == 0 || !angles.len().is_multiple_of(pairs) {
            bail!("rotation: {} angles are no multiple of {pairs} pairs", angles.len());
        }
        let shape = (angles.len() / pairs, 2 * pairs);
        let both = |f: &dyn Fn(f64) -> [f32; 2]| {
            Tensor::from_vec(angles.iter().flat_map(|&a| f(a)).collect::<Vec<f32>>(), shape, device)
        };
        Ok(Self {
            cos: both(&|a| [a.cos() as f32; 2])?,
            sin: both(&|a| [-(a.sin() as f32), a.sin() as f32])?,
        })
    }

    /// Of cosines and signed sines, `(tokens, d)` each, as [`Self::tensors`] gives them.
    ///
    /// # Errors
    /// Where their shapes differ.
    pub fn from_tensors(cos: Tensor, sin: Tensor) -> Result<Self> {
        if cos.dims2()? != sin.dims2()? {
            bail!("rotation: cosines of shape {:?}, sines of {:?}", cos.dims(), sin.dims());
        }
        Ok(Self { cos, sin })
    }

    /// Cosines and signed sines, `(tokens, d)` each.
    pub fn tensors(&self) -> [&Tensor; 2] {
        [&self.cos, &self.sin]
    }

    /// Tokens it has angles for.
    pub fn tokens(&self) -> usize {
        self.cos.dims().first().copied().unwrap_or(0)
    }
}

/// Divides each head's channels by their root mean square, multiplies them by `weight`, and turns the pairs
/// `(0, 1), (2, 3), ..` by the token's angles.
///
/// `parts`: sequences and the weight that each is normalised with, `(batch, tokens, heads * d)` and `(d)`; they follow
/// each other in the result, `(batch, all tokens, heads * d)`, whose positions are those of `rotation`.
/// Source: `FluxAttnProcessor` of diffusers; Zhang and Sennrich 2019; Su et al. 2021.
pub fn rms_norm_rope(
    parts: &[(&Tensor, &Tensor)],
    heads: usize,
    rotation: &Rotation,
    eps: f64,
) -> Result<Tensor> {
    let (tokens, d) = rotation.cos.dims2()?;
    let Some((first, _)) = parts.first() else { bail!("rope: there are no tokens") };
    let (batch, _, _) = first.dims3()?;
    let mut sum = 0;
    for (x, weight) in parts {
        if x.dims() != [batch, x.dim(1)?, heads * d] || weight.dims() != [d] || x.dtype() != first.dtype() {
            bail!(
                "rope: tokens {:?} ({:?}) and a weight {:?} for {batch} samples of {heads} heads of {d} channels",
                x.dims(),
                x.dtype(),
                weight.dims()
            );
        }
        sum += x.dim(1)?;
    }
    if sum != tokens || heads == 0 {
        bail!("rope: {heads} heads of {sum} tokens, the rotation has {tokens}");
    }
    if first.device().is_cpu() {
        on_cpu(Level::best(), parts, heads, rotation, eps)
    } else if gpu::takes(first) && parts.len() <= 2 {
        on_gpu(parts, heads, rotation, eps)
    } else {
        definition(parts, heads, rotation, eps)
    }
}

fn definition(parts: &[(&Tensor, &Tensor)], heads: usize, rotation: &Rotation, eps: f64) -> Result<Tensor> {
    let (tokens, d) = rotation.cos.dims2()?;
    let normalised = |(x, weight): &(&Tensor, &Tensor)| {
        let (batch, tokens, _) = x.dims3()?;
        let x = x.to_dtype(DType::F32)?.reshape((batch, tokens, heads, d))?;
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(&weight.to_dtype(DType::F32)?)
    };
    let x = Tensor::cat(&parts.iter().map(normalised).collect::<Result<Vec<_>>>()?, 1)?;
    let batch = x.dim(0)?;
    let pairs = x.reshape((batch, tokens, heads, d / 2, 2))?;
    let swapped = Tensor::cat(&[pairs.narrow(4, 1, 1)?, pairs.narrow(4, 0, 1)?], 4)?.reshape(x.shape())?;
    let turn = |t: &Tensor| t.reshape((1, tokens, 1, d));
    let y = (x.broadcast_mul(&turn(&rotation.cos)?)? + swapped.broadcast_mul(&turn(&rotation.sin)?)?)?;
    let dtype = parts.first().map_or(DType::F32, |(x, _)| x.dtype());
    y.reshape((batch, tokens, heads * d))?.to_dtype(dtype)
}

/// One or two parts: what FLUX's blocks have.
fn on_gpu(parts: &[(&Tensor, &Tensor)], heads: usize, rotation: &Rotation, eps: f64) -> Result<Tensor> {
    let (all, d) = rotation.cos.dims2()?;
    let held = parts.iter().map(|(x, weight)| Ok((x.contiguous()?, floats(weight)?)));
    let held = held.collect::<Result<Vec<_>>>()?;
    let [(x, weight), also @ ..] = &held[..] else { bail!("rope: there are no tokens") };
    let (also, also_weight) = also.first().map_or((None, None), |(x, weight)| (Some(x), Some(weight)));
    let ((batch, tokens, channels), dtype) = (x.dims3()?, x.dtype());
    let all_heads = batch * all * heads;
    let launch = Launch::typed("rope", "rms_norm_rope", dtype)?.input(x).input(weight);
    let launch = launch.optional(also).optional(also_weight).input(&rotation.cos).input(&rotation.sin);
    let launch = launch.output((batch, all, channels), dtype).int(all_heads).int(tokens).int(all - tokens);
    launch.int(heads).int(d).float(eps).for_each_row(all_heads)
}

/// Floats of a piece of work.
const PIECE: usize = 16 << 10;

fn on_cpu(
    level: Level,
    parts: &[(&Tensor, &Tensor)],
    heads: usize,
    rotation: &Rotation,
    eps: f64,
) -> Result<Tensor> {
    let (all, d) = rotation.cos.dims2()?;
    let channels = heads * d;
    let (cos, sin) = (cpu::elements(&rotation.cos)?, cpu::elements(&rotation.sin)?);
    let mut batch = 0;
    let mut dtype = DType::F32;
    let mut held = Vec::with_capacity(parts.len());
    for (x, weight) in parts {
        (batch, dtype) = (x.dim(0)?, x.dtype());
        held.push((floats(x)?, floats(weight)?));
    }
    let held = held.iter().map(|(x, w)| Ok((x.dim(1)?, cpu::elements(x)?, cpu::elements(w)?)));
    let held = held.collect::<Result<Vec<_>>>()?;
    let rows = (PIECE / channels).max(1);
    let fill = |out| {
        let out = Shared::new(out);
        let mut position = 0;
        for (tokens, x, weight) in &held {
            let tokens = *tokens;
            let pieces = tokens.div_ceil(rows);
            for_each_piece(batch * pieces, STEPS_A_FLOAT * x.len(), |piece| {
                let (sample, first) = (piece / pieces, piece % pieces * rows);
                let count = rows.min(tokens - first);
                let from = (sample * tokens + first) * channels;
                let to = (sample * all + position + first) * channels;
                let angles = (position + first) * d..(position + first + count) * d;
                // SAFETY: the range lies within the result, and no two pieces have a token in common.
                let out = unsafe { out.slice(to..to + count * channels) };
                let x = &x[from..from + count * channels];
                turn(level, x, weight, (&cos[angles.clone()], &sin[angles]), eps as f32, out);
            });
            position += tokens;
        }
    };
    // SAFETY: the pieces cover all tokens of all parts, which are all tokens of the result; `turn` writes all it gets.
    unsafe { cpu::from_parts((batch, all, channels), fill) }?.to_dtype(dtype)
}

/// `x`: tokens of heads of `weight.len()` channels; the angles: so many a token.
#[inline(always)]
fn turn_body<const FUSED: bool>(
    x: &[f32],
    weight: &[f32],
    (cos, sin): (&[f32], &[f32]),
    eps: f32,
    out: &mut [MaybeUninit<f32>],
) {
    let d = weight.len();
    let tokens = cos.len() / d;
    let channels = x.len() / tokens.max(1);
    let mut head = vec![0f32; d];
    for token in 0..tokens {
        let (cos, sin) = (&cos[token * d..][..d], &sin[token * d..][..d]);
        let (x, out) = (&x[token * channels..][..channels], &mut out[token * channels..][..channels]);
        for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            let inverse = 1.0 / (squares::<FUSED>(x) / d as f32 + eps).sqrt();
            for ((head, x), w) in head.iter_mut().zip(x).zip(weight) {
                *head = x * inverse * w;
            }
            // Blocks of a register's width, in which pairs change places with one shuffle.
            let (heads, rest) = head.as_chunks::<16>();
            let first = heads.len() * 16;
            for (i, head) in heads.iter().enumerate() {
                let at = i * 16;
                let swapped: [f32; 16] = std::array::from_fn(|j| head[j ^ 1]);
                for j in 0..16 {
                    out[at + j].write(math::mul_add::<FUSED>(head[j], cos[at + j], swapped[j] * sin[at + j]));
                }
            }
            for j in 0..rest.len() {
                let at = first + j;
                out[at].write(math::mul_add::<FUSED>(rest[j], cos[at], rest[j ^ 1] * sin[at]));
            }
        }
    }
}

/// The sum of squares, in the lanes of a register.
#[inline(always)]
fn squares<const FUSED: bool>(x: &[f32]) -> f32 {
    let mut lanes = [0.0; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &x)| *lane = math::mul_add::<FUSED>(x, x, *lane));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &x)| *lane += x * x);
    math::fold(lanes, |a, b| a + b)
}

by_level! {
    fn turn(x: &[f32], weight: &[f32], angles: (&[f32], &[f32]), eps: f32, out: &mut [MaybeUninit<f32>]) = turn_body;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{assert_close, f64s, random, same_bytes, with_threads};

    fn rotation(tokens: usize, pairs: usize) -> Result<Rotation> {
        let angles: Vec<f64> = (0..tokens * pairs).map(|i| (i * i % 1000) as f64 * 0.013).collect();
        Rotation::new(&angles, pairs, &Device::Cpu)
    }

    #[test]
    fn every_level_gives_the_definition() -> Result<()> {
        for (batch, lengths, heads, d) in
            [(1, [1, 0], 1, 2), (2, [3, 5], 3, 14), (1, [20, 77], 2, 48), (2, [30, 9], 4, 128)]
        {
            let x = lengths.map(|tokens| random((batch, tokens, heads * d), tokens as u64));
            let [x, y] = x;
            let (x, y, w, v) = (x?, y?, random(d, 3)?, random(d, 4)?);
            let rotation = rotation(lengths[0] + lengths[1], d / 2)?;
            let mut parts = vec![(&x, &w), (&y, &v)];
            parts.retain(|(x, _)| x.elem_count() > 0);
            let expected = f64s(&definition(&parts, heads, &rotation, 1e-6)?)?;
            for level in Level::available() {
                assert_close(&on_cpu(level, &parts, heads, &rotation, 1e-6)?, &expected, 3e-6)?;
            }
        }
        Ok(())
    }

    /// The formula in f64: a pair is a complex number times `e^(i angle)`.
    #[test]
    fn pairs_are_turned_as_complex_numbers() -> Result<()> {
        let (x, w) = (random((1, 1, 4), 1)?, Tensor::new(&[1f32, 1.0, 1.0, 1.0], &Device::Cpu)?);
        let angles = [0.3, -2.0];
        let y = rms_norm_rope(&[(&x, &w)], 1, &Rotation::new(&angles, 2, &Device::Cpu)?, 0.0)?;
        let v = f64s(&x)?;
        let rms = (v.iter().map(|v| v * v).sum::<f64>() / 4.0).sqrt();
        let mut expected = Vec::new();
        for (pair, a) in v.chunks(2).zip(angles) {
            let (re, im) = (pair[0] / rms, pair[1] / rms);
            expected.extend([re * a.cos() - im * a.sin(), re * a.sin() + im * a.cos()]);
        }
        assert_close(&y, &expected, 1e-6)
    }

    #[test]
    fn threads_and_batches_change_no_byte() -> Result<()> {
        let (x, y, w) = (random((2, 200, 256), 1)?, random((2, 133, 256), 2)?, random(64, 3)?);
        let rotation = rotation(333, 32)?;
        let run = |x: &Tensor, y: &Tensor| rms_norm_rope(&[(x, &w), (y, &w)], 4, &rotation, 1e-6);
        let all = with_threads(1, || run(&x, &y))?;
        same_bytes(&with_threads(3, || run(&x, &y))?, &all)?;
        for i in 0..2 {
            same_bytes(&run(&x.narrow(0, i, 1)?, &y.narrow(0, i, 1)?)?, &all.narrow(0, i, 1)?)?;
        }
        Ok(())
    }

    #[test]
    fn wrong_shapes_are_refused() -> Result<()> {
        let (x, w, rotation) = (random((1, 5, 16), 1)?, random(8, 2)?, rotation(5, 4)?);
        assert!(rms_norm_rope(&[(&x, &w)], 2, &rotation, 1e-6).is_ok());
        assert!(rms_norm_rope(&[], 2, &rotation, 1e-6).is_err());
        assert!(rms_norm_rope(&[(&x, &w)], 1, &rotation, 1e-6).is_err());
        assert!(rms_norm_rope(&[(&x, &w), (&x, &w)], 2, &rotation, 1e-6).is_err());
        assert!(rms_norm_rope(&[(&x, &w.narrow(0, 0, 4)?)], 2, &rotation, 1e-6).is_err());
        assert!(Rotation::new(&[1.0; 5], 2, &Device::Cpu).is_err());
        Ok(())
    }

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        for (dtype, tolerance) in TYPES {
            for (batch, lengths, heads, d) in
                [(1, [1, 0], 1, 2), (2, [3, 5], 3, 14), (1, [7, 9], 2, 48), (2, [4, 3], 4, 128)]
            {
                let [x, y] = lengths.map(|tokens| random((batch, tokens, heads * d), tokens as u64));
                let (x, y, w, v) = (
                    put(&x?, dtype)?,
                    put(&y?, dtype)?,
                    put(&random(d, 3)?, dtype)?,
                    put(&random(d, 4)?, dtype)?,
                );
                let rotation = rotation(lengths[0] + lengths[1], d / 2)?;
                let there =
                    Rotation { cos: put(&rotation.cos, DType::F32)?, sin: put(&rotation.sin, DType::F32)? };
                let mut parts = vec![(&x, &w), (&y, &v)];
                parts.retain(|(x, _)| x.elem_count() > 0);
                let held = parts.iter().map(|(x, w)| Ok((seen(x)?, seen(w)?))).collect::<Result<Vec<_>>>()?;
                let held: Vec<_> = held.iter().map(|(x, w)| (x, w)).collect();
                let expected = definition(&held, heads, &rotation, 1e-6)?;
                assert_result(&on_gpu(&parts, heads, &there, 1e-6)?, dtype, &expected, tolerance)?;
            }
        }
        Ok(())
    }
}
