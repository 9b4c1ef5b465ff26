//! Shapes of convolutions and attentions, from the models' own definitions.

use std::collections::BTreeSet;
use std::path::Path;

use aquatint_kernels::cudnn::{Attention, Bias, Convolution, DataType};
use aquatint_models::checkpoint::Weights;
use aquatint_models::denoiser::{UNet2DCondition, UnetConfig};
use aquatint_models::vae::{AutoencoderKl, AutoencoderKlConfig};
use candle_core::Device;
use serde_json::{Value, json};

/// A config of `models/published`.
fn published(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("published").join(file);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn number(config: &Value, key: &str) -> usize {
    config[key].as_u64().unwrap_or_else(|| panic!("{key} of {config}")) as usize
}

/// What the model that a config describes is made narrower by, to be built without gigabytes of weights. No channels that
/// are not those of a block are multiples of a 64th of 320 or an eighth of 128.
fn narrower(config: &mut Value, by: u64) {
    for channels in config["block_out_channels"].as_array_mut().unwrap() {
        *channels = json!(channels.as_u64().unwrap() / by);
    }
    config["norm_num_groups"] = json!(1);
}

fn wider(channels: usize, least: usize, by: usize) -> usize {
    if channels.is_multiple_of(least) { channels * by } else { channels }
}

const SAME: Convolution = Convolution {
    of: DataType::F16,
    batch: 0,
    height: 0,
    width: 0,
    channels: 0,
    out: 0,
    kernel: [3, 3],
    stride: 1,
    before: [1, 1],
    after: [1, 1],
    bias: Some(Bias::Shared),
    residual: false,
};

/// The convolutions of a model that was built narrower, by their layers' names: on which side of the picture or latents a
/// layer works, and what is added to what it gives, is in the name.
fn convolutions(
    weights: &Weights,
    (least, by): (usize, usize),
    batch: usize,
    side_of: impl Fn(&str) -> usize,
) -> BTreeSet<Convolution> {
    let layers = weights.layer_shapes();
    // The others are linear layers.
    let filters = layers.iter().filter(|(_, shape)| shape.len() == 4);
    filters
        .map(|(name, shape)| {
            let side = side_of(name);
            let mut c = Convolution {
                batch,
                height: side,
                width: side,
                channels: wider(shape[1], least, by),
                out: wider(shape[0], least, by),
                residual: name.ends_with("conv2"),
                ..SAME
            };
            if name.ends_with("conv1") && layers.contains_key(&name.replace("conv1", "time_emb_proj")) {
                c.bias = Some(Bias::PerSample);
            }
            if name.contains("downsamplers") {
                c.stride = 2;
            }
            if name.contains("downsamplers") && name.contains("encoder") {
                c.before = [0, 0];
            }
            if shape[2] == 1 {
                (c.kernel, c.before, c.after) = ([1, 1], [0, 0], [0, 0]);
            }
            c
        })
        .collect()
}

/// The number behind `name` in a layer's name.
fn number_behind(name: &str, layer: &str) -> Option<usize> {
    layer.split_once(name)?.1.split('.').next()?.parse().ok()
}

/// Of latents with so many pixels a side; `batch` is 2 where guidance takes two passes.
pub(crate) fn unet(folder: &str, side: usize, batch: usize) -> BTreeSet<Convolution> {
    let mut config = published(&format!("{folder}/unet.json"));
    narrower(&mut config, 64);
    config["attention_head_dim"] = json!(1);
    let config: UnetConfig = serde_json::from_value(config).unwrap();
    let last = config.block_out_channels.len() - 1;
    let weights = Weights::synthetic("unet", 0, &Device::Cpu);
    UNet2DCondition::new(config, &weights).unwrap();
    convolutions(&weights, (5, 64), batch, |name| {
        let level = match (number_behind("down_blocks.", name), number_behind("up_blocks.", name)) {
            (Some(block), _) => block,
            // Behind an upsampling, a block works on the next finer side.
            (_, Some(block)) => last - block - usize::from(name.contains("upsamplers")),
            _ => {
                if name.contains("mid_block") {
                    last
                } else {
                    0
                }
            }
        };
        side >> level
    })
}

/// Of latents with so many pixels a side, both ways.
pub(crate) fn vae(folder: &str, side: usize) -> BTreeSet<Convolution> {
    let mut config = published(&format!("{folder}/vae.json"));
    narrower(&mut config, 8);
    let config: AutoencoderKlConfig = serde_json::from_value(config).unwrap();
    let last = config.block_out_channels.len() - 1;
    let weights = Weights::synthetic("vae", 0, &Device::Cpu);
    AutoencoderKl::new(config, &weights).unwrap();
    convolutions(&weights, (16, 8), 1, |name| {
        let level = match (number_behind("down_blocks.", name), number_behind("up_blocks.", name)) {
            (Some(block), _) => block,
            (_, Some(block)) => last - block - usize::from(name.contains("upsamplers")),
            _ => {
                if ["encoder.conv_in", "decoder.conv_out"].contains(&name) {
                    0
                } else {
                    last
                }
            }
        };
        (side << last) >> level
    })
}

fn attention(batch: usize, heads: usize, d: usize, queries: usize, keys: usize) -> Attention {
    let scale = (1.0 / (d as f32).sqrt()).to_bits();
    Attention { of: DataType::F16, batch, heads, d, queries, keys, scale, causal: false, bias: false }
}

/// Tokens of a chunk of the prompt.
const PROMPT: usize = 77;

/// Each transformer of the UNet attends to the picture, and to the prompt.
pub(crate) fn unet_attentions(folder: &str, side: usize, batch: usize) -> BTreeSet<Attention> {
    let config: UnetConfig = serde_json::from_value(published(&format!("{folder}/unet.json"))).unwrap();
    let last = config.block_out_channels.len() - 1;
    let attends = |i: &usize| config.down_block_types[*i].contains("CrossAttn");
    let levels = (0..=last).filter(attends).chain([last]);
    levels
        .flat_map(|level| {
            let (tokens, heads) = ((side >> level) * (side >> level), config.heads(level));
            let d = config.block_out_channels[level] / heads;
            [tokens, PROMPT].map(|keys| attention(batch, heads, d, tokens, keys))
        })
        .collect()
}

/// The middle of encoder and decoder.
pub(crate) fn vae_attentions(folder: &str, side: usize) -> BTreeSet<Attention> {
    let config: AutoencoderKlConfig =
        serde_json::from_value(published(&format!("{folder}/vae.json"))).unwrap();
    let channels = *config.block_out_channels.last().unwrap();
    BTreeSet::from([attention(1, 1, channels, side * side, side * side)])
}

/// FLUX.1 dev at 1024x1024 and its text encoders, and those of SDXL.
pub(crate) fn other_attentions() -> Vec<Attention> {
    let flux = published("flux/transformer_dev.json");
    let (heads, d) = (number(&flux, "num_attention_heads"), number(&flux, "attention_head_dim"));
    let (picture, prompt) = (64 * 64, 512);
    let mut all =
        vec![Attention { of: DataType::BF16, ..attention(1, heads, d, picture + prompt, picture + prompt) }];
    let t5 = published("flux/text_encoder_2.json");
    let t5 = attention(1, number(&t5, "num_heads"), number(&t5, "d_kv"), prompt, prompt);
    all.push(Attention { of: DataType::BF16, bias: true, scale: 1f32.to_bits(), ..t5 });
    for encoder in ["sdxl/text_encoder.json", "sdxl/text_encoder_2.json"] {
        let config = published(encoder);
        let heads = number(&config, "num_attention_heads");
        let clip = attention(2, heads, number(&config, "hidden_size") / heads, PROMPT, PROMPT);
        all.push(Attention { causal: true, ..clip });
    }
    all
}

/// Recorded by `reference/kernel_shapes.py`.
fn recorded(model: &str, what: &str) -> BTreeSet<Vec<usize>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kernel_shapes.json");
    let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let one = |v: &Value| v.as_u64().map_or_else(|| usize::from(v.as_bool().unwrap()), |n| n as usize);
    let shape = |v: &Value| v.as_array().unwrap().iter().map(one).collect();
    all[model][what].as_array().unwrap().iter().map(shape).collect()
}

