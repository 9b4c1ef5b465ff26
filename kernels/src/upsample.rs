//! Nearest-neighbour resizing of channels-last features.

use candle_core::{Result, Tensor, bail};

use crate::cpu;
use crate::floats::floats;
use crate::gpu::{self, Launch};

/// `x`: `(batch, height, width, channels)`; returns `(batch, to_height, to_width, channels)`, where output row `y`
/// copies input row `floor(y * height / to_height)`, as `torch.nn.functional.interpolate(mode="nearest")` does.
pub fn upsample_nearest(x: &Tensor, to_height: usize, to_width: usize) -> Result<Tensor> {
    if x.dims4()?.3 == 0 || x.elem_count() == 0 || to_height * to_width == 0 {
        bail!("upsample_nearest: {:?} to {to_height}x{to_width}", x.dims());
    }
    if x.device().is_cpu() {
        on_cpu(x, to_height, to_width)
    } else if gpu::takes(x) {
        on_gpu(x, to_height, to_width)
    } else {
        definition(x, to_height, to_width)
    }
}

fn definition(x: &Tensor, to_height: usize, to_width: usize) -> Result<Tensor> {
    let (_, h, w, _) = x.dims4()?;
    let index = |from: usize, to: usize| {
        let i: Vec<u32> = (0..to).map(|i| (i * from / to) as u32).collect();
        Tensor::from_vec(i, to, x.device())
    };
    x.contiguous()?.index_select(&index(h, to_height)?, 1)?.index_select(&index(w, to_width)?, 2)
}

fn on_gpu(x: &Tensor, to_height: usize, to_width: usize) -> Result<Tensor> {
    let ((batch, height, width, channels), dtype) = (x.dims4()?, x.dtype());
    let (x, pixels) = (x.contiguous()?, batch * to_height * to_width);
    let launch = Launch::typed("upsample", "upsample", dtype)?.input(&x);
    let launch = launch.output((batch, to_height, to_width, channels), dtype).int(pixels);
    let launch = launch.int(height).int(width).int(to_height).int(to_width).int(channels);
    launch.for_each_pack(pixels, channels, dtype)
}

fn on_cpu(x: &Tensor, to_height: usize, to_width: usize) -> Result<Tensor> {
    let ((batch, height, width, channels), dtype) = (x.dims4()?, x.dtype());
    let x = floats(x)?;
    let x = cpu::elements(&x)?;
    let shape = (batch, to_height, to_width, channels);
    // SAFETY: each chunk is a row, and all its pixels are written.
    let y = unsafe {
        cpu::from_chunks(shape, to_width * channels, |i, out| {
            let from = i / to_height * height + i % to_height * height / to_height;
            let from = &x[from * width * channels..][..width * channels];
            for (i, out) in out.chunks_exact_mut(channels).enumerate() {
                let pixel = &from[i * width / to_width * channels..][..channels];
                out.iter_mut().zip(pixel).for_each(|(out, x)| _ = out.write(*x));
            }
        })
    }?;
    y.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{random, same_bytes, with_threads};

    #[test]
    fn pixels_are_copied_as_defined() -> Result<()> {
        for (shape, to) in [((2, 3, 5, 4), (6, 10)), ((1, 7, 5, 3), (13, 11)), ((2, 40, 40, 128), (85, 80))] {
            let x = random(shape, 1)?;
            let expected = definition(&x, to.0, to.1)?;
            for threads in [1, 3] {
                same_bytes(&with_threads(threads, || upsample_nearest(&x, to.0, to.1))?, &expected)?;
            }
        }
        assert!(upsample_nearest(&random((1, 2, 2, 3), 1)?, 0, 4).is_err());
        Ok(())
    }

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        for (dtype, _) in TYPES {
            for (shape, to) in [((2, 3, 5, 4), (6, 10)), ((1, 7, 5, 3), (13, 11)), ((2, 9, 8, 40), (20, 7))] {
                let x = put(&random(shape, 1)?, dtype)?;
                let expected = definition(&seen(&x)?, to.0, to.1)?;
                assert_result(&on_gpu(&x, to.0, to.1)?, dtype, &expected, 0.0)?;
            }
        }
        Ok(())
    }
}
