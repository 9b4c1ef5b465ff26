//! Group normalisation over channels-last features, with an optional SiLU.

use std::mem::MaybeUninit;

use candle_core::{D, DType, Result, Tensor, bail};

use crate::Activation;
use crate::cpu::{self, Level, STEPS_A_FLOAT, Shared, by_level, for_each_piece, math};
use crate::floats::floats;
use crate::gpu::{self, Launch};

/// Normalises each group of channels of each sample to mean 0 and variance 1, then scales, shifts and activates.
///
/// `x`: `(batch, .., channels)`, `weight` and `bias`: `(channels)`. Statistics are f32. Source: Wu and He 2018.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let &[_, .., channels] = x.dims() else {
        bail!("group_norm: an input of shape {:?}, it must have two dimensions at least", x.dims());
    };
    if groups == 0 || channels % groups != 0 {
        bail!("group_norm: {channels} channels cannot be divided into {groups} groups");
    }
    if weight.dims() != [channels] || bias.dims() != [channels] {
        bail!("group_norm: scale {:?} and shift {:?} for {channels} channels", weight.dims(), bias.dims());
    }
    if x.device().is_cpu() && x.elem_count() > 0 {
        on_cpu(Level::best(), x, weight, bias, groups, eps, activation)
    } else if gpu::takes(x) && x.elem_count() > 0 && lanes(x)? * channels * 8 <= SHARED {
        on_gpu(x, weight, bias, groups, eps, activation)
    } else {
        definition(x, weight, bias, groups, eps, activation)
    }
}

fn definition(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(D::Minus1)?);
    let g = x.reshape((batch, (), groups, channels / groups))?.to_dtype(DType::F32)?;
    let mean = g.mean_keepdim((1, 3))?;
    let g = g.broadcast_sub(&mean)?;
    let variance = g.sqr()?.mean_keepdim((1, 3))?;
    let y = g.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape(x.shape())?;
    let wide = |t: &Tensor| t.to_dtype(DType::F32);
    let y = y.broadcast_mul(&wide(weight)?)?.broadcast_add(&wide(bias)?)?;
    activation.definition(&y)?.to_dtype(x.dtype())
}

/// Shared memory of a block: mean and squares of every channel, for each of its pixels that are read at once.
const SHARED: usize = 48 << 10;
/// Threads of a block that gathers statistics.
const GATHERING: usize = 256;

/// Pixels that a block reads at once.
fn lanes(x: &Tensor) -> Result<usize> {
    Ok((GATHERING / x.dim(D::Minus1)?.div_ceil(gpu::width(x.dtype()))).max(1))
}

/// Three kernels: statistics of parts of each sample, of the samples, and one pass that normalises and activates.
fn on_gpu(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let (batch, channels, dtype) = (x.dim(0)?, x.dim(D::Minus1)?, x.dtype());
    let pixels = x.elem_count() / (batch * channels);
    let (x, weight, bias, lanes) = (x.contiguous()?, floats(weight)?, floats(bias)?, lanes(x)?);
    // Enough blocks for the largest GPUs, and enough pixels for each of its threads.
    let part_pixels = pixels.div_ceil((512 / batch).max(1)).max(4 * lanes).min(pixels);
    let parts = pixels.div_ceil(part_pixels);
    let launch = Launch::typed("group_norm", "group_norm_gather", dtype)?.input(&x);
    let launch = launch.output((batch, parts, groups, 2), DType::F32).int(pixels).int(part_pixels);
    let launch = launch.int(channels).int(groups).shared(lanes * channels * 8);
    let statistics = launch.blocks([parts, batch, 1], GATHERING)?;
    let launch = Launch::new("group_norm", "group_norm_fold").input(&statistics).input(&weight);
    let launch = launch.output((batch, channels), DType::F32).output((batch, channels), DType::F32);
    let launch = launch.int(pixels).int(part_pixels).int(parts).int(channels).int(groups).float(eps);
    let (means, scales) = launch.blocks_of_two([groups, batch, 1], 32)?;
    let launch = Launch::typed("group_norm", "group_norm_apply", dtype)?;
    let launch = launch.input(&x).input(&means).input(&scales).input(&bias).output(x.shape(), dtype);
    let launch = launch.int(batch * pixels).int(pixels).int(channels).int(activation.number());
    launch.for_each_pack(batch * pixels, channels, dtype)
}

/// Floats of a piece of work: they are read twice, the second time from the first-level cache.
const PIECE: usize = 8 << 10;

