//! The UNet's layers in the names of the original Stable Diffusion and SDXL code (LDM, SGM), which most SDXL LoRAs
//! use.
//!
//! The original numbers its blocks through: `input_blocks.4.1` is the second child of the fifth block on the way
//! down. So the numbers follow from how many layers each block of the model at hand has, and every UNet of the family
//! is covered: SD 1 and 2, SDXL and its refiner, SSD-1B.
//! Source: `diffusers/loaders/single_file_utils.py`, `convert_ldm_unet_checkpoint`, read backwards.

use std::collections::BTreeMap;

/// What the blocks of one direction consist of.
#[derive(Debug, Default)]
struct Block {
    resnets: usize,
    /// Has a layer of its own that changes the size.
    resizes: bool,
    attends: bool,
}

/// Names with dots -> names with dots, of all layers that have an original name.
pub(super) fn ldm_names<'a>(layers: impl Iterator<Item = &'a String> + Clone) -> BTreeMap<&'a str, String> {
    let down = blocks(layers.clone(), "down_blocks");
    let up = blocks(layers.clone(), "up_blocks");
    layers.filter_map(|layer| Some((layer.as_str(), ldm_name(layer, &down, &up)?))).collect()
}

fn blocks<'a>(layers: impl Iterator<Item = &'a String>, direction: &str) -> Vec<Block> {
    let mut blocks: BTreeMap<usize, Block> = BTreeMap::new();
    for layer in layers {
        let Some((found, block, kind, child, _)) = split(layer) else { continue };
        if found != direction {
            continue;
        }
        let block = blocks.entry(block).or_default();
        match kind {
            "resnets" => block.resnets = block.resnets.max(child + 1),
            "attentions" => block.attends = true,
            "downsamplers" | "upsamplers" => block.resizes = true,
            _ => {}
        }
    }
    blocks.into_values().collect()
}

/// `down_blocks.1.resnets.0.conv1` -> `("down_blocks", 1, "resnets", 0, "conv1")`.
fn split(layer: &str) -> Option<(&str, usize, &str, usize, &str)> {
    let mut parts = layer.splitn(5, '.');
    let direction = parts.next()?;
    let block = parts.next()?.parse().ok()?;
    Some((direction, block, parts.next()?, parts.next()?.parse().ok()?, parts.next()?))
}

fn ldm_name(layer: &str, down: &[Block], up: &[Block]) -> Option<String> {
    if let Some(rest) = layer.strip_prefix("mid_block.") {
        let (kind, rest) = rest.split_once('.')?;
        let (child, rest) = rest.split_once('.')?;
        let child: usize = child.parse().ok()?;
        return match kind {
            "resnets" => Some(format!("middle_block.{}.{}", 2 * child, resnet_layer(rest)?)),
            "attentions" => Some(format!("middle_block.{}.{rest}", 2 * child + 1)),
            _ => None,
        };
    }
    let Some((direction, block, kind, child, rest)) = split(layer) else {
        return outer_layer(layer).map(str::to_owned);
    };
    let (path, before) = match direction {
        // A layer that halves the size is an input block of its own; the first input block is conv_in.
        "down_blocks" => {
            let before = down.iter().take(block).map(|b| b.resnets + usize::from(b.resizes)).sum::<usize>();
            ("input_blocks", 1 + before)
        }
        "up_blocks" => ("output_blocks", up.iter().take(block).map(|b| b.resnets).sum()),
        _ => return None,
    };
    match kind {
        "resnets" => Some(format!("{path}.{}.0.{}", before + child, resnet_layer(rest)?)),
        "attentions" => Some(format!("{path}.{}.1.{rest}", before + child)),
        "downsamplers" => Some(format!("{path}.{}.0.op", before + down.get(block)?.resnets)),
        // A layer that doubles the size is the last child of the block's last output block.
        "upsamplers" => {
            let block = up.get(block)?;
            Some(format!("{path}.{}.{}.conv", before + block.resnets - 1, 1 + usize::from(block.attends)))
        }
        _ => None,
    }
}

fn resnet_layer(layer: &str) -> Option<&'static str> {
    Some(match layer {
        "conv1" => "in_layers.2",
        "conv2" => "out_layers.3",
        "time_emb_proj" => "emb_layers.1",
        "conv_shortcut" => "skip_connection",
        _ => return None,
    })
}

fn outer_layer(layer: &str) -> Option<&'static str> {
    Some(match layer {
        "conv_in" => "input_blocks.0.0",
        "conv_out" => "out.2",
        "time_embedding.linear_1" => "time_embed.0",
        "time_embedding.linear_2" => "time_embed.2",
        "add_embedding.linear_1" => "label_emb.0.0",
        "add_embedding.linear_2" => "label_emb.0.2",
        _ => return None,
    })
}
