//! The VAE's tensors in the names of the original latent diffusion checkpoints as diffusers' names.

/// The diffusers name of a VAE's tensor; `blocks` is the number of `block_out_channels`.
///
/// Names that are diffusers' already stay as they are. `None`: the tensor belongs to something else, such as the loss
/// of a training run. Source: `convert_ldm_vae_checkpoint` of diffusers.
pub(crate) fn diffusers_name(key: &str, blocks: usize) -> Option<String> {
    let (part, rest) = key.split_once('.')?;
    match part {
        "quant_conv" | "post_quant_conv" => Some(key.to_owned()),
        "encoder" | "decoder" => Some(format!("{part}.{}", within_part(rest, blocks)?)),
        _ => None,
    }
}

/// The number of blocks that the original names of a VAE's tensors tell.
pub(crate) fn blocks<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    let block = |name: &str| {
        let rest = name.strip_prefix("encoder.down.").or_else(|| name.strip_prefix("decoder.up."))?;
        rest.split('.').next()?.parse::<usize>().ok()?.checked_add(1)
    };
    names.filter_map(block).max().unwrap_or(0)
}

/// Every original name that a VAE of so many blocks can have, and more.
pub(crate) fn ldm_names(blocks: usize, layers: usize) -> Vec<String> {
    let resnet = ["norm1", "conv1", "norm2", "conv2", "nin_shortcut"];
    let mut modules = vec!["quant_conv".to_owned(), "post_quant_conv".to_owned()];
    for (part, direction, resize, layers) in
        [("encoder", "down", "downsample", layers), ("decoder", "up", "upsample", layers + 1)]
    {
        modules.extend(["conv_in", "conv_out", "norm_out"].map(|name| format!("{part}.{name}")));
        for block in ["block_1", "block_2"] {
            modules.extend(resnet.map(|name| format!("{part}.mid.{block}.{name}")));
        }
        let attention = ["norm", "q", "k", "v", "proj_out"];
        modules.extend(attention.map(|name| format!("{part}.mid.attn_1.{name}")));
        for i in 0..blocks {
            modules.push(format!("{part}.{direction}.{i}.{resize}.conv"));
            for j in 0..layers {
                modules.extend(resnet.map(|name| format!("{part}.{direction}.{i}.block.{j}.{name}")));
            }
        }
    }
    modules.iter().flat_map(|module| [format!("{module}.weight"), format!("{module}.bias")]).collect()
}

/// The same below `encoder` or `decoder`.
fn within_part(key: &str, blocks: usize) -> Option<String> {
    let names: Vec<&str> = key.split('.').collect();
    let resnet = |rest: &[&str]| rest.join(".").replace("nin_shortcut", "conv_shortcut");
    // The original counts the decoder's blocks from the finest, diffusers in the order they are run.
    let reversed = |i: &str| blocks.checked_sub(1)?.checked_sub(i.parse().ok()?);
    Some(match names.as_slice() {
        ["norm_out", param] => format!("conv_norm_out.{param}"),
        ["mid", "block_1", rest @ ..] => format!("mid_block.resnets.0.{}", resnet(rest)),
        ["mid", "block_2", rest @ ..] => format!("mid_block.resnets.1.{}", resnet(rest)),
        ["mid", "attn_1", name, param] => format!("mid_block.attentions.0.{}.{param}", attention(name)?),
        ["down", i, "block", j, rest @ ..] => format!("down_blocks.{i}.resnets.{j}.{}", resnet(rest)),
        ["down", i, "downsample", rest @ ..] => format!("down_blocks.{i}.downsamplers.0.{}", rest.join(".")),
        ["up", i, "block", j, rest @ ..] => {
            format!("up_blocks.{}.resnets.{j}.{}", reversed(i)?, resnet(rest))
        }
        ["up", i, "upsample", rest @ ..] => {
            format!("up_blocks.{}.upsamplers.0.{}", reversed(i)?, rest.join("."))
        }
        ["mid" | "down" | "up", ..] => return None,
        _ => key.to_owned(),
    })
}

fn attention(name: &str) -> Option<&'static str> {
    Some(match name {
        "norm" => "group_norm",
        "q" => "to_q",
        "k" => "to_k",
        "v" => "to_v",
        "proj_out" => "to_out.0",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::diffusers_name;

    /// The whole map is checked against diffusers in `tests/parity/vae.rs`; here is what it leaves out.
    #[test]
    fn other_tensors_are_left_out() {
        for key in ["loss.logvar", "model.diffusion_model.out.2.bias", "model_ema.decay", "encoder", ""] {
            assert_eq!(diffusers_name(key, 4), None, "{key}");
        }
        assert_eq!(
            diffusers_name("decoder.up.9.block.0.conv1.weight", 4),
            None,
            "more blocks than the config has"
        );
        assert_eq!(diffusers_name("decoder.mid.attn_1.other.weight", 4), None);
    }
}
