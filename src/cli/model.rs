//! From flags to a model, checked before anything large is read.

use std::path::{Path, PathBuf};

use aquatint_models::checkpoint::file::CheckpointFile;
use aquatint_models::checkpoint::published::Dummy;
use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use aquatint_models::checkpoint::{SingleFile, builtin, map_files};
use aquatint_models::pipeline::{self, LoadOptions, ModelSource, Pipeline};

use super::Failure;
use super::hub::{Download, Finder};
use crate::engine::pipeline::{PipelineBackend, name_of};
use crate::engine::{EngineError, LoraChoice, ModelEntry, ModelInfo, Preset};
use crate::settings::{DeviceChoice, EightBits, ModelArgs, Precision, RefineMode, ServeArgs};

/// Where a model comes from, and what of it is still to be fetched.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) source: ModelSource,
    download: Option<Download>,
}

/// What to load, and the LoRAs to merge into it.
#[derive(Clone)]
pub(super) struct Choice {
    pub(super) origin: Origin,
    pub(super) options: LoadOptions,
    pub(super) loras: Vec<LoraChoice>,
    /// What is loaded where the source cannot be.
    pub(super) fallback: Option<Origin>,
}

impl Origin {
    fn here(source: ModelSource) -> Self {
        Self { source, download: None }
    }

    /// Fetches what is missing, and reads it.
    fn load(&self, options: &LoadOptions) -> Result<PipelineBackend, EngineError> {
        self.download.as_ref().map_or(Ok(()), Download::fetch)?;
        PipelineBackend::load(&self.source, options)
    }

    /// What it is, by its configs, and about how many bytes its weights take.
    fn describe(&self) -> Result<(ModelInfo, u64), EngineError> {
        let (info, bytes) = Pipeline::describe(&self.source)?;
        Ok((info, bytes + self.download.as_ref().map_or(0, Download::bytes)))
    }

    /// The name that it has in the registry: its folder's or repository's, and nothing else of the path.
    fn name(&self) -> String {
        match &self.source {
            ModelSource::Builtin => "builtin".to_owned(),
            ModelSource::Dummy(Dummy::Published(model)) => model.name.to_owned(),
            // Files in the hub's cache are links to blobs, whose names say nothing.
            ModelSource::Folder(path) if path.is_file() => name_of(path),
            // `models/sdxl/.` and `.` are named as what they are.
            ModelSource::Dummy(Dummy::Folder(path)) | ModelSource::Folder(path) => {
                name_of(&path.canonicalize().unwrap_or_else(|_| path.clone()))
            }
        }
    }
}

impl Choice {
    pub(super) fn new(args: &ModelArgs, finder: &Finder) -> Result<Self, Failure> {
        let file = |flag: &str, path: &Option<PathBuf>| {
            path.as_deref().map(|path| finder.file(flag, path)).transpose()
        };
        let (unet, t5) = (file("--unet", &args.unet)?, file("--t5", &args.t5)?);
        let text_encoder = file("--text-encoder", &args.text_encoder)?;
        for (flag, file) in [("--unet", &unet), ("--t5", &t5), ("--text-encoder", &text_encoder)] {
            if let Some(path) = file {
                weights_file(flag, path, |path| CheckpointFile::open(path).map(drop))?;
            }
        }
        let vae = args.vae.as_deref().map(|vae| finder.model("--vae", vae)).transpose()?;
        if let Some(vae) = vae.as_deref().filter(|vae| !vae.is_dir()) {
            weights_file("--vae", vae, |path| CheckpointFile::open(path).map(drop))?;
        }
        let refiner = args.refiner.as_deref().map(|path| finder.pipeline("--refiner", path)).transpose()?;
        if let Some(refiner) = &refiner {
            folder("--refiner", refiner, DIFFUSERS)?;
        }
        let fallback = args.fallback.as_deref().map(|text| origin("--fallback", text, finder)).transpose()?;
        let origin = match (args.dummy_weights.clone(), args.model.as_deref(), finder.mounted_model()) {
            (Some(model), ..) => Ok(Origin::here(ModelSource::Dummy(model))),
            (None, Some(text), _) => origin("--model", text, finder),
            (None, None, Some(folder)) => Ok(Origin::here(ModelSource::Folder(folder))),
            (None, None, None) => Ok(Origin::here(ModelSource::Builtin)),
        };
        let origin = match (origin, &fallback, &args.model) {
            // It may be gated or not there yet: the fallback is what that is for.
            (Err(Failure::BadInput(reason) | Failure::Other(reason)), Some(_), Some(model)) => {
                tracing::warn!("{reason}");
                Origin::here(ModelSource::Folder(model.into()))
            }
            (origin, ..) => origin?,
        };
        map_files(!args.no_mmap);
        let lcm = lcm_lora(args.lcm_lora.as_deref(), &origin.source);
        let lcm = lcm.map(|path| LoraChoice { path, scale: 1.0, preset: Some(Preset::LCM_LORA) });
        let loras =
            args.lora.iter().map(|lora| ("--lora", lora)).chain(lcm.iter().map(|lora| ("--lcm-lora", lora)));
        // What a LoRA distils to is in the name that was given: those in the hub's cache say less.
        let find = |(flag, lora): (&str, &LoraChoice)| {
            Ok(LoraChoice { path: safetensors_file(flag, &lora.path, finder)?, ..lora.clone() })
        };
        let loras = loras.map(find).collect::<Result<Vec<_>, Failure>>()?;
        let inversions = args.textual_inversion.iter();
        let inversions = inversions.map(|path| safetensors_file("--textual-inversion", path, finder));
        let textual_inversions = inversions.collect::<Result<Vec<_>, _>>()?;
        let options = LoadOptions {
            precision: match args.dtype {
                Precision::Auto => pipeline::Precision::Auto,
                Precision::Fp32 => pipeline::Precision::Fp32,
                Precision::Fp16 => pipeline::Precision::Fp16,
                Precision::Bf16 => pipeline::Precision::Bf16,
            },
            quantisation: args.quantise.map(|to| match to {
                EightBits::Fp8 => pipeline::EightBits::F8E4M3,
                EightBits::Int8 => pipeline::EightBits::Int8,
            }),
            device: match args.device {
                DeviceChoice::Auto => pipeline::DeviceChoice::Auto,
                DeviceChoice::Cpu => pipeline::DeviceChoice::Cpu,
                DeviceChoice::Cuda => pipeline::DeviceChoice::Cuda,
            },
            unet,
            vae,
            vae_tiling: args.vae_tiling,
            refiner,
            refiner_starts_at: Some(args.denoising_end),
            textual_inversions,
            fitting_textual_inversions: Vec::new(),
            t5,
            text_encoder,
            prediction_type: args.prediction_type.map(|kind| kind.name().to_owned()),
            first_request: None,
            memory_bytes: args.memory.map(|gib| (gib * (1u64 << 30) as f64) as u64),
        };
        Ok(Self { origin, options, loras, fallback })
    }

