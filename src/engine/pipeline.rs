//! The real backend: `aquatint_models`' pipeline, and its captioner beside it.

use std::path::Path;

use aquatint_models::caption::Captioner;
use aquatint_models::pipeline::{self, LoadOptions, ModelSource, Pipeline};
use image::RgbImage;

use super::{Backend, Denoising, DeviceMemory, EngineError, GenerationRequest, LoraChoice, ModelInfo};

/// A pipeline on its device.
pub struct PipelineBackend {
    pipeline: Pipeline,
    captioner: Option<Captioner>,
    fallback_for: Option<String>,
}

impl PipelineBackend {
    /// Reads the model's files.
    pub fn load(source: &ModelSource, options: &LoadOptions) -> Result<Self, EngineError> {
        Ok(Self { pipeline: Pipeline::load(source, options)?, captioner: None, fallback_for: None })
    }

    /// Says in every reply that another model was asked for.
    #[must_use]
    pub fn standing_in_for(self, model: String) -> Self {
        Self { fallback_for: Some(model), ..self }
    }

    /// Reads a captioning model's folder too, onto the same device.
    pub fn with_captioner(self, folder: &Path) -> Result<Self, EngineError> {
        let captioner = Captioner::load(folder, self.pipeline.device())?;
        Ok(Self { captioner: Some(captioner), ..self })
    }
}

impl Backend for PipelineBackend {
    type Denoising = pipeline::Denoising;

    fn info(&self) -> ModelInfo {
        let info = self.pipeline.info();
        // Clients read the name, and the rest of the path is none of their business.
        let name = name_of(Path::new(&info.name));
        ModelInfo { name, fallback_for: self.fallback_for.clone(), ..info }
    }

    fn set_loras(&mut self, loras: &[LoraChoice]) -> Result<(), EngineError> {
        for report in self.pipeline.set_loras(loras)? {
            let (path, layers, unmatched) = (report.path.display(), report.layers, report.unmatched.len());
            tracing::info!(%path, format = ?report.format, layers, matched = report.matched, unmatched, "LoRA merged");
            if let Some(example) = report.unmatched.first() {
                tracing::warn!(%path, unmatched, example, "a part of the LoRA does not fit this model");
            }
        }
        Ok(())
    }

    fn caption(&self, image: &RgbImage) -> Result<String, EngineError> {
        let missing = || EngineError::Failed("no captioning model is loaded".into());
        Ok(self.captioner.as_ref().ok_or_else(missing)?.caption(image)?)
    }

    fn start(&self, request: &GenerationRequest) -> Result<Self::Denoising, EngineError> {
        Ok(self.pipeline.start(request)?)
    }

    fn step(&self, batch: &mut [&mut Self::Denoising]) -> Result<(), EngineError> {
        Ok(self.pipeline.step_together(batch)?)
    }

    fn decode(&self, denoising: &Self::Denoising, sparing: bool) -> Result<RgbImage, EngineError> {
        Ok(match sparing {
            true => self.pipeline.decode_tiled(denoising)?,
            false => self.pipeline.decode(denoising)?,
        })
    }

    fn preview(&self, denoising: &Self::Denoising) -> Result<Option<RgbImage>, EngineError> {
        Ok(Some(self.pipeline.preview(denoising)?))
    }

    fn warm_up(&self) -> Result<(), EngineError> {
        Ok(self.pipeline.warm_up()?)
    }

    fn free_memory(&self) {
        if let Err(error) = self.pipeline.free_memory() {
            tracing::warn!(%error, "memory could not be given back");
        }
    }

    fn device_memory(&self) -> Option<DeviceMemory> {
        self.pipeline.device_memory()
    }

    fn weight_bytes(&self) -> u64 {
        self.pipeline.weight_bytes()
    }

    fn repeated(&self) -> u64 {
        self.pipeline.repeated()
    }

    fn prompt_cache(&self) -> (u64, u64) {
        self.pipeline.prompt_counts()
    }
}

impl Denoising for pipeline::Denoising {
    fn steps(&self) -> usize {
        self.steps()
    }

    fn position(&self) -> usize {
        self.position()
    }

    fn joins(&self, other: &Self) -> bool {
        self.joins(other)
    }
}

/// What a model is called: as its file without the extension, as its folder, or, in the hub's cache, where folders are called by commits, as
/// its repository.
pub fn name_of(folder: &Path) -> String {
    let names: Vec<_> = folder.iter().rev().take(3).map(|name| name.to_string_lossy()).collect();
    match &names[..] {
        [_, snapshots, repo] if snapshots == "snapshots" => {
            repo.rsplit("--").next().unwrap_or(repo).to_owned()
        }
        [name, ..] if folder.is_file() => name.rsplit_once('.').map_or(&**name, |(stem, _)| stem).to_owned(),
        [name, ..] => name.clone().into_owned(),
        [] => "model".to_owned(),
    }
}
