//! Tiny autoencoders (TAESD and its family): a thousandth of the VAE's work, good enough to watch a picture grow.
//!
//! Source: <https://github.com/madebyollin/taesd>; diffusers' `AutoencoderTiny`. One network is a plain sequence of
//! layers, so both the numbered keys of the original files and diffusers' config and keys are read. TAEF2 (FLUX.2) has
//! a normalised branch in its coarsest blocks, which is recognised by its keys.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use aquatint_kernels::upsample_nearest;
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::checkpoint::safetensors_file::SafetensorsFile;
use crate::checkpoint::{ModelFolder, Weights};
use crate::layers::{Activation, Conv2d, GroupNorm, Linear, Padding};
use crate::{Error, Result};

/// `config.json` of diffusers' `AutoencoderTiny`; names and defaults are diffusers'.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AutoencoderTinyConfig {
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each stage of the encoder, finest first.
    pub encoder_block_out_channels: Vec<usize>,
    /// Channels of each stage of the decoder, coarsest first.
    pub decoder_block_out_channels: Vec<usize>,
    /// Blocks of each stage of the encoder.
    pub num_encoder_blocks: Vec<usize>,
    /// Blocks of each stage of the decoder.
    pub num_decoder_blocks: Vec<usize>,
    /// `relu`.
    pub act_fn: String,
    /// `nearest`.
    pub upsample_fn: String,
    /// What the sides grow by between the decoder's stages.
    pub upsampling_scaling_factor: usize,
    /// 1: the latents are taken as the denoiser has them.
    pub scaling_factor: f64,
    /// 0, as above.
    pub shift_factor: f64,
}

impl Default for AutoencoderTinyConfig {
    fn default() -> Self {
        Self {
            latent_channels: 4,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            act_fn: "relu".to_owned(),
            upsample_fn: "nearest".to_owned(),
            upsampling_scaling_factor: 2,
            scaling_factor: 1.0,
            shift_factor: 0.0,
        }
    }
}

impl AutoencoderTinyConfig {
    /// An error that names the first value that cannot be built.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::invalid(what));
        let stages = [
            ("encoder", &self.encoder_block_out_channels, &self.num_encoder_blocks),
            ("decoder", &self.decoder_block_out_channels, &self.num_decoder_blocks),
        ];
        for (part, channels, blocks) in stages {
            if channels.is_empty() || channels.len() != blocks.len() || channels.len() > 8 {
                let (c, b) = (channels.len(), blocks.len());
                return bad(format!(
                    "{part}_block_out_channels has {c} entries, num_{part}_blocks {b}: 1 to 8 of both"
                ));
            }
            if channels.iter().chain(blocks).any(|&n| n > 1 << 12) {
                return bad(format!("{part}_block_out_channels or num_{part}_blocks is above 4096"));
            }
        }
        if self.act_fn != "relu" {
            return bad(format!("act_fn is {}, relu is allowed", self.act_fn));
        }
        if self.upsample_fn != "nearest" || !(1..=8).contains(&self.upsampling_scaling_factor) {
            let (name, by) = (&self.upsample_fn, self.upsampling_scaling_factor);
            return bad(format!("upsample_fn is {name} by {by}, nearest by 1 to 8 is allowed"));
        }
        if self.scaling_factor != 1.0 || self.shift_factor != 0.0 {
            let (scale, shift) = (self.scaling_factor, self.shift_factor);
            return bad(format!("scaling_factor is {scale}, shift_factor {shift}: 1 and 0 are allowed"));
        }
        Ok(())
    }
}

/// `relu(conv(relu(conv(relu(conv(x))))) + x)`.
#[derive(Debug)]
struct Block {
    convs: [Conv2d; 3],
    pool: Option<Pool>,
}

/// TAEF2's branch `relu(norm(x W)) V`, by which distant pixels know of each other.
#[derive(Debug)]
struct Pool {
    expand: Arc<Linear>,
    norm: GroupNorm,
    shrink: Arc<Linear>,
}

impl Block {
    fn new(channels: usize, weights: &Weights) -> Result<Self> {
        let one = |name: &str| conv(&weights.pp(name), channels, channels, 1, true);
        let wide = 4 * channels;
        // Synthetic weights have every name, and no stored shape: they are of the plain kind.
        let pool = match weights.stored_shape("pool.0.weight") {
            Some(_) => Some(Pool {
                expand: weights.linear("pool.0", channels, wide, false)?,
                norm: weights.group_norm("pool.1", 4, wide, 1e-5)?,
                shrink: weights.linear("pool.3", wide, channels, false)?,
            }),
            None => None,
        };
        Ok(Self { convs: [one("conv.0")?, one("conv.2")?, one("conv.4")?], pool })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = match &self.pool {
            Some(pool) => {
                let h = pool.norm.forward(&pool.expand.forward(x)?, Activation::Relu)?;
                &pool.shrink.forward_with(&h, Activation::None, Some(x))?
            }
            None => x,
        };
        let h = Activation::Relu.forward(&self.convs[0].forward(x)?)?;
        let h = Activation::Relu.forward(&self.convs[1].forward(&h)?)?;
        Ok(Activation::Relu.forward(&self.convs[2].forward_with(&h, None, Some(x))?)?)
    }
}

