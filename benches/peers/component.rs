//! Times one component on weights from a folder, and tells its peak memory:
//!
//!     component unet FOLDER SIDE BATCH RUNS       one UNet step on SIDE x SIDE latents
//!     component vae FOLDER SIDE BATCH RUNS        one VAE decode of SIDE x SIDE latents
//!     component flux FOLDER SIDE BATCH RUNS       one step of a FLUX transformer, 256 text tokens
//!     component t5 FOLDER TOKENS BATCH RUNS       one run of a T5 encoder
//!     component clip FOLDER TOKENS BATCH RUNS     one run of a CLIP text encoder
//!
//! FOLDER is that of one component, or `dummy:MODEL/COMPONENT`: a published shape with the weights of `--dummy-weights`.
//!
//! Prints JSON: the milliseconds of each run, the mean of the output's magnitudes (for comparing with a peer's), the
//! bytes of the weights and the process's peak resident bytes. `component.py` does the same with diffusers.
//!
//! With `AQUATINT_DEVICE=cuda` both compute on the first GPU, with weights and activations in f16, or as `AQUATINT_DTYPE`
//! says: f32, f16 or bf16. With `AQUATINT_OUTPUT=FILE` both write the last output there, as f32 in channels-first order.

mod peak;

use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use aquatint_models::checkpoint::published::Published;
use aquatint_models::checkpoint::{ModelFolder, Weights};
use aquatint_models::denoiser::flux::FluxOptions;
use aquatint_models::denoiser::{
    AddedConditioning, Conditioning, FluxConditioning, FluxConfig, FluxContext, FluxTransformer,
    UNet2DCondition, UnetConfig,
};
use aquatint_models::text::clip::{ClipTextModel, Config as ClipConfig};
use aquatint_models::text::t5::{Precision, T5Config, T5Model};
use aquatint_models::vae::AutoencoderKl;
use candle_core::{DType, Device, Tensor};
use peak::peak_resident_bytes;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kind, folder, side, batch, runs] = &args[..] else {
        bail!("usage: component unet|vae|flux|t5|clip FOLDER SIDE BATCH RUNS");
    };
    let (side, batch, runs) = (side.parse()?, batch.parse()?, runs.parse()?);
    let device = device()?;
    let Component { weights, config, bytes } = component(kind, folder, device)?;
    let mut run: Box<dyn FnMut() -> Result<Tensor>> = match kind.as_str() {
        "unet" => unet(serde_json::from_slice(&config)?, &weights, side, batch)?,
        "vae" => vae(serde_json::from_slice(&config)?, &weights, side, batch)?,
        "flux" => flux(serde_json::from_slice(&config)?, &weights, side, batch)?,
        "t5" => t5(serde_json::from_slice(&config)?, &weights, side, batch)?,
        "clip" => clip(serde_json::from_slice(&config)?, &weights, side, batch)?,
        other => bail!("{other}: unet, vae, flux, t5 or clip is timed"),
    };
    let mut milliseconds = Vec::new();
    let mut magnitude = 0.0;
    let mut last = None;
    for _ in 0..runs {
        let start = Instant::now();
        let output = run()?;
        device.synchronize()?;
        milliseconds.push(start.elapsed().as_secs_f64() * 1e3);
        magnitude = output.to_dtype(DType::F32)?.abs()?.mean_all()?.to_scalar::<f32>()?;
        last = Some(output);
    }
    if let (Some(path), Some(output)) = (std::env::var_os("AQUATINT_OUTPUT"), last) {
        // Features are channels-last here.
        let output = if output.rank() == 4 { output.permute((0, 3, 1, 2))? } else { output };
        let values = output.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        std::fs::write(path, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    let peak_bytes = peak_resident_bytes()?;
    let report = serde_json::json!({
        "milliseconds": milliseconds, "magnitude": magnitude, "weights_bytes": bytes, "peak_bytes": peak_bytes,
    });
    println!("{report}");
    Ok(())
}

/// What is to be timed.
struct Component {
    weights: Weights,
    config: Vec<u8>,
    bytes: u64,
}

fn component(kind: &str, folder: &str, device: &Device) -> Result<Component> {
    let asked = std::env::var("AQUATINT_DTYPE").ok();
    let asked = match asked.as_deref() {
        None => (!device.is_cpu()).then_some(DType::F16),
        Some("f32") => Some(DType::F32),
        Some("f16") => Some(DType::F16),
        Some("bf16") => Some(DType::BF16),
        Some(other) => bail!("AQUATINT_DTYPE={other}: f32, f16 or bf16"),
    };
    if let Some(dummy) = folder.strip_prefix("dummy:") {
        let (model, part) = dummy.split_once('/').context("dummy:MODEL/COMPONENT")?;
        let model = Published::named(model).with_context(|| format!("{model}: no published model"))?;
        let folder = ModelFolder::Published(model);
        let config = folder.read(&format!("{part}/config.json"))?;
        let dtype = asked.or(Some(DType::F32));
        return Ok(Component { weights: folder.weights(part, dtype, device)?, config, bytes: 0 });
    }
    let folder = Path::new(folder);
    // transformers and diffusers have different names for it.
    let names = ["diffusion_pytorch_model.safetensors", "model.safetensors"];
    let file = names.map(|name| folder.join(name)).into_iter().find(|path| path.exists());
    let file = file.with_context(|| format!("{}: no weights", folder.display()))?;
    let bytes = file.metadata()?.len();
    let dtype = asked.or((bytes < 1 << 30).then_some(DType::F32));
    let weights = Weights::open(kind, &[file], dtype, device)?;
    Ok(Component { weights, config: std::fs::read(folder.join("config.json"))?, bytes })
}

/// The CPU, or the GPU where the environment asks for it.
fn device() -> Result<&'static Device> {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    if DEVICE.get().is_none() {
        let asked = std::env::var("AQUATINT_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
        let opened = match asked.as_str() {
            "cpu" => Device::Cpu,
            #[cfg(feature = "cuda")]
            "cuda" => aquatint_kernels::open_gpu().map_err(|e| anyhow::anyhow!("no usable GPU: {e}"))?,
            other => bail!("AQUATINT_DEVICE={other}: this program has no such device"),
        };
        return Ok(DEVICE.get_or_init(|| opened));
    }
    DEVICE.get().context("no device")
}

