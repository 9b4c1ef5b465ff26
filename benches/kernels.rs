//! Every op: first compared with candle's own operations, then timed. On the CPU on the shapes of a small UNet of SDXL's
//! architecture and its VAE, on a GPU (`--features cuda`) on those of SDXL and FLUX themselves.
//! `benches/peers/ops.sh` puts PyTorch's times of the same shapes beside these.

mod common;

use std::hint::black_box;
use std::time::Duration;

use aquatint_kernels as kernels;
use candle_core::{D, DType, Result, Tensor};
use common::{device, dtype};
use criterion::{Criterion, Throughput};
use kernels::attention::Mask;
use kernels::{Activation, Conv2d, EightBits, EncodedWeight, Format, Linear, Padding, Rotation};

fn random(shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, device())?.to_dtype(dtype())
}

/// What only ever is in f32: what scales and shifts channels.
fn random_f32(shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, device())
}

/// The shapes to time: those of a small model on the CPU, those of the published ones on a GPU.
fn shapes<T: Copy>(small: &[T], published: &[T]) -> Vec<T> {
    if device().is_cpu() { small.to_vec() } else { published.to_vec() }
}

/// Fails unless the two are equal to `tolerance`, on a GPU to what its type rounds.
fn check(name: &str, actual: &Tensor, expected: &Tensor, tolerance: f32) -> Result<()> {
    let wide = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all();
    let (actual, expected) = (wide(actual)?, wide(expected)?);
    let tolerance = match device().is_cpu() {
        true => tolerance,
        false => tolerance.max(2e-2 * expected.abs()?.max(0)?.to_scalar::<f32>()?.max(1.0)),
    };
    let worst = (actual - expected)?.abs()?.max(0)?.to_scalar::<f32>()?;
    if worst.is_nan() || worst > tolerance {
        candle_core::bail!("{name}: differs from its definition by {worst}");
    }
    Ok(())
}

/// Times `run`; `work` is its floating-point operations, or its bytes read and written.
fn time(c: &mut Criterion, name: &str, work: Work, run: impl Fn() -> Result<Tensor>) -> Result<()> {
    run()?;
    let mut group = c.benchmark_group("kernels");
    group.throughput(match work {
        // Criterion's "elements per second" are GFLOP/s here.
        Work::Flops(n) => Throughput::Elements(n as u64),
        Work::Bytes(n) => Throughput::Bytes(n as u64),
    });
    // A GPU answers before it is done.
    let waited = || run().and_then(|y| device().synchronize().map(|()| y)).map_err(|e| e.to_string());
    group.bench_function(name, |b| b.iter(|| black_box(waited())));
    group.finish();
    Ok(())
}

enum Work {
    Flops(usize),
    Bytes(usize),
}

fn linear(c: &mut Criterion) -> Result<()> {
    let small = [
        (2, 256, 256),
        (77, 768, 768),
        (154, 512, 160),
        (128, 256, 256),
        (128, 256, 2048),
        (128, 1024, 256),
        (512, 160, 160),
        (512, 160, 1280),
        (512, 640, 160),
        (1024, 64, 64),
        (1024, 512, 512),
        (1024, 640, 640),
        (64, 1280, 1280),
    ];
    let published = [
        (2048, 1280, 1280),
        (2048, 1280, 10240),
        (2048, 5120, 1280),
        (8192, 640, 640),
        (8192, 640, 5120),
        (8192, 2560, 640),
        (154, 2048, 1280),
        (4608, 3072, 3072),
        (4608, 3072, 12288),
        (4608, 15360, 3072),
    ];
    for (m, k, n) in shapes(&small, &published) {
        let (x, w, b) = (random((m, k))?, (random((n, k))? / (k as f64).sqrt())?, random_f32(n)?);
        let name = format!("linear_{m}x{k}x{n}");
        let layer = Linear::new(&w, Some(&b))?;
        check(&name, &layer.forward(&x)?, &x.matmul(&w.t()?)?.broadcast_add(&b.to_dtype(dtype())?)?, 1e-4)?;
        time(c, &name, Work::Flops(2 * m * k * n), || layer.forward(&x))?;
        if m == 64 {
            let half = w.to_dtype(DType::F16)?;
            let layer = Linear::new(&half, Some(&b))?;
            time(c, &format!("{name}_f16"), Work::Flops(2 * m * k * n), || layer.forward(&x))?;
        }
    }
    Ok(())
}