fn conv(weights: &Weights, from: usize, to: usize, stride: usize, bias: bool) -> Result<Conv2d> {
    let weight = weights.tensor("weight", &[to, from, 3, 3])?;
    let bias = bias.then(|| weights.tensor("bias", &[to])).transpose()?;
    Ok(Conv2d::new(&weight, bias.as_ref(), stride, Padding::same(1))?)
}

#[derive(Debug)]
enum Layer {
    Conv(Conv2d),
    Relu,
    Block(Box<Block>),
    Upsample(usize),
}

fn run(layers: &[Layer], mut x: Tensor) -> Result<Tensor> {
    for layer in layers {
        x = match layer {
            Layer::Conv(conv) => conv.forward(&x)?,
            Layer::Relu => Activation::Relu.forward(&x)?,
            Layer::Block(block) => block.forward(&x)?,
            Layer::Upsample(by) => {
                let (_, height, width, _) = x.dims4()?;
                upsample_nearest(&x, height * by, width * by)?
            }
        };
    }
    Ok(x)
}

/// Latents to a small picture's worth of detail at full size.
#[derive(Debug)]
pub struct Decoder {
    layers: Vec<Layer>,
    latent_channels: usize,
}

impl Decoder {
    /// `weights` holds diffusers' names below `decoder.layers`.
    pub fn new(config: &AutoencoderTinyConfig, weights: &Weights) -> Result<Self> {
        config.check()?;
        let weights = weights.pp("decoder.layers");
        let (channels, blocks) = (&config.decoder_block_out_channels, &config.num_decoder_blocks);
        let mut layers = vec![
            Layer::Conv(conv(&weights.pp(0), config.latent_channels, channels[0], 1, true)?),
            Layer::Relu,
        ];
        for (i, (&width, &count)) in channels.iter().zip(blocks).enumerate() {
            for _ in 0..count {
                layers.push(Layer::Block(Box::new(Block::new(width, &weights.pp(layers.len()))?)));
            }
            let last = i + 1 == channels.len();
            if !last {
                layers.push(Layer::Upsample(config.upsampling_scaling_factor));
            }
            let to = if last { 3 } else { width };
            layers.push(Layer::Conv(conv(&weights.pp(layers.len()), width, to, 1, last)?));
        }
        Ok(Self { layers, latent_channels: config.latent_channels })
    }

    /// From a published file: the original decoder, or one with diffusers' names.
    pub fn open(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        // The original sequence starts with the clamp, so its numbers are one higher.
        let file = SafetensorsFile::open(path)?.renamed(|key| diffusers_key(key, "decoder", 1))?;
        let Some(&[_, latent_channels, ..]) = shape(&file, "decoder.layers.0.weight") else {
            return Err(Error::file(
                path,
                "holds no TAESD decoder: no tensor 1.weight or decoder.layers.0.weight",
            ));
        };
        let (decoder_block_out_channels, num_decoder_blocks) = stages(&file, "decoder").into_iter().unzip();
        let config = AutoencoderTinyConfig {
            latent_channels,
            decoder_block_out_channels,
            num_decoder_blocks,
            ..AutoencoderTinyConfig::default()
        };
        config.check().map_err(|e| Error::file(path, e))?;
        Self::new(&config, &Weights::from_files("taesd", vec![file], Some(DType::F32), device)?)
    }

    /// `latents`: `(batch, height, width, latent_channels)` as the denoiser has them, scaled; returns
    /// `(batch, 8 height, 8 width, 3)`, about -1..1.
    ///
    /// # Errors
    /// Another number of channels.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let (_, _, _, channels) = latents.dims4()?;
        if channels != self.latent_channels {
            let wanted = self.latent_channels;
            return Err(Error::invalid(format!(
                "this TAESD decodes latents of {wanted} channels, not {channels}"
            )));
        }
        let clamped = ((latents / 3.0)?.tanh()? * 3.0)?;
        Ok(run(&self.layers, clamped)?.affine(2.0, -1.0)?)
    }
}

/// A picture to latents.
#[derive(Debug)]
pub struct Encoder {
    layers: Vec<Layer>,
}

impl Encoder {
    /// `weights` holds diffusers' names below `encoder.layers`.
    pub fn new(config: &AutoencoderTinyConfig, weights: &Weights) -> Result<Self> {
        config.check()?;
        let weights = weights.pp("encoder.layers");
        let (channels, blocks) = (&config.encoder_block_out_channels, &config.num_encoder_blocks);
        let mut layers: Vec<Layer> = Vec::new();
        for (i, (&width, &count)) in channels.iter().zip(blocks).enumerate() {
            let (from, stride) = if i == 0 { (3, 1) } else { (width, 2) };
            layers.push(Layer::Conv(conv(&weights.pp(layers.len()), from, width, stride, i == 0)?));
            for _ in 0..count {
                layers.push(Layer::Block(Box::new(Block::new(width, &weights.pp(layers.len()))?)));
            }
        }
        let last = channels[channels.len() - 1];
        layers.push(Layer::Conv(conv(&weights.pp(layers.len()), last, config.latent_channels, 1, true)?));
        Ok(Self { layers })
    }

