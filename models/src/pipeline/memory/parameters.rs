//! How many parameters a config describes: what random weights take, which have no file whose size would count.
//!
//! The sums follow `UNet2DCondition::new`, `AutoencoderKl::new` and `ClipTextModel::new`. They are of f64: a config, which
//! is checked later, may hold any numbers.

use crate::checkpoint::ModelFolder;
use crate::denoiser::UnetConfig;
use crate::text::clip;
use crate::vae::AutoencoderKlConfig;
use crate::{Error, Result};

/// More residual blocks at one level than any model has.
const MOST_LAYERS: usize = 64;

/// Parameters of a component; 0 where the model has none.
///
/// # Errors
/// A config that cannot be read, or a component that is none of these.
pub(super) fn parameters(folder: &ModelFolder, component: &str) -> Result<f64> {
    let config = format!("{component}/config.json");
    if !folder.contains(&config) {
        return Ok(0.0);
    }
    Ok(match component {
        "unet" => unet(&folder.json(&config)?),
        "vae" => vae(&folder.json(&config)?),
        "text_encoder" | "text_encoder_2" => text_encoder(&folder.json(&config)?),
        _ => return Err(Error::file(folder.path(&config), "parameters of this component are not counted")),
    })
}

/// A matrix and its bias.
fn linear(from: f64, to: f64) -> f64 {
    from * to + to
}

/// Filters of so many pixels a side, and their bias.
fn conv(from: f64, to: f64, side: usize) -> f64 {
    linear((side * side) as f64 * from, to)
}

/// The scale and shift of a normalisation.
fn norm(channels: f64) -> f64 {
    2.0 * channels
}

/// A residual block, into which `time` channels of the time embedding go, if any.
fn resnet(from: f64, to: f64, time: Option<f64>) -> f64 {
    let shortcut = if from == to { 0.0 } else { conv(from, to, 1) };
    let time = time.map_or(0.0, |time| linear(time, to));
    norm(from) + conv(from, to, 3) + time + norm(to) + conv(to, to, 3) + shortcut
}

/// A transformer of a UNet.
struct Transformer {
    channels: f64,
    context: f64,
    layers: f64,
}

impl Transformer {
    /// Of the matrices in its blocks: two attentions and the feed-forward.
    fn in_blocks(&self) -> f64 {
        let Self { channels, context, layers } = *self;
        let attention = |context: f64| 2.0 * channels * channels + 2.0 * context * channels;
        layers * (attention(channels) + attention(context) + 12.0 * channels * channels)
    }

    fn parameters(&self) -> f64 {
        let Self { channels, layers, .. } = *self;
        // Of both attentions' outputs, and of the feed-forward.
        let biases = (2.0 + 8.0 + 1.0) * channels;
        let around = norm(channels) + 2.0 * linear(channels, channels);
        around + layers * (3.0 * norm(channels) + biases) + self.in_blocks()
    }
}

/// All of a UNet.
fn transformers(config: &UnetConfig) -> Vec<Transformer> {
    let blocks = config.block_out_channels.len();
    let attends = |types: &[String], i: usize| types.get(i).is_some_and(|t| t.starts_with("CrossAttn"));
    // Of the down block `level`, whose widths the up block that mirrors it has.
    let transformer = |level: usize, layers: usize| Transformer {
        channels: config.block_out_channels.get(level).map_or(0.0, |&c| c as f64),
        context: config.context_channels(level) as f64,
        layers: layers as f64,
    };
    let mut all = Vec::new();
    for i in (0..blocks).filter(|&i| attends(&config.down_block_types, i)) {
        let layers = config.layers(i).min(MOST_LAYERS);
        all.extend((0..layers).map(|j| transformer(i, config.transformer_layers(i, j))));
    }
    if config.mid_block_type.as_deref().is_some_and(|kind| kind != "UNetMidBlock2D") && blocks > 0 {
        all.push(transformer(blocks - 1, config.transformer_layers(blocks - 1, 0)));
    }
    for (block, i) in
        (0..blocks).rev().enumerate().filter(|(block, _)| attends(&config.up_block_types, *block))
    {
        let layers = config.layers(i).min(MOST_LAYERS);
        all.extend((0..=layers).map(|j| transformer(i, config.up_transformer_layers(block, j))));
    }
    all
}

/// Of a UNet, those in the matrices of transformer blocks, which `--quantise` rounds.
pub(super) fn in_blocks(config: &UnetConfig) -> f64 {
    transformers(config).iter().map(Transformer::in_blocks).sum()
}

