//! Encoder and decoder of the latent diffusion VAE, smallest parts first.
//!
//! Source: Rombach et al. 2022; diffusers' `autoencoders/vae.py` and `unet_2d_blocks.py`, whose keys these are.

use std::sync::Arc;

use aquatint_kernels::attention::Mask;
use aquatint_kernels::{Recorder, attention, upsample_nearest};
use candle_core::Tensor;

use super::AutoencoderKlConfig;
use crate::checkpoint::Weights;
use crate::layers::{Activation, Conv2d, GroupNorm, Linear, Padding};
use crate::range::Range;
use crate::resnet::ResnetBlock;
use crate::{Error, Result};

/// Epsilon of every normalisation.
const EPS: f64 = 1e-6;

/// `count` residual blocks, of which the first changes the channels.
fn resnets(
    from: usize,
    to: usize,
    count: usize,
    (groups, range): (usize, Range),
    weights: &Weights,
) -> Result<Vec<ResnetBlock>> {
    let one = |i: usize| {
        let from = if i == 0 { from } else { to };
        ResnetBlock::new(&weights.pp(i), from, to, None, (groups, EPS), range)
    };
    (0..count).map(one).collect()
}

/// Every position attends to every other, in one head of all channels.
#[derive(Debug)]
struct AttentionBlock {
    group_norm: GroupNorm,
    to_q: Arc<Linear>,
    to_k: Arc<Linear>,
    to_v: Arc<Linear>,
    to_out: Arc<Linear>,
}

