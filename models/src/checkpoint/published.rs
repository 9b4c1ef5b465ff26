//! Published models without their weights: full shapes, random values made on the device, so that speed and memory can be
//! measured where there are no checkpoints. Pictures are noise.
//!
//! The configs are facts of `runwayml/stable-diffusion-{v1-5,inpainting}`, `stabilityai/stable-diffusion-2-1`,
//! `stabilityai/stable-diffusion-xl-{base,refiner}-1.0`, `diffusers/stable-diffusion-xl-1.0-inpainting-0.1` and
//! `black-forest-labs/FLUX.1-{dev,schnell,Fill-dev}`; single files, which have none of their own, take them from here.
//! The tokenizers are small ones: a prompt becomes other tokens, as many as the encoders take in any case.

use std::path::PathBuf;

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
    ($index:literal, $transformer:literal, $scheduler:literal) => {
        files! {
            "model_index.json" = $index,
            "scheduler/scheduler_config.json" = $scheduler,
            "text_encoder/config.json" = "flux/text_encoder.json",
            "text_encoder_2/config.json" = "flux/text_encoder_2.json",
            "tokenizer_2/tokenizer.json" = "flux/t5_tokenizer.json",
            "transformer/config.json" = $transformer,
            "vae/config.json" = "flux/vae.json",
        }
    };
}

macro_rules! sd {
    ($index:literal, $unet:literal, $folder:literal) => {
        files! {
            "model_index.json" = $index,
            "scheduler/scheduler_config.json" = concat!($folder, "/scheduler.json"),
            "text_encoder/config.json" = concat!($folder, "/text_encoder.json"),
            "unet/config.json" = $unet,
            "vae/config.json" = concat!($folder, "/vae.json"),
        }
    };
}

macro_rules! sdxl {
    ($index:literal, $unet:literal $(, $text_encoder:literal)?) => {
        files! {
            "model_index.json" = $index,
            "scheduler/scheduler_config.json" = "sdxl/scheduler.json",
            $("text_encoder/config.json" = $text_encoder,)?
            "text_encoder_2/config.json" = "sdxl/text_encoder_2.json",
            "tokenizer_2/merges.txt" = "../demo/tokenizer_2/merges.txt",
            "tokenizer_2/special_tokens_map.json" = "../demo/tokenizer_2/special_tokens_map.json",
            "tokenizer_2/vocab.json" = "../demo/tokenizer_2/vocab.json",
            "unet/config.json" = $unet,
            "vae/config.json" = "sdxl/vae.json",
        }
    };
}

/// All of them.
pub static PUBLISHED: [Published; 9] = [
    Published { name: "sd15", files: sd!("sd15/model_index.json", "sd15/unet.json", "sd15") },
    Published {
        name: "sd15-inpainting",
        files: sd!("sd15/model_index_inpainting.json", "sd15/unet_inpainting.json", "sd15"),
    },
    Published { name: "sd21", files: sd!("sd21/model_index.json", "sd21/unet.json", "sd21") },
    Published {
        name: "sdxl",
        files: sdxl!("sdxl/model_index.json", "sdxl/unet.json", "sdxl/text_encoder.json"),
    },
    Published {
        name: "sdxl-inpainting",
        files: sdxl!(
            "sdxl/model_index_inpainting.json",
            "sdxl/unet_inpainting.json",
            "sdxl/text_encoder.json"
        ),
    },
    Published {
        name: "sdxl-refiner",
        files: sdxl!("sdxl/model_index_refiner.json", "sdxl/unet_refiner.json"),
    },
    Published {
        name: "flux-dev",
        files: flux!("flux/model_index.json", "flux/transformer_dev.json", "flux/scheduler_dev.json"),
    },
    Published {
        name: "flux-schnell",
        files: flux!("flux/model_index.json", "flux/transformer_schnell.json", "flux/scheduler_schnell.json"),
    },
    Published {
        name: "flux-fill",
        files: flux!("flux/model_index_fill.json", "flux/transformer_fill.json", "flux/scheduler_dev.json"),
    },
];

impl Published {
    /// The model of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        PUBLISHED.iter().find(|model| model.name == name)
    }

    /// One of its files.
    pub(super) fn file(&self, path: &str) -> Option<&'static [u8]> {
        self.files.iter().find(|(name, _)| *name == path).map(|(_, bytes)| *bytes)
    }
}

/// Shapes without weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dummy {
    /// Those of a published model.
    Published(&'static Published),
    /// Those of a folder of configs.
    Folder(PathBuf),
}

impl PartialEq for Published {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Published {}