    /// From a published file: the original encoder, or one with diffusers' names.
    pub fn open(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        let file = SafetensorsFile::open(path)?.renamed(|key| diffusers_key(key, "encoder", 0))?;
        let stages = stages(&file, "encoder");
        let last: usize = stages.iter().map(|(_, blocks)| 1 + blocks).sum();
        let Some(&[latent_channels, ..]) = shape(&file, &format!("encoder.layers.{last}.weight")) else {
            return Err(Error::file(
                path,
                format!("holds no TAESD encoder: no tensor {last}.weight or encoder.layers.{last}.weight"),
            ));
        };
        let (encoder_block_out_channels, num_encoder_blocks) = stages.into_iter().unzip();
        let config = AutoencoderTinyConfig {
            latent_channels,
            encoder_block_out_channels,
            num_encoder_blocks,
            ..AutoencoderTinyConfig::default()
        };
        config.check().map_err(|e| Error::file(path, e))?;
        Self::new(&config, &Weights::from_files("taesd", vec![file], Some(DType::F32), device)?)
    }

    /// `image`: `(batch, height, width, 3)` in -1..1; returns `(batch, height / 8, width / 8, latent_channels)`,
    /// scaled as the denoiser has them.
    pub fn encode(&self, image: &Tensor) -> Result<Tensor> {
        run(&self.layers, image.affine(0.5, 0.5)?)
    }
}

/// The encoder and the decoder of a folder in the diffusers layout.
#[derive(Debug)]
pub struct AutoencoderTiny {
    /// A picture to latents.
    pub encoder: Encoder,
    /// Latents to a picture.
    pub decoder: Decoder,
}

impl AutoencoderTiny {
    /// From the folder `component` of a model.
    pub fn load(folder: &ModelFolder, component: &str, device: &Device) -> Result<Self> {
        let file = format!("{component}/config.json");
        let config: AutoencoderTinyConfig = folder.json(&file)?;
        config.check().map_err(|e| Error::file(folder.path(&file), e))?;
        let weights = folder.weights(component, Some(DType::F32), device)?;
        Ok(Self { encoder: Encoder::new(&config, &weights)?, decoder: Decoder::new(&config, &weights)? })
    }
}

/// An original key such as `3.conv.0.weight` as diffusers' `decoder.layers.2.conv.0.weight`; diffusers' own stays.
fn diffusers_key(key: &str, part: &str, first: usize) -> Option<String> {
    let (number, rest) = key.split_once('.')?;
    if ["encoder", "decoder"].contains(&number) {
        return Some(key.to_owned());
    }
    let number = number.parse::<usize>().ok()?.checked_sub(first)?;
    Some(format!("{part}.layers.{number}.{rest}"))
}

fn shape<'a>(file: &'a SafetensorsFile, key: &str) -> Option<&'a [usize]> {
    file.entries().get(key).map(|entry| entry.shape.as_slice())
}

/// Channels and number of blocks of each stage: a stage is a run of blocks with consecutive numbers.
fn stages(file: &SafetensorsFile, part: &str) -> Vec<(usize, usize)> {
    let prefix = format!("{part}.layers.");
    let number =
        |key: &String| key.strip_prefix(&prefix)?.strip_suffix(".conv.0.weight")?.parse::<usize>().ok();
    let numbers: BTreeSet<usize> = file.entries().keys().filter_map(number).collect();
    let mut stages: Vec<(usize, usize)> = Vec::new();
    let mut before = None;
    for n in numbers {
        let width =
            shape(file, &format!("{prefix}{n}.conv.0.weight")).and_then(|s| s.first()).map_or(0, |&w| w);
        match stages.last_mut() {
            Some((_, blocks)) if before == n.checked_sub(1) => *blocks += 1,
            _ => stages.push((width, 1)),
        }
        before = Some(n);
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_by_name_what_it_cannot_be() {
        let refused = |json: &str| {
            let config: AutoencoderTinyConfig = serde_json::from_str(json).unwrap();
            config.check().unwrap_err().to_string()
        };
        assert!(
            refused(r#"{"num_decoder_blocks": [3]}"#).contains("decoder_block_out_channels has 4 entries")
        );
        assert!(refused(r#"{"act_fn": "gelu"}"#).contains("act_fn is gelu"));
        assert!(refused(r#"{"upsampling_scaling_factor": 0}"#).contains("nearest by 0"));
        assert!(refused(r#"{"scaling_factor": 0.18215}"#).contains("0.18215"));
    }
}