impl AttentionBlock {
    fn new(channels: usize, (groups, range): (usize, Range), weights: &Weights) -> Result<Self> {
        // The first published VAEs have other names, and projections stored as 1x1 convolutions.
        let linear = |weights: &Weights, name: &str, old: &str| {
            let is_old =
                !weights.contains(&format!("{name}.weight")) && weights.contains(&format!("{old}.weight"));
            weights.linear(if is_old { old } else { name }, channels, channels, true)
        };
        Ok(Self {
            group_norm: weights.group_norm("group_norm", groups, channels, range.eps(EPS))?,
            to_q: linear(weights, "to_q", "query")?,
            to_k: linear(weights, "to_k", "key")?,
            to_v: linear(weights, "to_v", "value")?,
            to_out: linear(&range.writing(weights), "to_out.0", "proj_attn")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let residual = x.reshape((batch, height * width, channels))?;
        let h = self.group_norm.forward(&residual, Activation::None)?;
        let (q, k, v) = (self.to_q.forward(&h)?, self.to_k.forward(&h)?, self.to_v.forward(&h)?);
        let h = attention(&q, &k, &v, 1, Mask::None)?;
        let y = self.to_out.forward_with(&h, Activation::None, Some(&residual))?;
        Ok(y.reshape((batch, height, width, channels))?)
    }
}

/// A residual block on either side of the attention.
#[derive(Debug)]
struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attention: Option<AttentionBlock>,
}

impl MidBlock {
    fn new(config: &AutoencoderKlConfig, channels: usize, weights: &Weights, range: Range) -> Result<Self> {
        let norm = (config.norm_num_groups, range);
        let attention = || AttentionBlock::new(channels, norm, &weights.pp("attentions.0"));
        Ok(Self {
            resnets: resnets(channels, channels, 2, norm, &weights.pp("resnets"))?,
            attention: config.mid_block_add_attention.then(attention).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = x.clone();
        for (i, resnet) in self.resnets.iter().enumerate() {
            h = resnet.forward(&h, None)?;
            if let (0, Some(attention)) = (i, &self.attention) {
                h = attention.forward(&h)?;
            }
        }
        Ok(h)
    }
}

/// A network from one tensor to another, through its recorder.
fn recorded(recorder: &Recorder, x: &Tensor, run: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let not_one = || Error::invalid("half a VAE takes one tensor and gives one");
    let outputs = recorder.run(&[x], |inputs| match inputs {
        [x] => Ok(vec![run(x)?]),
        _ => Err(not_one()),
    })?;
    outputs.into_iter().next().ok_or_else(not_one)
}

/// Residual blocks, then the convolution that goes with halving or doubling the sides.
#[derive(Debug)]
struct Stage {
    resnets: Vec<ResnetBlock>,
    resample: Option<Arc<Conv2d>>,
}

/// A picture to the moments of its latents.
#[derive(Debug)]
pub(super) struct Encoder {
    recorder: Recorder,
    conv_in: Arc<Conv2d>,
    down_blocks: Vec<Stage>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Arc<Conv2d>,
}

impl Encoder {
    /// `config` has been checked; `range`: that of all features.
    pub(super) fn new(config: &AutoencoderKlConfig, weights: &Weights, range: Range) -> Result<Self> {
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut down_blocks = Vec::new();
        for (i, &to) in channels.iter().enumerate() {
            let here = weights.pp(format!("down_blocks.{i}"));
            let from = if i == 0 { first } else { channels[i - 1] };
            let halve =
                || range.passing(&here).conv2d("downsamplers.0.conv", to, to, 3, 2, Padding::bottom_right());
            down_blocks.push(Stage {
                resnets: resnets(from, to, config.layers_per_block, (groups, range), &here.pp("resnets"))?,
                resample: (i + 1 < channels.len()).then(halve).transpose()?,
            });
        }
        Ok(Self {
            recorder: Recorder::default(),
            conv_in: range.writing(weights).conv2d(
                "conv_in",
                config.in_channels,
                first,
                3,
                1,
                Padding::same(1),
            )?,
            down_blocks,
            mid_block: MidBlock::new(config, last, &weights.pp("mid_block"), range)?,
            conv_norm_out: weights.group_norm("conv_norm_out", groups, last, range.eps(EPS))?,
            conv_out: weights.conv2d("conv_out", last, 2 * config.latent_channels, 3, 1, Padding::same(1))?,
        })
    }

    /// `x`: `(batch, height, width, 3)` in -1..1; returns `(batch, height / d, width / d, 2 * latent_channels)`:
    /// means, then logarithms of variances.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        recorded(&self.recorder, x, |x| self.run(x))
    }

    fn run(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = self.conv_in.forward(x)?;
        for block in &self.down_blocks {
            for resnet in &block.resnets {
                h = resnet.forward(&h, None)?;
            }
            if let Some(halve) = &block.resample {
                h = halve.forward(&h)?;
            }
        }
        let h = self.mid_block.forward(&h)?;
        Ok(self.conv_out.forward(&self.conv_norm_out.forward(&h, Activation::Silu)?)?)
    }
}

/// Latents to a picture.
#[derive(Debug)]
pub(super) struct Decoder {
    recorder: Recorder,
    conv_in: Arc<Conv2d>,
    mid_block: MidBlock,
    up_blocks: Vec<Stage>,
    conv_norm_out: GroupNorm,
    conv_out: Arc<Conv2d>,
}

impl Decoder {
    /// `config` has been checked; `range`: that of all features.
    pub(super) fn new(config: &AutoencoderKlConfig, weights: &Weights, range: Range) -> Result<Self> {
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut up_blocks = Vec::new();
        let mut from = last;
        for (i, &to) in channels.iter().rev().enumerate() {
            let here = weights.pp(format!("up_blocks.{i}"));
            let double = || range.passing(&here).conv2d("upsamplers.0.conv", to, to, 3, 1, Padding::same(1));
            up_blocks.push(Stage {
                resnets: resnets(
                    from,
                    to,
                    config.layers_per_block + 1,
                    (groups, range),
                    &here.pp("resnets"),
                )?,
                resample: (i + 1 < channels.len()).then(double).transpose()?,
            });
            from = to;
        }
        Ok(Self {
            recorder: Recorder::default(),
            conv_in: range.writing(weights).conv2d(
                "conv_in",
                config.latent_channels,
                last,
                3,
                1,
                Padding::same(1),
            )?,
            mid_block: MidBlock::new(config, last, &weights.pp("mid_block"), range)?,
            up_blocks,
            conv_norm_out: weights.group_norm("conv_norm_out", groups, first, range.eps(EPS))?,
            conv_out: weights.conv2d("conv_out", first, config.out_channels, 3, 1, Padding::same(1))?,
        })
    }

    /// `z`: `(batch, height, width, latent_channels)`, unscaled; returns `(batch, height * d, width * d, 3)`, about
    /// -1..1.
    pub(super) fn forward(&self, z: &Tensor) -> Result<Tensor> {
        recorded(&self.recorder, z, |z| self.run(z))
    }

    fn run(&self, z: &Tensor) -> Result<Tensor> {
        let mut h = self.mid_block.forward(&self.conv_in.forward(z)?)?;
        for block in &self.up_blocks {
            for resnet in &block.resnets {
                h = resnet.forward(&h, None)?;
            }
            if let Some(conv) = &block.resample {
                let (_, height, width, _) = h.dims4()?;
                h = upsample_nearest(&h, 2 * height, 2 * width)?;
                h = conv.forward(&h)?;
            }
        }
        Ok(self.conv_out.forward(&self.conv_norm_out.forward(&h, Activation::Silu)?)?)
    }
}
