//! Times candle-transformers' own Stable Diffusion beside ours: one UNet step and one VAE decode, on the same weights
//! and inputs, in one process, in turn.
//!
//!     candle [ROUNDS]
//!
//! The UNet is SD 1.5's at two fifths of its width (candle's has no SDXL conditioning); the VAE is the published one.
//! Prints the median milliseconds of both and their ratio.
//!
//! The outputs must agree before anything is timed. The UNets cannot agree further than to about 4e-4 of the largest
//! value: candle computes GEGLU with the tanh approximation of GELU, diffusers and we with the exact one, and in
//! diffusers too the one in place of the other moves this output by 1.07e-3 of 3.08.

use std::time::Instant;

use anyhow::{Result, ensure};
use aquatint_models::checkpoint::Weights;
use aquatint_models::denoiser::{Conditioning, UNet2DCondition, UnetConfig};
use aquatint_models::vae::{AutoencoderKl, AutoencoderKlConfig};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use candle_transformers::models::stable_diffusion::unet_2d::{
    BlockConfig, UNet2DConditionModel, UNet2DConditionModelConfig,
};
use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};

const UNET_CHANNELS: [usize; 4] = [128, 256, 512, 512];
const UNET_HEADS: usize = 8;
const PROMPT_CHANNELS: usize = 768;
const VAE_CHANNELS: [usize; 4] = [128, 256, 512, 512];
const TIMESTEP: f64 = 500.0;
const SIDE: usize = 32;
/// Of the output's largest value.
const TOLERANCE: f32 = 1e-3;

/// The same work by both; outputs are `(batch, height, width, channels)`.
struct Pair {
    name: &'static str,
    ours: Box<dyn Fn() -> Result<Tensor>>,
    candle: Box<dyn Fn() -> Result<Tensor>>,
}

fn main() -> Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(5), |n| n.parse())?;
    println!("{:44} {:>9} {:>9} {:>6}   difference", "work", "ours ms", "candle ms", "ratio");
    // One after the other: a pair holds its weights twice.
    let pairs: [fn() -> Result<Pair>; 3] = [|| unet(1), || unet(2), vae];
    for pair in pairs {
        let pair = pair()?;
        let difference = difference(&(pair.ours)()?, &channels_last(&(pair.candle)()?)?)?;
        let name = pair.name;
        ensure!(difference <= TOLERANCE, "{name}: differs by {difference:e}, {TOLERANCE:e} is allowed");
        let (mut ours, mut candle) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            ours.push(milliseconds(&pair.ours)?);
            candle.push(milliseconds(&pair.candle)?);
        }
        let (ours, candle) = (median(ours), median(candle));
        println!("{:44} {ours:9.1} {candle:9.1} {:6.2}   {difference:.1e}", name, ours / candle);
    }
    Ok(())
}

fn unet(batch: usize) -> Result<Pair> {
    let config: UnetConfig = serde_json::from_value(serde_json::json!({
        "block_out_channels": UNET_CHANNELS, "attention_head_dim": UNET_HEADS, "cross_attention_dim": PROMPT_CHANNELS,
    }))?;
    let weights = Weights::synthetic("unet", 0, &Device::Cpu);
    let block = |(i, &out_channels): (usize, &usize)| BlockConfig {
        out_channels,
        use_cross_attn: (i < 3).then_some(1),
        attention_head_dim: UNET_HEADS,
    };
    let candle_config = UNet2DConditionModelConfig {
        blocks: UNET_CHANNELS.iter().enumerate().map(block).collect(),
        cross_attention_dim: PROMPT_CHANNELS,
        ..Default::default()
    };
    let candle = UNet2DConditionModel::new(builder(&weights), 4, 4, false, candle_config)?;
    let unet = UNet2DCondition::new(config, &weights)?;

    let latents = wave((batch, 4, SIDE, SIDE))?;
    let prompt_embeds = wave((batch, 77, PROMPT_CHANNELS))?;
    let (ours_latents, ours_prompt) = (channels_last(&latents)?, prompt_embeds.clone());
    Ok(Pair {
        name: if batch == 1 { "UNet, 32x32 latents, batch 1" } else { "UNet, 32x32 latents, batch 2" },
        // candle computes the prompt's keys and values in every step: so does this, to compare like with like.
        ours: Box::new(move || {
            let conditioning =
                Conditioning { prompt_embeds: ours_prompt.clone(), added: None, guidance: None };
            Ok(unet.forward(&ours_latents, &vec![TIMESTEP; batch], &unet.context(&conditioning)?)?)
        }),
        candle: Box::new(move || Ok(candle.forward(&latents, TIMESTEP, &prompt_embeds)?)),
    })
}

fn vae() -> Result<Pair> {
    let config = AutoencoderKlConfig {
        block_out_channels: VAE_CHANNELS.to_vec(),
        layers_per_block: 2,
        ..Default::default()
    };
    let weights = Weights::synthetic("vae", 0, &Device::Cpu);
    let candle_config = AutoEncoderKLConfig {
        block_out_channels: VAE_CHANNELS.to_vec(),
        layers_per_block: 2,
        latent_channels: 4,
        norm_num_groups: 32,
        use_quant_conv: true,
        use_post_quant_conv: true,
    };
    let candle = AutoEncoderKL::new(builder(&weights), 3, 3, candle_config)?;
    let vae = AutoencoderKl::new(config, &weights)?;

    let latents = wave((1, 4, SIDE, SIDE))?;
    let ours_latents = channels_last(&latents)?;
    Ok(Pair {
        name: "VAE decode, 32x32 latents",
        ours: Box::new(move || Ok(vae.decode(&ours_latents)?)),
        candle: Box::new(move || Ok(candle.decode(&latents)?)),
    })
}

/// The inputs are a formula, the same as in `component.rs`: `sin(0.1 i)` over the elements.
fn wave(shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let values: Vec<f32> = (0..shape.elem_count()).map(|i| (0.1 * i as f32).sin()).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn channels_last(x: &Tensor) -> Result<Tensor> {
    Ok(x.permute((0, 2, 3, 1))?.contiguous()?)
}

/// The largest difference, as a part of the largest value.
fn difference(ours: &Tensor, candle: &Tensor) -> Result<f32> {
    let largest = |t: Tensor| -> Result<f32> { Ok(t.abs()?.max_all()?.to_scalar()?) };
    Ok(largest((ours - candle)?)? / largest(candle.clone())?)
}

fn milliseconds(run: &dyn Fn() -> Result<Tensor>) -> Result<f64> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Our weights, as candle's layers ask for them.
struct CandleWeights(Weights);

fn builder(weights: &Weights) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(CandleWeights(weights.clone())), DType::F32, Device::Cpu)
}

impl SimpleBackend for CandleWeights {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.0.tensor(name, shape.dims()).map_err(candle_core::Error::wrap)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(candle_core::Error::Msg(format!("{name} was asked for without a shape")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}