pub(super) fn unet(config: &UnetConfig) -> f64 {
    let channels: Vec<f64> = config.block_out_channels.iter().map(|&c| c as f64).collect();
    let (Some(&first), Some(&last)) = (channels.first(), channels.last()) else { return 0.0 };
    let blocks = channels.len();
    let time = config.time_embedding_dim.map_or(4.0 * first, |c| c as f64);
    let resnet = |from, to| resnet(from, to, Some(time));

    let embedding = |from: f64| linear(from, time) + linear(time, time);
    let mut sum = conv(config.in_channels as f64, first, config.conv_in_kernel)
        + embedding(first)
        + config.time_cond_proj_dim.map_or(0.0, |from| from as f64 * first);
    if config.addition_embed_type.is_some() {
        sum += config.projection_class_embeddings_input_dim.map_or(0.0, |from| embedding(from as f64));
    }
    for (i, &out) in channels.iter().enumerate() {
        for j in 0..config.layers(i).min(MOST_LAYERS) {
            sum += resnet(if j == 0 { channels[i.saturating_sub(1)] } else { out }, out);
        }
        // Halved on the way down, doubled on the way up.
        if i + 1 < blocks {
            sum += conv(out, out, 3) + conv(channels[i + 1], channels[i + 1], 3);
        }
    }
    sum += match config.mid_block_type.as_deref() {
        None => 0.0,
        Some("UNetMidBlock2D") => resnet(last, last),
        Some(_) => 2.0 * resnet(last, last),
    };
    for i in (0..blocks).rev() {
        let (out, layers) = (channels[i], config.layers(i).min(MOST_LAYERS));
        for j in 0..=layers {
            let from = if j == 0 { channels[(i + 1).min(blocks - 1)] } else { out };
            let skip = if j == layers { channels[i.saturating_sub(1)] } else { out };
            sum += resnet(from + skip, out);
        }
    }
    sum += transformers(config).iter().map(Transformer::parameters).sum::<f64>();
    sum + norm(first) + conv(first, config.out_channels as f64, config.conv_out_kernel)
}

fn vae(config: &AutoencoderKlConfig) -> f64 {
    let channels: Vec<f64> = config.block_out_channels.iter().map(|&c| c as f64).collect();
    let (Some(&first), Some(&last)) = (channels.first(), channels.last()) else { return 0.0 };
    let latents = config.latent_channels as f64;
    let attention = if config.mid_block_add_attention { norm(last) + 4.0 * linear(last, last) } else { 0.0 };
    let middle = 2.0 * resnet(last, last, None) + attention;
    // All residual blocks of a level, and between two levels the convolution behind halving or doubling.
    let levels = |channels: &[f64], layers: usize| {
        let before = channels.first().into_iter().chain(channels);
        let blocks = before.zip(channels).map(|(&from, &to)| {
            resnet(from, to, None) + layers.saturating_sub(1) as f64 * resnet(to, to, None)
        });
        let resampled = channels.iter().take(channels.len() - 1).map(|&c| conv(c, c, 3));
        blocks.sum::<f64>() + resampled.sum::<f64>()
    };
    let encoder = conv(config.in_channels as f64, first, 3)
        + levels(&channels, config.layers_per_block)
        + middle
        + norm(last)
        + conv(last, 2.0 * latents, 3);
    let upwards: Vec<f64> = channels.iter().rev().copied().collect();
    let decoder = conv(latents, last, 3)
        + middle
        + levels(&upwards, config.layers_per_block + 1)
        + norm(first)
        + conv(first, config.out_channels as f64, 3);
    let quant = if config.use_quant_conv { linear(2.0 * latents, 2.0 * latents) } else { 0.0 };
    let post_quant = if config.use_post_quant_conv { linear(latents, latents) } else { 0.0 };
    encoder + quant + post_quant + decoder
}

fn text_encoder(config: &clip::Config) -> f64 {
    let (width, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
    let tables = (config.vocab_size as f64 + config.max_position_embeddings as f64) * width;
    let layer = 4.0 * linear(width, width) + 2.0 * norm(width) + linear(width, inner) + linear(inner, width);
    let projection = if config.has_projection() { width * config.projection_dim as f64 } else { 0.0 };
    tables + config.num_hidden_layers as f64 * layer + norm(width) + projection
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::published::Published;

    /// What `sum(p.numel() for p in component.parameters())` says of the models as published.
    #[test]
    fn published_models_have_their_parameters() {
        for (model, component, count) in [
            ("sd15", "unet", 859_520_964.0),
            ("sd15-inpainting", "unet", 859_535_364.0),
            ("sd15", "text_encoder", 123_060_480.0),
            ("sd15", "vae", 83_653_863.0),
            ("sd21", "unet", 865_910_724.0),
            ("sd21", "text_encoder", 340_387_840.0),
            ("sdxl", "unet", 2_567_463_684.0),
            ("sdxl", "text_encoder_2", 694_659_840.0),
            ("flux-dev", "vae", 83_819_683.0),
            ("sdxl-refiner", "text_encoder", 0.0),
        ] {
            let folder = ModelFolder::Published(Published::named(model).unwrap());
            assert_eq!(parameters(&folder, component).unwrap(), count, "{model}, {component}");
        }
    }

    /// `sum(m.weight.numel() for k, m in unet.named_modules() if isinstance(m, Linear) and "transformer_blocks." in k)`
    #[test]
    fn most_of_sdxl_is_in_transformer_blocks() {
        for (model, count) in [("sd15", 242_196_480.0), ("sdxl", 2_183_987_200.0)] {
            let folder = ModelFolder::Published(Published::named(model).unwrap());
            assert_eq!(in_blocks(&folder.json("unet/config.json").unwrap()), count, "{model}");
        }
    }
}
