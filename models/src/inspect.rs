//! What a file or folder is, read off its headers and configs: no tensor is read, but for a textual inversion's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use crate::checkpoint::original::Original;
use crate::checkpoint::safetensors_file::SafetensorsFile;
use crate::checkpoint::stored::StoredType;
use crate::checkpoint::{CheckpointFile, Component, ModelFolder, SingleFile};
use crate::lora::LoraFile;
use crate::pipeline::{ModelSource, Pipeline};
use crate::text::textual_inversion::TextualInversion;
use crate::{Error, Result};

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A folder in the diffusers layout.
    Folder,
    /// A file with a denoiser and at least one other component.
    Checkpoint,
    /// A UNet alone.
    Unet,
    /// A FLUX transformer alone.
    Transformer,
    /// A VAE alone.
    Vae,
    /// A CLIP text encoder alone.
    TextEncoder,
    /// T5 alone.
    T5,
    /// A LoRA or one of its relatives.
    Lora,
    /// Embeddings of a new token.
    TextualInversion,
    /// None of these.
    Unknown,
}

/// Tensors of one stored type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// How many there are.
    pub tensors: u64,
    /// Elements of all.
    pub parameters: u64,
}

/// A LoRA's own facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoraFacts {
    /// Who wrote it.
    pub format: String,
    /// Layers that it changes.
    pub layers: usize,
    /// Ranks of their differences, sorted.
    pub ranks: Vec<usize>,
    /// Components that it changes.
    pub components: Vec<&'static str>,
    /// Keys that nothing is known of.
    pub unknown_keys: usize,
}

/// A textual inversion's own facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EmbeddingFacts {
    /// The token, where the file names it.
    pub token: Option<String>,
    /// Vectors it stands for.
    pub vectors: usize,
    /// Channels of those of the first and of the second text encoder.
    pub channels: Vec<usize>,
}

/// What is known of a file or folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// What it is.
    pub kind: Kind,
    /// Its family, as `aquatint models` names them; of a LoRA, that of the models that it fits.
    pub family: Option<String>,
    /// The published model that it has the shapes of, but for its sizes.
    pub like: Option<&'static str>,
    /// What its denoiser predicts: of a single file, as far as it can be told.
    pub prediction_type: Option<String>,
    /// Components that it has.
    pub components: Vec<&'static str>,
    /// Components that a model of its family needs and it has not.
    pub missing: Vec<&'static str>,
    /// Tensors by the type that they are stored in.
    pub types: BTreeMap<String, Count>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Of a LoRA.
    pub lora: Option<LoraFacts>,
    /// Of a textual inversion.
    pub embedding: Option<EmbeddingFacts>,
    /// Whether this program can use it, and how; or why it cannot.
    pub usage: String,
}

impl Inspection {
    fn new(kind: Kind, usage: impl Into<String>) -> Self {
        Self {
            kind,
            family: None,
            like: None,
            prediction_type: None,
            components: Vec::new(),
            missing: Vec::new(),
            types: BTreeMap::new(),
            parameters: 0,
            bytes: 0,
            lora: None,
            embedding: None,
            usage: usage.into(),
        }
    }

    fn count<'a>(mut self, tensors: impl Iterator<Item = (StoredType, &'a [usize])>) -> Self {
        for (stored, shape) in tensors {
            let parameters = shape.iter().product::<usize>() as u64;
            let count = self.types.entry(stored.to_string()).or_default();
            count.tensors += 1;
            count.parameters += parameters;
            let (len, bytes) = stored.block();
            self.parameters += parameters;
            self.bytes += parameters / len as u64 * bytes as u64;
        }
        self
    }
}

/// Finds out what a file or folder is.
///
/// # Errors
/// What cannot be read, and files that are malformed.
pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection> {
    let path = path.as_ref();
    if path.is_dir() {
        return folder(path);
    }
    let file = CheckpointFile::open(path)?;
    let entries = || file.entries().values().map(|entry| (entry.stored_type, &entry.shape[..]));
    Ok(of_file(path, &file)?.count(entries()))
}

fn of_file(path: &Path, file: &CheckpointFile) -> Result<Inspection> {
    if let CheckpointFile::Safetensors(_) = file {
        let open = || SafetensorsFile::open(path);
        if let Ok(lora) = LoraFile::new(open()?) {
            return lora_file(path, file, &lora);
        }
        if let Ok(inversion) = TextualInversion::new(&open()?) {
            return embedding(path, &inversion);
        }
    }
    let shown = path.display();
    let original = Original::of(file.entries().keys().map(String::as_str));
    let components = original.components();
    let has = |component| components.contains(&component);
    if has(Component::Unet) || has(Component::Transformer) {
        return match SingleFile::open(path) {
            Ok(single) => single_file(path, &single),
            Err(Error::File { reason, .. }) => Ok(Inspection::new(Kind::Unknown, reason)),
            Err(other) => Err(other),
        };
    }
    let mut alone = if has(Component::Vae) {
        Inspection::new(Kind::Vae, format!("--vae {shown}, beside a --model"))
    } else if has(Component::TextEncoder2) {
        Inspection::new(Kind::T5, format!("--t5 {shown}, beside a --model of FLUX"))
    } else if has(Component::TextEncoder) {
        Inspection::new(Kind::TextEncoder, format!("--text-encoder {shown}, beside a --model"))
    } else {
        let known = "no model, part of one, LoRA or textual inversion that this program knows";
        Inspection::new(Kind::Unknown, known)
    };
    alone.components = components.into_iter().map(Component::folder).collect();
    Ok(alone)
}

