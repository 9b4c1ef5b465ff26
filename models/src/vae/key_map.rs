//! The names of the original latent diffusion checkpoints as diffusers' names.

/// The diffusers name of a VAE's tensor; `blocks` is the number of `block_out_channels`.
///
/// Names that are diffusers' already stay as they are. `None`: the tensor belongs to something else, such as the UNet
/// of a whole checkpoint or the loss of a training run. Source: `convert_ldm_vae_checkpoint` of diffusers.
pub fn diffusers_key(key: &str, blocks: usize) -> Option<String> {
    let key = ["first_stage_model.", "vae."].iter().find_map(|p| key.strip_prefix(p)).unwrap_or(key);
    let (part, rest) = key.split_once('.')?;
    match part {
        "quant_conv" | "post_quant_conv" => Some(key.to_owned()),
        "encoder" | "decoder" => Some(format!("{part}.{}", within_part(rest, blocks)?)),
        _ => None,
    }
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
    use super::diffusers_key;

    /// The whole map is checked against diffusers in `tests/parity/vae.rs`; here is what it leaves out.
    #[test]
    fn other_tensors_are_left_out() {
        for key in ["loss.logvar", "model.diffusion_model.out.2.bias", "model_ema.decay", "encoder", ""] {
            assert_eq!(diffusers_key(key, 4), None, "{key}");
        }
        assert_eq!(
            diffusers_key("decoder.up.9.block.0.conv1.weight", 4),
            None,
            "more blocks than the config has"
        );
        assert_eq!(diffusers_key("decoder.mid.attn_1.other.weight", 4), None);
    }
}