/// One weight in every type it can be held in, at few rows, where decoding shows most, and at those of a picture.
fn quantised(c: &mut Criterion) -> Result<()> {
    let (k, n) = (3072, 3072);
    let rows: &[usize] = if device().is_cpu() { &[1, 16, 128, 512] } else { &[1, 16, 128, 512, 4608] };
    for &m in rows {
        let x = random((m, k))?;
        let mut layer = |name: &str, layer: Linear, decoded: &Tensor, tolerance: f32| -> Result<()> {
            let name = format!("linear_{m}x{k}x{n}_{name}");
            check(&name, &layer.forward(&x)?, &x.matmul(&decoded.t()?)?, tolerance)?;
            time(c, &name, Work::Flops(2 * m * k * n), || layer.forward(&x))
        };
        let w = (random((n, k))? / (k as f64).sqrt())?;
        layer("f32", Linear::new(&w, None)?, &w, 1e-2)?;
        let half = w.to_dtype(DType::F16)?;
        layer("f16", Linear::new(&half, None)?, &half.to_dtype(dtype())?, 1e-2)?;
        for (of, name) in [(EightBits::F8E4M3, "fp8_rows"), (EightBits::Int8, "int8_rows")] {
            let rounding = Linear::without_weight(k, n, None, Some(of))?;
            rounding.replace_weight(&w)?;
            // Of results that spread by 1, fp8's farthest in a million is off by 0.18.
            layer(name, rounding, &w, 0.3)?;
        }
        let formats = [Format::F8E4M3, Format::Q8_0, Format::Q4_0, Format::Q4K, Format::Q5K, Format::Q6K];
        // What scripts/nvcc-without-gguf.sh leaves out.
        let count = if option_env!("AQUATINT_WITHOUT_GGUF").is_some() { 1 } else { formats.len() };
        for format in formats.into_iter().take(count) {
            // Any bytes without NaN and without great scales will do.
            let len = n * k / format.block_len() * format.block_bytes();
            let bytes = (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x17).collect();
            let w = EncodedWeight::new(format, (n, k), bytes, None)?;
            layer(
                &format!("{format:?}").to_lowercase(),
                Linear::encoded(&w, None, device())?,
                &w.decode(device())?.to_dtype(dtype())?,
                1e-2,
            )?;
        }
    }
    Ok(())
}

fn conv2d(c: &mut Criterion) -> Result<()> {
    let small = [
        (2, 32, 4, 64, 1),
        (2, 32, 64, 64, 1),
        (2, 32, 128, 64, 1),
        (2, 32, 64, 64, 2),
        (2, 16, 160, 160, 1),
        (2, 16, 320, 160, 1),
        (2, 8, 256, 256, 1),
        (2, 8, 512, 256, 1),
        (1, 32, 320, 320, 1),
        (1, 32, 512, 512, 1),
        (1, 64, 512, 512, 1),
        (1, 128, 256, 256, 1),
        (1, 256, 128, 128, 1),
        (1, 256, 128, 3, 1),
    ];
    let published = [
        (2, 128, 4, 320, 1),
        (2, 128, 320, 320, 1),
        (2, 128, 640, 320, 1),
        (2, 64, 640, 640, 1),
        (2, 64, 1280, 640, 1),
        (2, 32, 1280, 1280, 1),
        (2, 32, 2560, 1280, 1),
        (2, 128, 320, 320, 2),
        (1, 128, 512, 512, 1),
        (1, 512, 256, 256, 1),
        (1, 1024, 128, 128, 1),
        (1, 1024, 128, 3, 1),
    ];
    for (batch, size, from, to, stride) in shapes(&small, &published) {
        let x = random((batch, size, size, from))?;
        let w = (random((to, from, 3, 3))? / (9.0 * from as f64).sqrt())?;
        let b = random_f32(to)?;
        let layer = Conv2d::new(&w, Some(&b), stride, Padding::same(1))?;
        let name = format!("conv_{batch}x{size}x{size}x{from}_to_{to}_s{stride}");
        let expected = x.permute((0, 3, 1, 2))?.contiguous()?.conv2d(&w, 1, stride, 1, 1)?;
        check(
            &name,
            &layer.forward(&x)?,
            &expected.permute((0, 2, 3, 1))?.broadcast_add(&b.to_dtype(dtype())?)?,
            1e-4,
        )?;
        let out = size / stride;
        time(c, &name, Work::Flops(2 * batch * out * out * from * to * 9), || layer.forward(&x))?;
    }
    Ok(())
}

