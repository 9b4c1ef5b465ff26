//! The model in the program itself: SDXL's layout, tiny, trained on emoji; `models/demo` tells how.
//!
//! It exists so that the program draws on a fresh machine without a network. It is loaded by the ordinary loader: only
//! its bytes come from elsewhere. Without the feature `demo` the weights stay out of the program and are computed from
//! their names instead ([`super::synthetic`]): coloured noise, but the same shapes.

use std::path::Path;

use super::ModelFolder;

/// What a path inside the program begins with.
pub const PREFIX: &str = "builtin:";

/// Whether the trained weights are in this program.
pub const TRAINED: bool = cfg!(feature = "demo");

/// Its LCM-LoRA: 4 steps without guidance.
pub const LCM_LORA: &str = "builtin:lora/lcm-lora.safetensors";

/// Its style LoRA: two-colour prints.
pub const STYLE_LORA: &str = "builtin:lora/duotone.safetensors";

macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../demo/", $name)) as &[u8])
    };
}

static FILES: &[(&str, &[u8])] = &[
    file!("model_index.json"),
    file!("scheduler/scheduler_config.json"),
    file!("text_encoder/config.json"),
    file!("text_encoder_2/config.json"),
    file!("tokenizer/merges.txt"),
    file!("tokenizer/special_tokens_map.json"),
    file!("tokenizer/vocab.json"),
    file!("tokenizer_2/merges.txt"),
    file!("tokenizer_2/special_tokens_map.json"),
    file!("tokenizer_2/vocab.json"),
    file!("unet/config.json"),
    file!("vae/config.json"),
    #[cfg(feature = "demo")]
    file!("text_encoder/model.safetensors"),
    #[cfg(feature = "demo")]
    file!("text_encoder_2/model.safetensors"),
    #[cfg(feature = "demo")]
    file!("unet/diffusion_pytorch_model.safetensors"),
    #[cfg(feature = "demo")]
    file!("vae/diffusion_pytorch_model.safetensors"),
    #[cfg(feature = "demo")]
    file!("lora/lcm-lora.safetensors"),
    #[cfg(feature = "demo")]
    file!("lora/duotone.safetensors"),
];

/// Its folder.
pub fn folder() -> ModelFolder {
    ModelFolder::Embedded(FILES)
}

/// The bytes of a path that begins with [`PREFIX`]; `None` for other paths and for files it does not hold.
pub fn file(path: &Path) -> Option<&'static [u8]> {
    let name = path.to_str()?.strip_prefix(PREFIX)?;
    FILES.iter().find(|(file, _)| *file == name).map(|(_, bytes)| *bytes)
}
