//! From flags to a model, checked before anything large is read.

use std::path::{Path, PathBuf};

use aquatint_models::checkpoint::file::CheckpointFile;
use aquatint_models::checkpoint::published::Dummy;
use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use aquatint_models::checkpoint::{SingleFile, builtin};
use aquatint_models::pipeline::{self, LoadOptions, ModelSource, Pipeline};

use super::Failure;
use crate::engine::pipeline::PipelineBackend;
use crate::engine::{EngineError, LoraChoice, ModelEntry, ModelInfo, Preset};
use crate::settings::{DeviceChoice, ModelArgs, Precision, RefineMode, ServeArgs};

/// What to load, and the LoRAs to merge into it.
#[derive(Clone)]
pub(super) struct Choice {
    pub(super) source: ModelSource,
    pub(super) options: LoadOptions,
    pub(super) loras: Vec<LoraChoice>,
    /// What is loaded where the source cannot be.
    pub(super) fallback: Option<ModelSource>,
}

impl Choice {
    pub(super) fn new(args: &ModelArgs) -> Result<Self, Failure> {
        for (flag, file) in
            [("--unet", &args.unet), ("--t5", &args.t5), ("--text-encoder", &args.text_encoder)]
        {
            if let Some(path) = file {
                weights_file(flag, path, |path| CheckpointFile::open(path).map(drop))?;
            }
        }
        if let Some(vae) = args.vae.as_deref().filter(|vae| !vae.is_dir()) {
            weights_file("--vae", vae, |path| CheckpointFile::open(path).map(drop))?;
        }
        if let Some(refiner) = &args.refiner {
            folder("--refiner", refiner, DIFFUSERS)?;
        }
        let fallback = args.fallback.as_deref().map(|text| source("--fallback", Some(text))).transpose()?;
        let source = match args.dummy_weights.clone() {
            Some(model) => Ok(ModelSource::Dummy(model)),
            None => source("--model", args.model.as_deref()),
        };
        let source = match (source, &fallback, &args.model) {
            // It may be gated or not there yet: the fallback is what that is for.
            (Err(Failure::BadInput(reason)), Some(_), Some(model)) => {
                tracing::warn!("{reason}");
                ModelSource::Folder(model.into())
            }
            (source, ..) => source?,
        };
        let lcm = lcm_lora(args.lcm_lora.as_deref(), &source);
        let lcm = lcm.map(|path| LoraChoice { path, scale: 1.0, preset: Some(Preset::LCM_LORA) });
        let loras: Vec<_> = args.lora.iter().cloned().chain(lcm).collect();
        for lora in &loras {
            weights_file("--lora", &lora.path, safetensors)?;
        }
        for inversion in &args.textual_inversion {
            weights_file("--textual-inversion", inversion, safetensors)?;
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
            vae_tiling: args.vae_tiling,
            refiner: args.refiner.clone(),
            refiner_starts_at: Some(args.denoising_end),
            textual_inversions: args.textual_inversion.clone(),
            t5: args.t5.clone(),
            text_encoder: args.text_encoder.clone(),
            prediction_type: args.prediction_type.map(|kind| kind.name().to_owned()),
            memory_bytes: args.memory.map(|gib| (gib * (1u64 << 30) as f64) as u64),
        };
        Ok(Self { source, options, loras, fallback })
    }

    /// Loads the model, or what stands in for it.
    pub(super) fn load(&self) -> Result<PipelineBackend, EngineError> {
        let error = match PipelineBackend::load(&self.source, &self.options) {
            Err(error) => error,
            loaded => return loaded,
        };
        let Some(fallback) = &self.fallback else { return Err(error) };
        let asked = name(&self.source);
        tracing::warn!("{asked} cannot be loaded, {} stands in for it: {error}", name(fallback));
        Ok(PipelineBackend::load(fallback, &self.options_of_another())?.standing_in_for(asked))
    }

    /// What the source or its fallback is, by its configs, and about how many bytes its weights take.
    pub(super) fn describe(&self) -> Result<(ModelInfo, u64), EngineError> {
        match (Pipeline::describe(&self.source), &self.fallback) {
            (Err(_), Some(fallback)) => {
                let (info, bytes) = Pipeline::describe(fallback)?;
                Ok((ModelInfo { fallback_for: Some(name(&self.source)), ..info }, bytes))
            }
            (described, _) => Ok(described?),
        }
    }

    /// The options without what replaces parts of this model: that belongs to it alone.
    fn options_of_another(&self) -> LoadOptions {
        LoadOptions {
            precision: self.options.precision,
            device: self.options.device,
            vae_tiling: self.options.vae_tiling,
            memory_bytes: self.options.memory_bytes,
            ..LoadOptions::default()
        }
    }
}