fn on_cpu(
    level: Level,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let (shape, dtype, batch) = (x.shape().clone(), x.dtype(), x.dim(0)?);
    let (x, weight, bias) = (floats(x)?, floats(weight)?, floats(bias)?);
    let (x, weight, bias) = (cpu::elements(&x)?, cpu::elements(&weight)?, cpu::elements(&bias)?);
    let channels = weight.len();
    let sample = x.len() / batch;
    let piece = (PIECE / channels).max(1) * channels;
    let pieces = sample.div_ceil(piece);
    let part = |i: usize| {
        let first = i / pieces * sample + i % pieces * piece;
        first..(first + piece).min((i / pieces + 1) * sample)
    };
    // Every piece's statistics, then combined in order, so that threads change nothing.
    let mut statistics = vec![Statistics::default(); batch * pieces * groups];
    cpu::for_each_chunk(&mut statistics, groups, STEPS_A_FLOAT * x.len(), |i, groups| {
        gather(level, &x[part(i)], channels, groups)
    });
    let mut affine = Vec::with_capacity(batch);
    for pieces in statistics.chunks_exact(pieces * groups) {
        let mut scale_and_shift = (Vec::with_capacity(channels), Vec::with_capacity(channels));
        for group in 0..groups {
            let parts = pieces[group..].iter().step_by(groups);
            let all = parts.fold(Statistics::default(), |all, part| all.and(part));
            let inverse = 1.0 / (all.squares / all.count + eps).sqrt();
            let width = channels / groups;
            for c in group * width..(group + 1) * width {
                let scale = f64::from(weight[c]) * inverse;
                scale_and_shift.0.push(scale as f32);
                scale_and_shift.1.push((f64::from(bias[c]) - all.mean * scale) as f32);
            }
        }
        affine.push(scale_and_shift);
    }
    let fill = |out| {
        let out = Shared::new(out);
        for_each_piece(batch * pieces, STEPS_A_FLOAT * x.len(), |i| {
            let (scale, shift) = &affine[i / pieces];
            // SAFETY: the parts lie within the result and do not overlap.
            apply(level, &x[part(i)], scale, shift, activation, unsafe { out.slice(part(i)) });
        });
    };
    // SAFETY: the parts cover the result, and `apply` writes all it gets.
    unsafe { cpu::from_parts(shape, fill) }?.to_dtype(dtype)
}

/// Count, mean and the sum of squared distances from it.
#[derive(Clone, Copy, Debug, Default)]
struct Statistics {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Statistics {
    /// The statistics of both sets together. Source: Chan, Golub and LeVeque 1979.
    fn and(self, other: &Self) -> Self {
        let count = self.count + other.count;
        let distance = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + distance * (other.count / count),
            squares: self.squares + other.squares + distance * distance * (self.count * other.count / count),
        }
    }
}