    /// Loads the model, or what stands in for it.
    pub(super) fn load(&self) -> Result<PipelineBackend, EngineError> {
        let error = match self.origin.load(&self.options) {
            Err(error) => error,
            loaded => return loaded,
        };
        let Some(fallback) = &self.fallback else { return Err(error) };
        let asked = self.origin.name();
        tracing::warn!("{asked} cannot be loaded, {} stands in for it: {error}", fallback.name());
        Ok(fallback.load(&self.options_of_another())?.standing_in_for(asked))
    }

    /// What the source or its fallback is, by its configs, and about how many bytes its weights take.
    pub(super) fn describe(&self) -> Result<(ModelInfo, u64), EngineError> {
        match (self.origin.describe(), &self.fallback) {
            (Err(_), Some(fallback)) => {
                let (info, bytes) = fallback.describe()?;
                Ok((ModelInfo { fallback_for: Some(self.origin.name()), ..info }, bytes))
            }
            (described, _) => described,
        }
    }

    /// The options without what replaces parts of this model: that belongs to it alone.
    fn options_of_another(&self) -> LoadOptions {
        LoadOptions {
            precision: self.options.precision,
            quantisation: self.options.quantisation,
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

/// A model by its folder, by its id on the hub, or the built-in one. Of the hub's, only the configs are fetched here.
fn origin(flag: &str, text: &str, finder: &Finder) -> Result<Origin, Failure> {
    if text == "builtin" {
        return Ok(Origin::here(ModelSource::Builtin));
    }
    if let Some(download) = finder.download(flag, text)? {
        return Ok(Origin {
            source: ModelSource::Folder(download.folder().to_owned()),
            download: Some(download),
        });
    }
    let path = finder.file(flag, Path::new(text))?;
    folder(flag, &path, DIFFUSERS)?;
    Ok(Origin::here(ModelSource::Folder(path)))
}

/// All models of a server: `choice` is the default one, to which the captioning model belongs.
pub(super) fn registry(
    args: &ServeArgs,
    choice: &Choice,
    caption_model: Option<PathBuf>,
    finder: &Finder,
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
    let default = ModelEntry::new(choice.origin.name(), load).with_loras(choice.loras.clone());
    let mut models = vec![default.described(info, bytes)];
    for (name, folder) in &args.capacity.add_model {
        if models.iter().any(|model| model.name == *name) {
            return Err(Failure::BadInput(format!("--add-model {name}: there is a model of this name")));
        }
        let origin = origin("--add-model", folder, finder)?;
        let (info, bytes) = origin.describe()?;
        let options = choice.options_of_another();
        let load = move || origin.load(&options);
        models.push(ModelEntry::new(name, load).described(info, bytes));
    }
    Ok(models)
}

/// The captioning model's folder, for a server whose `/refine` needs one.
pub(super) fn caption_model(args: &ServeArgs, finder: &Finder) -> Result<Option<PathBuf>, Failure> {
    match (args.defaults.refine_mode, &args.caption_model) {
        (RefineMode::Caption, Some(path)) => {
            let path = finder.model("--caption-model", path)?;
            folder("--caption-model", &path, BLIP)?;
            Ok(Some(path))
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

fn folder(flag: &str, path: &Path, Layout { index, allowed }: Layout) -> Result<(), Failure> {
    if path.is_file() && index == DIFFUSERS.index {
        return weights_file(flag, path, |path| SingleFile::open(path).map(drop));
    }
    let reason = if !path.exists() {
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

/// A LoRA or a textual inversion, here or on the hub.
pub(super) fn safetensors_file(flag: &str, path: &Path, finder: &Finder) -> Result<PathBuf, Failure> {
    let path = finder.file(flag, path)?;
    weights_file(flag, &path, safetensors)?;
    Ok(path)
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