#[test]
fn convolutions_are_those_that_diffusers_runs() {
    for (model, walked) in [
        ("sd15 unet", unet("sd15", 64, 2)),
        ("sdxl unet", unet("sdxl", 128, 2)),
        ("sd15 vae", vae("sd15", 64)),
        ("sdxl vae", vae("sdxl", 128)),
    ] {
        let shapes: BTreeSet<Vec<usize>> = walked
            .iter()
            .map(|c| {
                let at_the_end = usize::from(c.before != c.after);
                vec![c.height, c.width, c.channels, c.out, c.kernel[0], c.stride, at_the_end]
            })
            .collect();
        assert_eq!(shapes, recorded(model, "convolutions"), "{model}");
    }
}

#[test]
fn attentions_are_those_that_diffusers_runs() {
    for (model, walked) in [
        ("sd15 unet", unet_attentions("sd15", 64, 2)),
        ("sdxl unet", unet_attentions("sdxl", 128, 2)),
        ("sd15 vae", vae_attentions("sd15", 64)),
        ("sdxl vae", vae_attentions("sdxl", 128)),
    ] {
        let shapes: BTreeSet<Vec<usize>> =
            walked.iter().map(|a| vec![a.heads, a.d, a.queries, a.keys]).collect();
        assert_eq!(shapes, recorded(model, "attentions"), "{model}");
    }
}