/// The statistics of each group over some pixels: those of each channel, which vectorise, then combined.
#[inline(always)]
fn gather_body<const FUSED: bool>(x: &[f32], channels: usize, groups: &mut [Statistics]) {
    let (mut means, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
    let pixels = x.len() / channels;
    for pixel in x.chunks_exact(channels) {
        means.iter_mut().zip(pixel).for_each(|(sum, x)| *sum += x);
    }
    means.iter_mut().for_each(|m| *m /= pixels as f32);
    for pixel in x.chunks_exact(channels) {
        for ((sum, x), mean) in squares.iter_mut().zip(pixel).zip(&means) {
            *sum = math::mul_add::<FUSED>(x - mean, x - mean, *sum);
        }
    }
    let width = channels / groups.len();
    for ((group, means), squares) in groups.iter_mut().zip(means.chunks(width)).zip(squares.chunks(width)) {
        let mean = means.iter().map(|&m| f64::from(m)).sum::<f64>() / width as f64;
        let between: f64 = means.iter().map(|&m| (f64::from(m) - mean).powi(2)).sum();
        let within: f64 = squares.iter().map(|&s| f64::from(s)).sum();
        let count = (pixels * width) as f64;
        *group = Statistics { count, mean, squares: within + between * pixels as f64 };
    }
}

/// Writes `activation(x * scale + shift)`, channel by channel.
#[inline(always)]
fn apply_body<const FUSED: bool>(
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    activation: Activation,
    out: &mut [MaybeUninit<f32>],
) {
    for (x, out) in x.chunks_exact(scale.len()).zip(out.chunks_exact_mut(scale.len())) {
        let affine = x.iter().zip(scale).zip(shift).map(|((x, a), b)| math::mul_add::<FUSED>(*x, *a, *b));
        if activation == Activation::Silu {
            out.iter_mut().zip(affine).for_each(|(out, y)| _ = out.write(math::silu::<FUSED>(y)));
        } else {
            out.iter_mut().zip(affine).for_each(|(out, y)| _ = out.write(y));
        }
    }
    if !matches!(activation, Activation::Silu | Activation::None) {
        // SAFETY: all elements have just been written.
        let out = unsafe { cpu::written(out) };
        math::activate_body::<FUSED>(activation, out);
    }
}

by_level! { fn gather(x: &[f32], channels: usize, groups: &mut [Statistics]) = gather_body; }
by_level! {
    fn apply(x: &[f32], scale: &[f32], shift: &[f32], activation: Activation, out: &mut [MaybeUninit<f32>])
        = apply_body;
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{assert_close, f64s, random, same_bytes, with_threads};

    #[test]
    fn every_level_gives_the_definition() -> Result<()> {
        for (shape, groups) in [
            ((1, 1, 1, 2), 1),
            ((2, 5, 5, 12), 4),
            ((1, 33, 17, 64), 32),
            ((3, 16, 16, 96), 32),
            ((1, 9, 9, 17), 17),
        ] {
            let x = (random(shape, 1)? * 3.0)?.broadcast_add(&random(shape.3, 2)?)?;
            let (w, b) = (random(shape.3, 3)?, random(shape.3, 4)?);
            for f in [Activation::None, Activation::Silu, Activation::Gelu, Activation::Relu] {
                let expected = f64s(&definition(&x, &w, &b, groups, 1e-5, f)?)?;
                for level in Level::available() {
                    assert_close(&on_cpu(level, &x, &w, &b, groups, 1e-5, f)?, &expected, 5e-6)?;
                }
            }
        }
        Ok(())
    }

    /// Where the mean is a thousand times the deviation, `E[x^2] - E[x]^2` in f32 would leave nothing of the variance.
    #[test]
    fn a_large_mean_costs_no_precision() -> Result<()> {
        let noise = (random((1, 64, 64, 32), 1)? * 64.0)?.round()?;
        let (w, b) =
            (Tensor::ones(32, DType::F32, noise.device())?, Tensor::zeros(32, DType::F32, noise.device())?);
        let norm = |x: &Tensor| group_norm(x, &w, &b, 8, 0.0, Activation::None);
        assert_close(&norm(&(&noise + 65536.0)?)?, &f64s(&norm(&noise)?)?, 2e-3)
    }

    #[test]
    fn threads_and_batches_change_no_byte() -> Result<()> {
        let x = random((3, 60, 60, 96), 1)?;
        let (w, b) = (random(96, 2)?, random(96, 3)?);
        let run = |x: &Tensor| group_norm(x, &w, &b, 32, 1e-5, Activation::Silu);
        let all = with_threads(1, || run(&x))?;
        for threads in [2, 3] {
            same_bytes(&with_threads(threads, || run(&x))?, &all)?;
        }
        for i in 0..3 {
            same_bytes(&run(&x.narrow(0, i, 1)?)?, &all.narrow(0, i, 1)?)?;
        }
        Ok(())
    }

    #[test]
    fn wrong_shapes_are_refused() -> Result<()> {
        let (x, w) = (random((1, 4, 4, 12), 1)?, random(12, 2)?);
        assert!(group_norm(&x, &w, &w, 5, 1e-5, Activation::None).is_err());
        assert!(group_norm(&x, &w, &random(6, 2)?, 4, 1e-5, Activation::None).is_err());
        assert!(group_norm(&w, &w, &w, 4, 1e-5, Activation::None).is_err());
        Ok(())
    }

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        for (dtype, tolerance) in TYPES {
            for (shape, groups) in [
                ((1, 1, 1, 2), 1),
                ((2, 5, 5, 12), 4),
                ((1, 33, 17, 64), 32),
                ((3, 16, 16, 96), 32),
                ((1, 9, 9, 17), 17),
                ((2, 6, 5, 2560), 32),
            ] {
                let x = put(&(random(shape, 1)? * 3.0)?.broadcast_add(&random(shape.3, 2)?)?, dtype)?;
                let (w, b) = (put(&random(shape.3, 3)?, DType::F32)?, put(&random(shape.3, 4)?, dtype)?);
                for f in [Activation::None, Activation::Silu] {
                    let expected = definition(&seen(&x)?, &seen(&w)?, &seen(&b)?, groups, 1e-5, f)?;
                    assert_result(&on_gpu(&x, &w, &b, groups, 1e-5, f)?, dtype, &expected, tolerance)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_large_mean_costs_the_cuda_arm_no_precision() -> Result<()> {
        let noise = (random((1, 40, 40, 32), 1)? * 64.0)?.round()?;
        let (w, b) =
            (Tensor::ones(32, DType::F32, &Device::Cpu)?, Tensor::zeros(32, DType::F32, &Device::Cpu)?);
        let norm = |x: &Tensor| {
            on_gpu(
                &put(x, DType::F32)?,
                &put(&w, DType::F32)?,
                &put(&b, DType::F32)?,
                8,
                0.0,
                Activation::None,
            )
        };
        assert_close(&seen(&norm(&(&noise + 65536.0)?)?)?, &f64s(&norm(&noise)?)?, 2e-3)
    }
}