/// Sets the number of computing threads; to be called once, before anything is computed.
pub(super) fn use_threads(threads: Option<usize>) -> Result<(), Failure> {
    let Some(threads) = threads else { return Ok(()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global().map_err(|error| Failure::Other(format!("--threads {threads}: {error}")))
}

/// The LCM-LoRA to merge. The built-in model has one of its own, which is merged unless `none` is asked for.
fn lcm_lora(asked: Option<&Path>, source: &ModelSource) -> Option<PathBuf> {
    match asked {
        Some(path) if path == Path::new("none") => None,
        Some(path) => Some(path.to_owned()),
        None => (*source == ModelSource::Builtin && builtin::TRAINED).then(|| builtin::LCM_LORA.into()),
    }
}

fn source(flag: &str, model: Option<&str>) -> Result<ModelSource, Failure> {
    match model {
        None | Some("builtin") => Ok(ModelSource::Builtin),
        Some(text) => {
            folder(flag, Path::new(text), DIFFUSERS)?;
            Ok(ModelSource::Folder(text.into()))
        }
    }
}

/// The name that a model has in the registry: its folder's or file's, and nothing else of the path.
fn name(source: &ModelSource) -> String {
    match source {
        ModelSource::Builtin => "builtin".to_owned(),
        ModelSource::Dummy(Dummy::Published(model)) => model.name.to_owned(),
        ModelSource::Dummy(Dummy::Folder(path)) | ModelSource::Folder(path) => {
            // `models/sdxl/.` and `.` are named as what they are.
            let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
            let name = if whole.is_file() { whole.file_stem() } else { whole.file_name() };
            name.map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
        }
    }
}

/// All models of a server: `choice` is the default one, to which the captioning model belongs.
pub(super) fn registry(
    args: &ServeArgs,
    choice: &Choice,
    caption_model: Option<PathBuf>,
) -> Result<Vec<ModelEntry<PipelineBackend>>, Failure> {
    let (info, bytes) = choice.describe()?;
    let default = choice.clone();
    let load = move || {
        let backend = default.load()?;
        match &caption_model {
            Some(folder) => backend.with_captioner(folder),
            None => Ok(backend),
        }
    };
    let default = ModelEntry::new(name(&choice.source), load).with_loras(choice.loras.clone());
    let mut models = vec![default.described(info, bytes)];
    for (name, folder) in &args.capacity.add_model {
        if models.iter().any(|model| model.name == *name) {
            return Err(Failure::BadInput(format!("--add-model {name}: there is a model of this name")));
        }
        let source = source("--add-model", Some(folder))?;
        let (info, bytes) = Pipeline::describe(&source).map_err(EngineError::from)?;
        let options = choice.options_of_another();
        let load = move || PipelineBackend::load(&source, &options);
        models.push(ModelEntry::new(name, load).described(info, bytes));
    }
    Ok(models)
}

/// The captioning model's folder, for a server whose `/refine` needs one.
pub(super) fn caption_model(args: &ServeArgs) -> Result<Option<PathBuf>, Failure> {
    match (args.defaults.refine_mode, &args.caption_model) {
        (RefineMode::Caption, Some(path)) => {
            folder("--caption-model", path, BLIP)?;
            Ok(Some(path.clone()))
        }
        (RefineMode::Caption, None) => Err(Failure::BadInput(
            "--refine-mode caption (REFINE_MODE) needs a captioning model: \
             give BLIP's folder as --caption-model (SD_CAPTION_MODEL_ID)"
                .into(),
        )),
        (RefineMode::Img2Img, given) => {
            if given.is_some() {
                tracing::warn!(
                    "--caption-model (SD_CAPTION_MODEL_ID) has no effect: --refine-mode is img2img"
                );
            }
            Ok(None)
        }
    }
}

/// What a model's folder must look like.
struct Layout {
    /// The file that every such folder holds.
    index: &'static str,
    /// The rule, for errors.
    allowed: &'static str,
}

const DIFFUSERS: Layout = Layout {
    index: "model_index.json",
    allowed: "a model is a folder in the diffusers layout or a single file",
};
const BLIP: Layout =
    Layout { index: "config.json", allowed: "a captioning model is BLIP's folder as published" };

/// `organisation/name`
fn looks_like_a_hub_id(path: &Path) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    path.to_string_lossy().split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name))
}

fn folder(flag: &str, path: &Path, Layout { index, allowed }: Layout) -> Result<(), Failure> {
    if path.is_file() && index == DIFFUSERS.index {
        return weights_file(flag, path, |path| SingleFile::open(path).map(drop));
    }
    let reason = if !path.exists() && looks_like_a_hub_id(path) {
        "no such folder, and models are not downloaded from the Hugging Face hub yet".to_owned()
    } else if !path.exists() {
        "no such folder".to_owned()
    } else if !path.is_dir() {
        "is a file".to_owned()
    } else if !path.join(index).is_file() {
        format!("holds no {index}")
    } else {
        return Ok(());
    };
    Err(Failure::BadInput(format!("{flag} {}: {reason}: {allowed}", path.display())))
}

fn safetensors(path: &Path) -> Result<(), aquatint_models::Error> {
    SafetensorsFile::open(path).map(drop)
}

/// A file that is none of the kind that `open` takes is refused by its header; pickles are named as such.
fn weights_file(
    flag: &str,
    path: &Path,
    open: impl FnOnce(&Path) -> Result<(), aquatint_models::Error>,
) -> Result<(), Failure> {
    if path.is_dir() {
        return Err(Failure::BadInput(format!(
            "{flag} {}: is a folder: a safetensors file is needed",
            path.display()
        )));
    }
    open(path).map_err(|error| match EngineError::from(error) {
        EngineError::File { path, reason } => {
            Failure::BadInput(format!("{flag} {}: {reason}", path.display()))
        }
        other => other.into(),
    })?;
    Ok(())
}