fn attention(c: &mut Criterion) -> Result<()> {
    let small = [
        (2, 5, 32, 256, 256, Mask::None),
        (2, 5, 32, 256, 77, Mask::None),
        (2, 8, 32, 64, 64, Mask::None),
        (2, 10, 64, 1024, 1024, Mask::None),
        (2, 8, 40, 1024, 77, Mask::None),
        (1, 12, 64, 77, 77, Mask::Causal),
        (1, 1, 512, 1024, 1024, Mask::None),
    ];
    let published = [
        (2, 10, 64, 4096, 4096, Mask::None),
        (2, 10, 64, 4096, 77, Mask::None),
        (2, 20, 64, 1024, 1024, Mask::None),
        (2, 20, 64, 1024, 77, Mask::None),
        (2, 8, 40, 4096, 4096, Mask::None),
        (2, 20, 64, 77, 77, Mask::Causal),
        (1, 24, 128, 4608, 4608, Mask::None),
        (1, 1, 512, 4096, 4096, Mask::None),
    ];
    for (batch, heads, d, queries, keys, mask) in shapes(&small, &published) {
        let q = random((batch, queries, heads * d))?;
        let (k, v) = (random((batch, keys, heads * d))?, random((batch, keys, heads * d))?);
        let name = format!("attention_{batch}x{heads}x{d}_{queries}_{keys}_{mask:?}").to_lowercase();
        let split = |t: &Tensor, n| t.reshape((batch, n, heads, d))?.transpose(1, 2)?.contiguous();
        let scores = (split(&q, queries)?.matmul(&split(&k, keys)?.t()?)? / (d as f64).sqrt())?;
        let scores = if mask == Mask::Causal {
            let seen: Vec<f32> =
                (0..queries * keys).map(|i| if i % keys > i / keys { -6e4 } else { 0.0 }).collect();
            scores.broadcast_add(&Tensor::from_vec(seen, (queries, keys), device())?.to_dtype(dtype())?)?
        } else {
            scores
        };
        let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
        let expected = weights.matmul(&split(&v, keys)?)?.transpose(1, 2)?.reshape(q.shape())?;
        check(&name, &kernels::attention(&q, &k, &v, heads, mask)?, &expected, 1e-4)?;
        let flops = 4 * batch * heads * d * queries * keys;
        time(c, &name, Work::Flops(flops), || kernels::attention(&q, &k, &v, heads, mask))?;
    }
    Ok(())
}

fn norms(c: &mut Criterion) -> Result<()> {
    let small = [(2, 32, 64), (2, 16, 160), (2, 8, 256), (1, 32, 512), (1, 128, 256), (1, 256, 128)];
    let published =
        [(2, 128, 320), (2, 64, 640), (2, 32, 1280), (1, 128, 512), (1, 512, 256), (1, 1024, 128)];
    for (batch, size, channels) in shapes(&small, &published) {
        let x = random((batch, size, size, channels))?;
        let (w, b) = (random_f32(channels)?, random_f32(channels)?);
        let groups = 32;
        let run = || kernels::group_norm(&x, &w, &b, groups, 1e-5, Activation::Silu);
        // In f64: a plain sum over a million f32 is farther off than the kernel.
        let g = x.to_dtype(DType::F64)?.reshape((batch, (), groups, channels / groups))?;
        let g = g.broadcast_sub(&g.mean_keepdim((1, 3))?)?;
        let scale = (g.sqr()?.mean_keepdim((1, 3))? + 1e-5)?.sqrt()?;
        let y = g
            .broadcast_div(&scale)?
            .reshape(x.shape())?
            .to_dtype(DType::F32)?
            .broadcast_mul(&w)?
            .broadcast_add(&b)?;
        let name = format!("group_norm_silu_{batch}x{size}x{size}x{channels}");
        check(&name, &run()?, &y.silu()?, 1e-4)?;
        time(c, &name, Work::Bytes(8 * x.elem_count()), run)?;
    }
    for (tokens, channels) in shapes(&[(128, 256), (512, 160), (1024, 640)], &[(2048, 1280), (8192, 640)]) {
        let x = random((tokens, channels))?;
        let (w, b) = (random_f32(channels)?, random_f32(channels)?);
        let run = || kernels::layer_norm(&x, &w, &b, 1e-5);
        let y = normalised(&x, 1e-5)?;
        let name = format!("layer_norm_{tokens}x{channels}");
        check(&name, &run()?, &y.broadcast_mul(&w)?.broadcast_add(&b)?, 1e-4)?;
        time(c, &name, Work::Bytes(8 * x.elem_count()), run)?;
    }
    Ok(())
}