/// The inputs are formulas, so that the peer can have the same: `sin(0.1 i)` over the elements in channels-first order.
fn wave(shape: (usize, usize, usize, usize)) -> Result<Tensor> {
    let (b, c, h, w) = shape;
    let values: Vec<f32> = (0..b * c * h * w).map(|i| (0.1 * i as f32).sin()).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?
        .permute((0, 2, 3, 1))?
        .contiguous()?
        .to_device(device()?)?)
}

fn unet(
    config: UnetConfig,
    weights: &Weights,
    side: usize,
    batch: usize,
) -> Result<Box<dyn FnMut() -> Result<Tensor>>> {
    let latents = wave((batch, config.in_channels, side, side))?;
    let channels = config.context_channels(0);
    let time = config.addition_time_embed_dim.unwrap_or(0);
    let pooled = config.projection_class_embeddings_input_dim.map(|all| all - 6 * time);
    let unet = UNet2DCondition::new(config, weights)?;
    let conditioning = Conditioning {
        prompt_embeds: wave((batch, 1, 77, channels))?.squeeze(3)?.reshape((batch, 77, channels))?,
        added: pooled
            .map(|pooled| -> Result<_> {
                Ok(AddedConditioning {
                    pooled_prompt_embeds: wave((batch, 1, 1, pooled))?.reshape((batch, pooled))?,
                    time_ids: vec![vec![256.0, 256.0, 0.0, 0.0, 256.0, 256.0]; batch],
                })
            })
            .transpose()?,
        guidance: None,
    };
    // diffusers computes the prompt's keys and values in every step: so does this, to compare like with like.
    Ok(Box::new(move || Ok(unet.forward(&latents, &vec![500.0; batch], &unet.context(&conditioning)?)?)))
}

fn vae(
    config: aquatint_models::vae::AutoencoderKlConfig,
    weights: &Weights,
    side: usize,
    batch: usize,
) -> Result<Box<dyn FnMut() -> Result<Tensor>>> {
    let latents = wave((batch, config.latent_channels, side, side))?;
    let vae = AutoencoderKl::new(config, weights)?;
    Ok(Box::new(move || Ok(vae.decode(&latents)?)))
}

fn flux(
    config: FluxConfig,
    weights: &Weights,
    side: usize,
    batch: usize,
) -> Result<Box<dyn FnMut() -> Result<Tensor>>> {
    let latents = wave((batch, config.in_channels / 4, side, side))?;
    let (channels, pooled) = (config.joint_attention_dim, config.pooled_projection_dim);
    let options = FluxOptions { activations: weights.activations("x_embedder"), ..FluxOptions::default() };
    let flux = FluxTransformer::with_options(config, weights, options)?;
    let conditioning = FluxConditioning {
        prompt_embeds: wave((1, 1, 256, channels))?.squeeze(3)?,
        pooled_prompt_embeds: wave((1, 1, 1, pooled))?.reshape((1, pooled))?,
        guidance: Some(3.5),
        reference: Vec::new(),
    };
    // What a step takes: the modulation of all steps is computed once a request. The peer computes it in every step.
    let context = flux.context(&conditioning, &[500.0])?;
    let context = FluxContext::cat(&vec![&context; batch])?;
    Ok(Box::new(move || Ok(flux.forward(&latents, &vec![500.0; batch], &context)?)))
}

fn t5(
    config: T5Config,
    weights: &Weights,
    tokens: usize,
    batch: usize,
) -> Result<Box<dyn FnMut() -> Result<Tensor>>> {
    let rows = config.vocab_size as u32;
    let precision = match weights.activations("encoder.block.0.layer.0.SelfAttention.q") {
        DType::F16 => Precision::Half,
        DType::BF16 => Precision::Brain,
        _ => Precision::Full,
    };
    let model = T5Model::new(config, weights, precision)?;
    let ids = vec![(0..tokens as u32).map(|i| i * 600 % rows).collect::<Vec<_>>(); batch];
    Ok(Box::new(move || Ok(model.forward(&ids)?)))
}

fn clip(
    config: ClipConfig,
    weights: &Weights,
    tokens: usize,
    batch: usize,
) -> Result<Box<dyn FnMut() -> Result<Tensor>>> {
    let rows = config.vocab_size as u32;
    let model = ClipTextModel::new(config, weights)?;
    let ids = vec![(0..tokens as u32).map(|i| i * 600 % rows).collect::<Vec<_>>(); batch];
    Ok(Box::new(move || Ok(model.forward(&ids)?.last_hidden_state)))
}
