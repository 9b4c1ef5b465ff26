//! The gated GELU of the UNet's feed-forward blocks.

use std::mem::MaybeUninit;

use candle_core::{D, Result, Tensor, bail};

use crate::cpu::{self, Level, by_level, math};
use crate::floats::floats;
use crate::gpu::{self, Launch};

/// `x[.., :c] * gelu(x[.., c:])` for `x` of `2c` channels, through the error function. Source: Shazeer 2020.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let channels = x.dim(D::Minus1)?;
    if channels == 0 || channels % 2 != 0 {
        bail!("geglu: {channels} channels have no two halves");
    }
    if x.device().is_cpu() {
        on_cpu(Level::best(), x)
    } else if gpu::takes(x) {
        on_gpu(x)
    } else {
        definition(x)
    }
}

fn definition(x: &Tensor) -> Result<Tensor> {
    let halves = x.chunk(2, D::Minus1)?;
    &halves[0] * halves[1].gelu_erf()?
}

fn on_gpu(x: &Tensor) -> Result<Tensor> {
    let (mut shape, dtype) = (x.dims().to_vec(), x.dtype());
    let channels = shape.pop().unwrap_or(0) / 2;
    let rows = shape.iter().product();
    shape.push(channels);
    let x = x.contiguous()?;
    let launch = Launch::typed("geglu", "geglu", dtype)?.input(&x).output(shape, dtype);
    launch.int(rows).int(channels).for_each_pack(rows, channels, dtype)
}

/// Floats of a piece of work.
const PIECE: usize = 8 << 10;

fn on_cpu(level: Level, x: &Tensor) -> Result<Tensor> {
    let (mut shape, dtype) = (x.dims().to_vec(), x.dtype());
    let channels = x.dim(D::Minus1)? / 2;
    shape.pop();
    shape.push(channels);
    let x = floats(x)?;
    let x = cpu::elements(&x)?;
    let chunk = PIECE.div_ceil(channels) * channels;
    // SAFETY: `gate` writes every element of its chunk.
    let y = unsafe {
        cpu::from_chunks(shape, chunk, |i, out| {
            gate(level, &x[2 * i * chunk..][..2 * out.len()], channels, out);
        })
    }?;
    y.to_dtype(dtype)
}

#[inline(always)]
fn gate_body<const FUSED: bool>(x: &[f32], channels: usize, out: &mut [MaybeUninit<f32>]) {
    for (x, out) in x.chunks_exact(2 * channels).zip(out.chunks_exact_mut(channels)) {
        let (x, gate) = x.split_at(channels);
        for ((out, x), gate) in out.iter_mut().zip(x).zip(gate) {
            out.write(x * math::gelu::<FUSED>(*gate));
        }
    }
}

by_level! { fn gate(x: &[f32], channels: usize, out: &mut [MaybeUninit<f32>]) = gate_body; }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{assert_close, f64s, random, same_bytes, with_threads};

    #[test]
    fn every_level_gives_the_definition() -> Result<()> {
        for shape in [vec![2], vec![3, 34], vec![2, 70, 1280]] {
            let x = (random(shape, 1)? * 6.0)?;
            let expected = f64s(&definition(&x)?)?;
            for level in Level::available() {
                assert_close(&on_cpu(level, &x)?, &expected, 1e-6)?;
            }
        }
        assert!(geglu(&random((2, 3), 1)?).is_err());
        Ok(())
    }

    #[test]
    fn threads_change_no_byte() -> Result<()> {
        let x = random((500, 1280), 1)?;
        let one = with_threads(1, || geglu(&x))?;
        same_bytes(&with_threads(3, || geglu(&x))?, &one)
    }

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        for (dtype, tolerance) in TYPES {
            for shape in [vec![2], vec![3, 34], vec![2, 70, 160]] {
                let x = put(&(random(shape, 1)? * 6.0)?, dtype)?;
                // Products are up to 6 times the factors, whose roundings they carry.
                assert_result(&on_gpu(&x)?, dtype, &definition(&seen(&x)?)?, tolerance)?;
            }
        }
        Ok(())
    }
}