fn others(c: &mut Criterion) -> Result<()> {
    let small = [(128, 1024), (512, 640), (1024, 2560)];
    for (tokens, channels) in shapes(&small, &[(2048, 5120), (8192, 2560)]) {
        let x = random((tokens, 2 * channels))?;
        let halves = x.chunk(2, D::Minus1)?;
        let name = format!("geglu_{tokens}x{channels}");
        check(&name, &kernels::geglu(&x)?, &(&halves[0] * halves[1].gelu_erf()?)?, 1e-5)?;
        time(c, &name, Work::Bytes(12 * tokens * channels), || kernels::geglu(&x))?;
    }
    let x = random((1, 64, 64, 512))?;
    let expected = x.permute((0, 3, 1, 2))?.upsample_nearest2d(128, 128)?.permute((0, 2, 3, 1))?;
    check("upsample", &kernels::upsample_nearest(&x, 128, 128)?, &expected, 0.0)?;
    time(c, "upsample_64x64x512", Work::Bytes(20 * x.elem_count()), || {
        kernels::upsample_nearest(&x, 128, 128)
    })?;
    let (a, b) = (random((1, 128, 128, 4))?, random((1, 128, 128, 4))?);
    let sum = || kernels::weighted_sum(&[(1.5, &a), (-0.5, &b)]);
    check("weighted_sum", &sum()?, &((&a * 1.5)? + (&b * -0.5)?)?, 1e-6)?;
    time(c, "weighted_sum_2x65536", Work::Bytes(12 * a.elem_count()), sum)
}

