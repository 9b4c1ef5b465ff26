//! Which published model a file is like.

use super::Parts;
use crate::checkpoint::file::CheckpointFile;
use crate::checkpoint::original::Component;
use crate::checkpoint::published::Published;
use crate::checkpoint::view::Views;

/// Families that share names with those that are known, and by which of their tensors they are told.
const OTHERS: [(&str, &str); 5] = [
    ("joint_blocks.", "Stable Diffusion 3"),
    ("control_model.", "a ControlNet"),
    ("controlnet_cond_embedding.", "a ControlNet"),
    ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
    ("edm_mean", "Playground v2.5, whose noise schedule is not supported"),
];

/// The published model of the family that these parts are of. The error is a reason.
pub(super) fn like(file: &CheckpointFile, parts: &Parts) -> Result<&'static Published, String> {
    let begins = |prefix: &str| file.entries().keys().any(|name| name.starts_with(prefix));
    if let Some((_, what)) = OTHERS.iter().find(|(prefix, _)| begins(prefix)) {
        return Err(format!("this is {what}: Stable Diffusion 1.x, 2.x, SDXL and FLUX.1 are supported"));
    }
    let name = match (parts.get(&Component::Transformer), parts.get(&Component::Unet)) {
        (Some(transformer), _) => flux(transformer)?,
        (None, Some(unet)) => stable_diffusion(unet, parts)?,
        (None, None) => return Err(no_denoiser(parts)),
    };
    Published::named(name).ok_or_else(|| format!("no published model {name}"))
}

fn flux(transformer: &Views) -> Result<&'static str, String> {
    let columns = |name: &str| transformer.shape(name).and_then(|shape| shape.get(1).copied());
    let rows = |name: &str| transformer.shape(name).and_then(|shape| shape.first().copied());
    let (Some(input), Some(output)) = (columns("x_embedder.weight"), rows("proj_out.weight")) else {
        return Err("this is no FLUX transformer: its first or last layer is missing".into());
    };
    // Fill's tokens hold more than a control model's, which have two pictures.
    Ok(if input > 2 * output {
        "flux-fill"
    } else if transformer.shape("time_text_embed.guidance_embedder.linear_1.weight").is_some() {
        "flux-dev"
    } else {
        "flux-schnell"
    })
}

fn stable_diffusion(unet: &Views, parts: &Parts) -> Result<&'static str, String> {
    let channels = unet.shape("conv_in.weight").and_then(|shape| shape.get(1).copied());
    let inpaints = match channels {
        Some(4) => false,
        Some(9) => true,
        Some(8) => {
            return Err("this edits pictures by instruction (InstructPix2Pix), which is not supported".into());
        }
        Some(5) => return Err("this takes a depth map, which is not supported".into()),
        other => {
            return Err(format!("its UNet takes {other:?} channels: 4, or 9 for inpainting, are supported"));
        }
    };
    let prompt_channels = || {
        let name = unet.names().find(|name| name.ends_with(".attn2.to_k.weight"))?;
        unet.shape(name)?.get(1).copied()
    };
    if unet.shape("add_embedding.linear_1.weight").is_some() {
        let first = parts.contains_key(&Component::TextEncoder);
        let second = parts.contains_key(&Component::TextEncoder2);
        let refines = if first || second { !first } else { prompt_channels() == Some(1280) };
        return Ok(match (refines, inpaints) {
            (true, _) => "sdxl-refiner",
            (false, true) => "sdxl-inpainting",
            (false, false) => "sdxl",
        });
    }
    // SD 2.x has matrices around its transformers, SD 1.x convolutions.
    let proj_in = unet.names().find(|name| name.ends_with(".proj_in.weight"));
    let linear = proj_in.and_then(|name| unet.shape(name)).is_some_and(|shape| shape.len() == 2);
    Ok(match (linear, inpaints) {
        (true, _) => "sd21",
        (false, true) => "sd15-inpainting",
        (false, false) => "sd15",
    })
}

fn no_denoiser(parts: &Parts) -> String {
    let alone = |what: &str, flag: &str| {
        format!("holds no UNet or transformer, only {what}: give it as {flag} beside a --model")
    };
    if parts.contains_key(&Component::Vae) {
        alone("a VAE", "--vae")
    } else if parts.contains_key(&Component::TextEncoder2) {
        alone("a text encoder (T5)", "--t5")
    } else if parts.contains_key(&Component::TextEncoder) {
        alone("a text encoder (CLIP)", "--text-encoder")
    } else {
        "holds no model of a known family: Stable Diffusion 1.x, 2.x, SDXL and FLUX.1 are; LoRAs are given as --lora"
            .into()
    }
}
