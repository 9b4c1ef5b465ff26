//! Every op on the shapes of a small SDXL-architecture UNet and its VAE: first compared with candle's own
//! operations, then timed. `benches/peers/ops.sh` puts PyTorch's times of the same shapes beside these.

use std::hint::black_box;
use std::time::Duration;

use aquatint_kernels as kernels;
use candle_core::{D, DType, Device, Result, Tensor};
use criterion::{Criterion, Throughput};
use kernels::attention::Mask;
use kernels::{Activation, Conv2d, EncodedWeight, Format, Linear, Padding};

fn random(shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu)
}

/// Fails unless the two are equal to `tolerance`.
fn check(name: &str, actual: &Tensor, expected: &Tensor, tolerance: f32) -> Result<()> {
    let worst = (actual - expected)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
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
    group.bench_function(name, |b| b.iter(|| black_box(run().map_err(|e| e.to_string()))));
    group.finish();
    Ok(())
}

enum Work {
    Flops(usize),
    Bytes(usize),
}

fn linear(c: &mut Criterion) -> Result<()> {
    for (m, k, n) in [
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
    ] {
        let (x, w, b) = (random((m, k))?, (random((n, k))? / (k as f64).sqrt())?, random(n)?);
        let name = format!("linear_{m}x{k}x{n}");
        let layer = Linear::new(&w, Some(&b))?;
        check(&name, &layer.forward(&x)?, &x.matmul(&w.t()?)?.broadcast_add(&b)?, 1e-4)?;
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
    for m in [1, 16, 128, 512] {
        let x = random((m, k))?;
        let mut layer = |name: &str, layer: Linear, decoded: &Tensor| -> Result<()> {
            let name = format!("linear_{m}x{k}x{n}_{name}");
            check(&name, &layer.forward(&x)?, &x.matmul(&decoded.t()?)?, 1e-2)?;
            time(c, &name, Work::Flops(2 * m * k * n), || layer.forward(&x))
        };
        let w = (random((n, k))? / (k as f64).sqrt())?;
        layer("f32", Linear::new(&w, None)?, &w)?;
        let half = w.to_dtype(DType::F16)?;
        layer("f16", Linear::new(&half, None)?, &half.to_dtype(DType::F32)?)?;
        for format in [Format::F8E4M3, Format::Q8_0, Format::Q4_0, Format::Q4K, Format::Q5K, Format::Q6K] {
            // Any bytes without NaN and without great scales will do.
            let len = n * k / format.block_len() * format.block_bytes();
            let bytes = (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x17).collect();
            let w = EncodedWeight::new(format, (n, k), bytes, None)?;
            layer(
                &format!("{format:?}").to_lowercase(),
                Linear::encoded(&w, None, &Device::Cpu)?,
                &w.decode(&Device::Cpu)?,
            )?;
        }
    }
    Ok(())
}

fn conv2d(c: &mut Criterion) -> Result<()> {
    for (batch, size, from, to, stride) in [
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
    ] {
        let x = random((batch, size, size, from))?;
        let w = (random((to, from, 3, 3))? / (9.0 * from as f64).sqrt())?;
        let b = random(to)?;
        let layer = Conv2d::new(&w, Some(&b), stride, Padding::same(1))?;
        let name = format!("conv_{batch}x{size}x{size}x{from}_to_{to}_s{stride}");
        let expected = x.permute((0, 3, 1, 2))?.contiguous()?.conv2d(&w, 1, stride, 1, 1)?;
        check(&name, &layer.forward(&x)?, &expected.permute((0, 2, 3, 1))?.broadcast_add(&b)?, 1e-4)?;
        let out = size / stride;
        time(c, &name, Work::Flops(2 * batch * out * out * from * to * 9), || layer.forward(&x))?;
    }
    Ok(())
}

fn attention(c: &mut Criterion) -> Result<()> {
    for (batch, heads, d, queries, keys, mask) in [
        (2, 5, 32, 256, 256, Mask::None),
        (2, 5, 32, 256, 77, Mask::None),
        (2, 8, 32, 64, 64, Mask::None),
        (2, 10, 64, 1024, 1024, Mask::None),
        (2, 8, 40, 1024, 77, Mask::None),
        (1, 12, 64, 77, 77, Mask::Causal),
        (1, 1, 512, 1024, 1024, Mask::None),
    ] {
        let q = random((batch, queries, heads * d))?;
        let (k, v) = (random((batch, keys, heads * d))?, random((batch, keys, heads * d))?);
        let name = format!("attention_{batch}x{heads}x{d}_{queries}_{keys}_{mask:?}").to_lowercase();
        let split = |t: &Tensor, n| t.reshape((batch, n, heads, d))?.transpose(1, 2)?.contiguous();
        let scores = (split(&q, queries)?.matmul(&split(&k, keys)?.t()?)? / (d as f64).sqrt())?;
        let scores = if mask == Mask::Causal {
            let seen: Vec<f32> =
                (0..queries * keys).map(|i| if i % keys > i / keys { -1e30 } else { 0.0 }).collect();
            scores.broadcast_add(&Tensor::from_vec(seen, (queries, keys), &Device::Cpu)?)?
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
    for (batch, size, channels) in
        [(2, 32, 64), (2, 16, 160), (2, 8, 256), (1, 32, 512), (1, 128, 256), (1, 256, 128)]
    {
        let x = random((batch, size, size, channels))?;
        let (w, b) = (random(channels)?, random(channels)?);
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
    for (tokens, channels) in [(128, 256), (512, 160), (1024, 640)] {
        let x = random((tokens, channels))?;
        let (w, b) = (random(channels)?, random(channels)?);
        let run = || kernels::layer_norm(&x, &w, &b, 1e-5);
        let g = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let y = g.broadcast_div(&(g.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?)?;
        let name = format!("layer_norm_{tokens}x{channels}");
        check(&name, &run()?, &y.broadcast_mul(&w)?.broadcast_add(&b)?, 1e-4)?;
        time(c, &name, Work::Bytes(8 * x.elem_count()), run)?;
    }
    Ok(())
}

fn others(c: &mut Criterion) -> Result<()> {
    for (tokens, channels) in [(128, 1024), (512, 640), (1024, 2560)] {
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

fn main() -> Result<()> {
    kernels::keep_freed_memory();
    // As the program does it: the thread that owns the device takes part in the work.
    let threads = std::env::var("RAYON_NUM_THREADS").map_or(2, |n| n.parse().unwrap_or(2));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
    pool.build_global().map_err(candle_core::Error::wrap)?;
    let commit = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = commit.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    eprintln!("cpu, {} threads, commit {commit}", rayon::current_num_threads());
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
        others(criterion)
    };
    run(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