/// `(x - mean) / sqrt(variance + eps)` over the channels, in f32.
fn normalised(x: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.to_dtype(DType::F32)?;
    let g = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    g.broadcast_div(&(g.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?)
}

/// What FLUX and T5 have beside.
fn of_transformers(c: &mut Criterion) -> Result<()> {
    let (tokens, channels, heads) = if device().is_cpu() { (512, 768, 6) } else { (4608, 3072, 24) };
    let shape = (1, tokens, channels);
    let bytes = |tensors: usize| Work::Bytes(tensors * tokens * channels * dtype().size_in_bytes());
    let named = |op: &str| format!("{op}_{tokens}x{channels}");
    let (x, y) = (random(shape)?, random(shape)?);
    let wide = |t: &Tensor| t.to_dtype(DType::F32);

    let (scale, shift) = (random_f32((1, channels))?, random_f32((1, channels))?);
    let run = || kernels::modulated_layer_norm(&x, &scale, &shift, 1e-6);
    let expected = normalised(&x, 1e-6)?.broadcast_mul(&(&scale + 1.0)?)?.broadcast_add(&shift)?;
    check("modulated_layer_norm", &run()?, &expected, 1e-4)?;
    time(c, &named("modulated_layer_norm"), bytes(2), run)?;

    let run = || kernels::gated_residual(&x, &scale, &y);
    check("gated_residual", &run()?, &(wide(&x)? + wide(&y)?.broadcast_mul(&scale)?)?, 1e-4)?;
    time(c, &named("gated_residual"), bytes(3), run)?;

    let run = || kernels::gated_gelu(&x, &y, 1.0);
    check("gated_gelu", &run()?, &(wide(&x)?.gelu()? * wide(&y)?)?, 1e-4)?;
    time(c, &named("gated_gelu"), bytes(3), run)?;

    let root_mean_square = |x: &Tensor| (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt();
    let weight = random_f32(channels)?;
    let run = || kernels::rms_norm(&x, &weight, 1e-6);
    let expected = wide(&x)?.broadcast_div(&root_mean_square(&wide(&x)?)?)?.broadcast_mul(&weight)?;
    check("rms_norm", &run()?, &expected, 1e-4)?;
    time(c, &named("rms_norm"), bytes(2), run)?;

    let d = channels / heads;
    let weight = random_f32(d)?;
    // Each angle turns a pair of neighbours.
    let angles: Vec<f64> = (0..tokens * d / 2).map(|i| 0.37 * i as f64 % 6.0).collect();
    let rotation = Rotation::new(&angles, d / 2, device())?;
    let angles: Vec<f32> = angles.into_iter().map(|a| a as f32).collect();
    let angles = Tensor::from_vec(angles, (tokens, 1, d / 2, 1), device())?;
    let run = || kernels::rms_norm_rope(&[(&x, &weight)], heads, &rotation, 1e-6);
    let split = wide(&x)?.reshape((tokens, heads, d))?;
    let normed = split.broadcast_div(&root_mean_square(&split)?)?.broadcast_mul(&weight)?;
    let halves = normed.reshape((tokens, heads, d / 2, 2))?;
    let (even, odd) = (halves.narrow(3, 0, 1)?, halves.narrow(3, 1, 1)?);
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let turned = Tensor::cat(
        &[
            (even.broadcast_mul(&cos)? - odd.broadcast_mul(&sin)?)?,
            (odd.broadcast_mul(&cos)? + even.broadcast_mul(&sin)?)?,
        ],
        3,
    )?;
    check("rms_norm_rope", &run()?, &turned.reshape(shape)?, 1e-4)?;
    time(c, &named("rms_norm_rope"), bytes(2), run)
}

/// What comes first and last in a picture.
fn ends(c: &mut Criterion) -> Result<()> {
    let values: Vec<f32> = (0..32).map(|i| 31.0 * i as f32).collect();
    let run = || kernels::timestep_embedding(&values, 320, true, 0.0, device());
    let angle = |t: f32, i: i32| t * (-(10_000f32.ln()) * i as f32 / 160.0).exp();
    let row =
        |t: f32| (0..160).map(move |i| angle(t, i).cos()).chain((0..160).map(move |i| angle(t, i).sin()));
    let expected =
        Tensor::from_vec(values.iter().flat_map(|&t| row(t)).collect::<Vec<_>>(), (32, 320), device())?;
    check("timestep_embedding", &run()?, &expected, 1e-3)?;
    time(c, "timestep_embedding_32x320", Work::Bytes(4 * 32 * 320), run)?;

    let side = if device().is_cpu() { 256 } else { 1024 };
    let x = random((side, side, 3))?;
    let run = || Tensor::from_vec(kernels::rgb8(&x)?, x.shape(), &candle_core::Device::Cpu);
    let wide = x.to_dtype(DType::F32)?.to_device(&candle_core::Device::Cpu)?;
    let bytes = wide.affine(127.5, 127.5)?.clamp(0f32, 255f32)?.round()?;
    check("rgb8", &run()?, &bytes, 1.0)?;
    time(c, &format!("rgb8_{side}x{side}"), Work::Bytes(5 * x.elem_count()), run)?;

    let x = random((1, side, side, 4))?;
    let run = || Activation::Silu.forward(&x);
    check("silu", &run()?, &x.silu()?, 1e-5)?;
    time(c, &format!("silu_{side}x{side}x4"), Work::Bytes(2 * dtype().size_in_bytes() * x.elem_count()), run)
}

fn main() -> Result<()> {
    kernels::keep_freed_memory();
    // As the program does it: the thread that owns the device takes part in the work.
    let threads = std::env::var("RAYON_NUM_THREADS").map_or(2, |n| n.parse().unwrap_or(2));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
    pool.build_global().map_err(candle_core::Error::wrap)?;
    eprintln!("{}", common::what());
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .without_plots()
        .configure_from_args();
    let run = |criterion: &mut Criterion| {
        linear(criterion)?;
        quantised(criterion)?;
        conv2d(criterion)?;
        attention(criterion)?;
        norms(criterion)?;
        others(criterion)?;
        of_transformers(criterion)?;
        ends(criterion)
    };
    run(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
