//! Published models without their weights: full shapes, random values made on the device, so that speed and memory can be
//! measured where there are no checkpoints. Pictures are noise.
//!
//! The configs are facts of `runwayml/stable-diffusion-v1-5`, `stabilityai/stable-diffusion-xl-base-1.0` and
//! `black-forest-labs/FLUX.1-{dev,schnell}`. The tokenizers are small ones: a prompt becomes other tokens, as many as
//! the encoders take in any case.

/// A model that exists in name and shape.
#[derive(Debug)]
pub struct Published {
    /// What it is asked for by.
    pub name: &'static str,
    /// Its configs and tokenizers by their path.
    pub(super) files: &'static [(&'static str, &'static [u8])],
}

macro_rules! files {
    ($($path:literal = $file:expr,)*) => {
        &[
            $(($path, include_bytes!(concat!("../../published/", $file)) as &[u8]),)*
            ("tokenizer/merges.txt", include_bytes!("../../demo/tokenizer/merges.txt")),
            ("tokenizer/special_tokens_map.json", include_bytes!("../../demo/tokenizer/special_tokens_map.json")),
            ("tokenizer/vocab.json", include_bytes!("../../demo/tokenizer/vocab.json")),
        ]
    };
}

macro_rules! flux {
    ($kind:literal) => {
        files! {
            "model_index.json" = "flux/model_index.json",
            "scheduler/scheduler_config.json" = concat!("flux/scheduler_", $kind, ".json"),
            "text_encoder/config.json" = "flux/text_encoder.json",
            "text_encoder_2/config.json" = "flux/text_encoder_2.json",
            "tokenizer_2/tokenizer.json" = "flux/t5_tokenizer.json",
            "transformer/config.json" = concat!("flux/transformer_", $kind, ".json"),
            "vae/config.json" = "flux/vae.json",
        }
    };
}

/// All of them.
pub static PUBLISHED: [Published; 4] = [
    Published {
        name: "sd15",
        files: files! {
            "model_index.json" = "sd15/model_index.json",
            "scheduler/scheduler_config.json" = "sd15/scheduler.json",
            "text_encoder/config.json" = "sd15/text_encoder.json",
            "unet/config.json" = "sd15/unet.json",
            "vae/config.json" = "sd15/vae.json",
        },
    },
    Published {
        name: "sdxl",
        files: files! {
            "model_index.json" = "sdxl/model_index.json",
            "scheduler/scheduler_config.json" = "sdxl/scheduler.json",
            "text_encoder/config.json" = "sdxl/text_encoder.json",
            "text_encoder_2/config.json" = "sdxl/text_encoder_2.json",
            "tokenizer_2/merges.txt" = "../demo/tokenizer_2/merges.txt",
            "tokenizer_2/special_tokens_map.json" = "../demo/tokenizer_2/special_tokens_map.json",
            "tokenizer_2/vocab.json" = "../demo/tokenizer_2/vocab.json",
            "unet/config.json" = "sdxl/unet.json",
            "vae/config.json" = "sdxl/vae.json",
        },
    },
    Published { name: "flux-dev", files: flux!("dev") },
    Published { name: "flux-schnell", files: flux!("schnell") },
];

impl PartialEq for Published {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Published {}