fn single_file(path: &Path, single: &SingleFile) -> Result<Inspection> {
    let shown = path.display();
    let components: Vec<_> = single.components().collect();
    let missing = single.missing();
    let flags = missing.iter().filter_map(|component| match component {
        Component::Vae => Some("--vae FILE"),
        Component::TextEncoder => Some("--text-encoder FILE"),
        Component::TextEncoder2 if components.contains(&Component::Transformer) => Some("--t5 FILE"),
        _ => None,
    });
    let flags: Vec<_> = flags.collect();
    // What has no flag of its own comes with the rest of a model.
    let (kind, usage) = match (components.as_slice(), flags.len() == missing.len()) {
        ([Component::Unet], _) => (Kind::Unet, format!("--unet {shown}, beside a --model that has the rest")),
        ([Component::Transformer], _) => (
            Kind::Transformer,
            format!(
                "--unet {shown}, beside a --model that has the rest; or --model {shown} {}",
                flags.join(" ")
            ),
        ),
        (_, true) => (Kind::Checkpoint, format!("--model {shown} {}", flags.join(" "))),
        (_, false) => (Kind::Checkpoint, format!("--unet {shown}, beside a --model that has the rest")),
    };
    let mut inspection = Inspection::new(kind, usage.trim_end());
    let (info, _) = Pipeline::describe(&ModelSource::Folder(path.to_owned()))?;
    inspection.family = Some(info.family.name().to_owned());
    inspection.like = Some(single.like().name);
    inspection.prediction_type = Some(single.prediction().to_owned());
    inspection.components = components.into_iter().map(Component::folder).collect();
    inspection.missing = missing.into_iter().map(Component::folder).collect();
    Ok(inspection)
}

fn folder(path: &Path) -> Result<Inspection> {
    let model = ModelFolder::open(path)?;
    let source = ModelSource::Folder(path.to_owned());
    let mut inspection = Inspection::new(Kind::Folder, format!("--model {}", path.display()));
    match Pipeline::describe(&source) {
        Ok((info, _)) => inspection.family = Some(info.family.name().to_owned()),
        Err(Error::File { reason, .. } | Error::Invalid(reason)) => inspection.usage = reason,
        Err(other) => return Err(other),
    }
    let scheduler: serde_json::Value = model.json("scheduler/scheduler_config.json").unwrap_or_default();
    let said = |key: &str| scheduler.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
    inspection.prediction_type = match said("_class_name") {
        Some(class) if class.starts_with("FlowMatch") => Some("flow".into()),
        _ => said("prediction_type").or(Some("epsilon".into())),
    };
    for component in Component::ALL {
        let name = component.folder();
        if !path.join(name).is_dir() {
            continue;
        }
        match model.views(name) {
            Ok(views) => {
                inspection.components.push(name);
                let tensors =
                    views.names().filter_map(|name| Some((views.stored_type(name)?, views.shape(name)?)));
                inspection = inspection.count(tensors);
            }
            Err(_) => inspection.missing.push(name),
        }
    }
    Ok(inspection)
}

fn lora_file(path: &Path, file: &CheckpointFile, lora: &LoraFile) -> Result<Inspection> {
    let components = lora.components();
    let mut inspection =
        Inspection::new(Kind::Lora, format!("--lora {}[:SCALE], beside a --model", path.display()));
    inspection.family = lora_family(file, &components).map(str::to_owned);
    inspection.lora = Some(LoraFacts {
        format: lora.format().to_string(),
        layers: lora.layers(),
        ranks: lora.ranks()?.into_iter().collect(),
        components: components.into_iter().collect(),
        unknown_keys: lora.unknown().len(),
    });
    Ok(inspection)
}

/// The family of the models that a LoRA fits: FLUX's layers have names of their own; the others' prompts have a number
/// of channels, which the keys of a cross-attention take.
fn lora_family(file: &CheckpointFile, components: &BTreeSet<&'static str>) -> Option<&'static str> {
    let names = || file.entries().keys();
    let flux =
        ["double_blocks", "single_blocks", "single_transformer_blocks", "transformer.transformer_blocks"];
    if names().any(|name| flux.iter().any(|layer| name.contains(layer))) {
        return Some("flux");
    }
    let down =
        [".lora_down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight", ".hada_w1_b"];
    let keys = |name: &&String| {
        let name = name.replace('.', "_");
        name.contains("attn2_to_k") || name.contains("attn2_processor_to_k")
    };
    let columns = names().filter(keys).find_map(|name| {
        down.iter().any(|end| name.ends_with(end)).then(|| file.entries().get(name)?.shape.get(1).copied())?
    });
    match columns {
        Some(768) => Some("sd15"),
        Some(1024) => Some("sd21"),
        Some(2048) => Some("sdxl"),
        Some(1280) => Some("sdxl-refiner"),
        _ if components.contains(Component::TextEncoder2.folder()) => Some("sdxl"),
        _ => None,
    }
}

fn embedding(path: &Path, inversion: &TextualInversion) -> Result<Inspection> {
    let both = [&inversion.text_encoder, &inversion.text_encoder_2];
    let shapes: Vec<_> = both.into_iter().flatten().map(candle_core::Tensor::dims).collect();
    let channels: Vec<usize> = shapes.iter().filter_map(|shape| shape.get(1).copied()).collect();
    let usage = format!("--textual-inversion {}, beside a --model", path.display());
    let mut inspection = Inspection::new(Kind::TextualInversion, usage);
    inspection.family = match channels.as_slice() {
        [768] => Some("sd15".into()),
        [1024] => Some("sd21".into()),
        [_, _] => Some("sdxl".into()),
        _ => None,
    };
    inspection.embedding = Some(EmbeddingFacts {
        token: inversion.token.clone(),
        vectors: shapes.first().and_then(|shape| shape.first().copied()).unwrap_or(0),
        channels,
    });
    Ok(inspection)
}
