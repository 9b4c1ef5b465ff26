//! One UNet step, one FLUX step, one VAE decode and the text encoders, on computed weights: `cargo bench --bench components`.
//!
//! The UNet has SDXL's architecture at 37 M parameters, FLUX one double and one single block at full width, the VAE is
//! the published one; `peers/` times the same beside
//! PyTorch. Each result is checked to be finite and the same twice before it is timed. With `--features cuda` they run on a
//! GPU where there is one.

// A bench has nobody to report to but its terminal.
#![allow(clippy::unwrap_used)]

mod common;

use aquatint_models::checkpoint::Weights;
use aquatint_models::denoiser::flux::FluxOptions;
use aquatint_models::denoiser::{
    AddedConditioning, Conditioning, FluxConditioning, FluxConfig, FluxTransformer, UNet2DCondition,
    UnetConfig,
};
use aquatint_models::text::clip::{ClipTextModel, Config};
use aquatint_models::text::t5::{Precision, T5Config, T5Model};
use aquatint_models::vae::{AutoencoderKl, AutoencoderKlConfig};
use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;

fn weights(name: &str) -> Weights {
    match common::device() {
        cpu @ Device::Cpu => Weights::synthetic(name, 0, cpu),
        gpu => Weights::random(name, common::dtype(), gpu),
    }
}

fn wave(shape: &[usize]) -> Tensor {
    let values = (0..shape.iter().product::<usize>()).map(|i| (0.1 * i as f32).sin()).collect::<Vec<_>>();
    Tensor::from_vec(values, shape, common::device()).unwrap()
}

fn bytes(t: &Tensor) -> Vec<u32> {
    t.to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap()
        .into_iter()
        .map(f32::to_bits)
        .collect()
}

fn checked(name: &str, c: &mut Criterion, run: impl Fn() -> Tensor) {
    let (first, second) = (bytes(&run()), bytes(&run()));
    assert!(first.iter().all(|&b| f32::from_bits(b).is_finite()), "{name}: not finite");
    assert!(first == second, "{name}: two runs differ");
    c.bench_function(name, |b| b.iter(|| waited(run())));
}

/// A GPU answers before it is done.
fn waited<T>(result: T) -> T {
    common::device().synchronize().unwrap();
    result
}

fn unet(c: &mut Criterion) {
    let config: UnetConfig = serde_json::from_value(json!({
        "block_out_channels": [64, 160, 256], "attention_head_dim": [2, 5, 8], "cross_attention_dim": 512,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 1, 2], "use_linear_projection": true, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 64, "projection_class_embeddings_input_dim": 640,
    }))
    .unwrap();
    let unet = UNet2DCondition::new(config, &weights("unet")).unwrap();
    for batch in [1, 2] {
        let conditioning = Conditioning {
            prompt_embeds: wave(&[batch, 77, 512]),
            added: Some(AddedConditioning {
                pooled_prompt_embeds: wave(&[batch, 256]),
                time_ids: vec![vec![256.0; 6]; batch],
            }),
            guidance: None,
        };
        let context = unet.context(&conditioning).unwrap();
        let latents = wave(&[batch, 32, 32, 4]);
        let step = || unet.forward(&latents, &vec![500.0; batch], &context).unwrap();
        checked(&format!("UNet step, SDXL architecture, 37 M, 32x32 latents, batch {batch}"), c, step);
    }
}

fn flux(c: &mut Criterion) {
    let config =
        FluxConfig { num_layers: 1, num_single_layers: 1, guidance_embeds: true, ..FluxConfig::default() };
    let options = FluxOptions {
        activations: common::dtype(),
        residual_scale: if common::dtype() == DType::F16 { 64.0 } else { 1.0 },
        ..FluxOptions::default()
    };
    let flux = FluxTransformer::with_options(config, &weights("transformer"), options).unwrap();
    let conditioning = FluxConditioning {
        prompt_embeds: wave(&[1, 256, 4096]),
        pooled_prompt_embeds: wave(&[1, 768]),
        guidance: Some(3.5),
        reference: Vec::new(),
    };
    let timesteps: Vec<f64> = (0..28).map(|i| 1000.0 - 35.0 * f64::from(i)).collect();
    let context = flux.context(&conditioning, &timesteps).unwrap();
    let latents = wave(&[1, 32, 32, 16]);
    let step = || flux.forward(&latents, &[1000.0], &context).unwrap();
    checked("FLUX step, one double and one single block of 3072, 256 + 256 tokens", c, step);
    // The modulation of a double block, of a single block and of the output: 19 and 38 in the whole.
    c.bench_function("FLUX context of 28 steps, the same blocks", |b| {
        b.iter(|| waited(flux.context(&conditioning, &timesteps).unwrap()));
    });
}

fn vae(c: &mut Criterion) {
    let config: AutoencoderKlConfig = serde_json::from_value(json!({
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    }))
    .unwrap();
    let vae = AutoencoderKl::new(config, &weights("vae")).unwrap();
    let latents = wave(&[1, 32, 32, 4]);
    checked("VAE decode to 256x256", c, || vae.decode(&latents).unwrap());
    let picture = wave(&[1, 256, 256, 3]);
    checked("VAE encode of 256x256", c, || vae.encode(&picture).unwrap().mean);
}

fn text(c: &mut Criterion) {
    for (name, width, layers) in [("CLIP-L", 768, 12), ("OpenCLIP bigG, 4 of 32 layers", 1280, 4)] {
        let config = Config {
            hidden_size: width,
            intermediate_size: width * 4,
            num_hidden_layers: layers,
            num_attention_heads: width / 64,
            ..Config::default()
        };
        let model = ClipTextModel::new(config, &weights("text")).unwrap();
        let ids = vec![(0..77).map(|i| i * 600 % 49_000).collect::<Vec<u32>>()];
        checked(&format!("{name}, one prompt"), c, || model.forward(&ids).unwrap().last_hidden_state);
    }
}

/// A narrow T5, and a layer of FLUX's: 24 of those are its encoder.
fn t5(c: &mut Criterion) {
    let narrow = T5Config { d_model: 768, d_ff: 2048, num_layers: 12, num_heads: 12, ..T5Config::xxl() };
    let layer = T5Config { num_layers: 1, vocab_size: 1000, ..T5Config::xxl() };
    let precision = match common::dtype() {
        DType::F16 => Precision::Half,
        DType::BF16 => Precision::Brain,
        _ => Precision::Full,
    };
    for (name, config, lengths) in [
        ("T5 v1.1 base, one prompt", narrow, [256, 512].as_slice()),
        ("T5 v1.1 XXL, 1 of 24 layers, one prompt", layer, &[256]),
    ] {
        let model = T5Model::new(config, &weights("t5"), precision).unwrap();
        for &tokens in lengths {
            let ids = vec![(0..tokens).map(|i| i * 600 % 1000).collect::<Vec<u32>>()];
            checked(&format!("{name}, {tokens} tokens"), c, || model.forward(&ids).unwrap());
        }
    }
}

fn all(c: &mut Criterion) {
    eprintln!("{}", common::what());
    unet(c);
    flux(c);
    text(c);
    t5(c);
    vae(c);
}

criterion_group! { name = benches; config = Criterion::default().sample_size(10); targets = all }
criterion_main!(benches);
