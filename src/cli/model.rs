//! From flags to a model, checked before anything large is read.

use std::path::Path;

use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use aquatint_models::pipeline::{self, LoadOptions, ModelSource};

use super::Failure;
use crate::engine::{EngineError, LoraChoice};
use crate::settings::{DeviceChoice, ModelArgs, Precision};

/// What to load, and the LoRAs to merge into it.
pub(super) struct Choice {
    pub(super) source: ModelSource,
    pub(super) options: LoadOptions,
    pub(super) loras: Vec<LoraChoice>,
}

impl Choice {
    pub(super) fn new(args: &ModelArgs) -> Result<Self, Failure> {
        if let Some(unet) = &args.unet {
            weights_file("--unet", unet)?;
        }
        if let Some(vae) = args.vae.as_deref().filter(|vae| !vae.is_dir()) {
            weights_file("--vae", vae)?;
        }
        if let Some(refiner) = &args.refiner {
            folder("--refiner", refiner)?;
        }
        let lcm = args.lcm_lora.iter().map(|path| LoraChoice { path: path.clone(), scale: 1.0, lcm: true });
        let loras: Vec<_> = args.lora.iter().cloned().chain(lcm).collect();
        for lora in &loras {
            weights_file("--lora", &lora.path)?;
        }
        for inversion in &args.textual_inversion {
            weights_file("--textual-inversion", inversion)?;
        }
        let options = LoadOptions {
            precision: match args.dtype {
                Precision::Auto => pipeline::Precision::Auto,
                Precision::Fp32 => pipeline::Precision::Fp32,
                Precision::Fp16 => pipeline::Precision::Fp16,
                Precision::Bf16 => pipeline::Precision::Bf16,
            },
            device: match args.device {
                DeviceChoice::Auto => pipeline::DeviceChoice::Auto,
                DeviceChoice::Cpu => pipeline::DeviceChoice::Cpu,
                DeviceChoice::Cuda => pipeline::DeviceChoice::Cuda,
            },
            unet: args.unet.clone(),
            vae: args.vae.clone(),
            refiner: args.refiner.clone(),
            textual_inversions: args.textual_inversion.clone(),
            ..LoadOptions::default()
        };
        Ok(Self { source: source(args.model.as_deref())?, options, loras })
    }
}

/// Sets the number of computing threads; to be called once, before anything is computed.
pub(super) fn use_threads(threads: Option<usize>) -> Result<(), Failure> {
    let Some(threads) = threads else { return Ok(()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global().map_err(|error| Failure::Other(format!("--threads {threads}: {error}")))
}

fn source(model: Option<&str>) -> Result<ModelSource, Failure> {
    match model {
        None | Some("builtin") => Ok(ModelSource::Builtin),
        Some(text) => {
            let path = Path::new(text);
            if !path.exists() && looks_like_a_hub_id(text) {
                return Err(Failure::BadInput(format!(
                    "--model {text}: no such folder, and models are not downloaded from the Hugging Face hub yet: \
                     give a folder in the diffusers layout"
                )));
            }
            folder("--model", path)?;
            Ok(ModelSource::Folder(path.to_owned()))
        }
    }
}

/// `organisation/name`
fn looks_like_a_hub_id(text: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    text.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name))
}

fn folder(flag: &str, path: &Path) -> Result<(), Failure> {
    let reason = if !path.exists() {
        "no such folder"
    } else if !path.is_dir() {
        "is a file"
    } else if !path.join("model_index.json").is_file() {
        "holds no model_index.json"
    } else {
        return Ok(());
    };
    let allowed = "a model is a folder in the diffusers layout";
    Err(Failure::BadInput(format!("{flag} {}: {reason}: {allowed}", path.display())))
}

/// A file that is no safetensors file is refused by its header; pickles are named as such.
fn weights_file(flag: &str, path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        return Err(Failure::BadInput(format!(
            "{flag} {}: is a folder: a safetensors file is needed",
            path.display()
        )));
    }
    SafetensorsFile::open(path).map_err(|error| match EngineError::from(error) {
        EngineError::File { path, reason } => {
            Failure::BadInput(format!("{flag} {}: {reason}", path.display()))
        }
        other => other.into(),
    })?;
    Ok(())
}
