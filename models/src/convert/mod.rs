//! Models from one layout into another: a diffusers folder, a single file with the original names, a GGUF file of the
//! denoiser; with weights in other types or quantised.
//!
//! Tensors go through one at a time, so memory holds the largest, not the model. What is written has a name of its own
//! until it is whole.

mod encode;
mod joined;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use encode::Encoder;
pub use encode::Encoding;
use joined::Joined;
use serde_json::{Value, json};
use writer::Kind;

pub use aquatint_kernels::Format;
pub use candle_core::DType;

use crate::checkpoint::single_file::CONFIGS;
use crate::checkpoint::view::Views;
use crate::checkpoint::{Component, ModelFolder};
use crate::{Error, Result};

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A folder in the diffusers layout.
    Folder,
    /// One file with the names of the original code; in a block format, a GGUF file of the denoiser.
    Single,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Tensors.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// What a caller is told meanwhile: bytes that are written, and bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// The version of diffusers whose layout is written.
const DIFFUSERS_VERSION: &str = "0.35.2";

/// Files of a folder that are not weights, beside the components' configs.
const TEXTS: [&str; 9] = [
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "added_tokens.json",
    "spiece.model",
    "config.json",
    "scheduler_config.json",
];
const FOLDERS: [&str; 8] =
    ["scheduler", "tokenizer", "tokenizer_2", "unet", "transformer", "vae", "text_encoder", "text_encoder_2"];

/// Writes the model at `input`, a folder or a single file, to `output`, which must not exist yet.
///
/// # Errors
/// A model that cannot be read, a layout or encoding that it cannot have, and what the disk says. Nothing stands at
/// `output` then.
pub fn convert(
    input: &Path,
    output: &Path,
    layout: Layout,
    encoding: Encoding,
    progress: Progress<'_>,
) -> Result<Written> {
    if output.exists() {
        return Err(Error::file(output, "exists already: choose another name, or remove it first"));
    }
    let model = ModelFolder::open(input)?;
    let partial = partial(output);
    remove(&partial);
    let done = match layout {
        Layout::Folder => folder(&model, &partial, encoding, progress),
        Layout::Single => single(&model, &partial, encoding, progress),
    };
    let done = done.and_then(|written| {
        std::fs::rename(&partial, output).map_err(|e| Error::file(output, e))?;
        Ok(written)
    });
    if done.is_err() {
        remove(&partial);
    }
    done
}

/// Where it is written until it is whole.
fn partial(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    output.with_file_name(name)
}

fn remove(path: &Path) {
    let _may_not_exist =
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

/// The components that a model has weights of.
fn components(model: &ModelFolder) -> Result<Vec<(Component, Views)>> {
    let has = |component: &Component| match model {
        ModelFolder::Single(file) => file.components().any(|c| c == *component),
        _ => model.path(component.folder()).is_dir(),
    };
    let views = |component: Component| Ok((component, model.views(component.folder())?));
    Component::ALL.into_iter().filter(has).map(views).collect()
}

fn folder(model: &ModelFolder, output: &Path, encoding: Encoding, progress: Progress<'_>) -> Result<Written> {
    if let Encoding::Block(format) = encoding {
        return Err(Error::invalid(format!("{format:?} stands in GGUF files alone: --to single writes one")));
    }
    let parts = components(model)?;
    let total: u64 = parts.iter().map(|(_, views)| views.bytes()).sum();
    let mut written = Written::default();
    for (component, views) in &parts {
        let encoder = Encoder::new(encoding, *component);
        let joined: Vec<_> = views.names().map(|name| Joined::whole(name)).collect();
        let file = match component {
            Component::TextEncoder | Component::TextEncoder2 => "model.safetensors",
            _ => "diffusion_pytorch_model.safetensors",
        };
        let path = output.join(component.folder()).join(file);
        create_parent(&path)?;
        let parts = joined.into_iter().map(|joined| (joined, views)).collect();
        let before = written.bytes;
        let done = writer::write(&path, Kind::Safetensors(BTreeMap::new()), parts, &encoder, &mut |bytes| {
            progress(before + bytes, total.max(before + bytes));
        })?;
        written.tensors += done.tensors;
        written.bytes += done.bytes;
    }
    for folder in FOLDERS {
        for file in TEXTS.map(|name| format!("{folder}/{name}")) {
            if model.contains(&file) {
                write_text(&output.join(&file), &model.read(&file)?)?;
            }
        }
    }
    let index = model_index(model)?;
    write_text(&output.join("model_index.json"), format!("{index:#}\n").as_bytes())?;
    Ok(written)
}

fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|e| Error::file(parent, e))
}

fn write_text(path: &Path, bytes: &[u8]) -> Result<()> {
    create_parent(path)?;
    std::fs::write(path, bytes).map_err(|e| Error::file(path, e))
}

/// `model_index.json` with the classes that diffusers asks for.
fn model_index(model: &ModelFolder) -> Result<Value> {
    let mut index: serde_json::Map<String, Value> = model.json("model_index.json")?;
    let scheduler: Value = model.json("scheduler/scheduler_config.json")?;
    let flux = model.contains("transformer/config.json");
    let classes = [
        ("unet", "diffusers", "UNet2DConditionModel"),
        ("transformer", "diffusers", "FluxTransformer2DModel"),
        ("vae", "diffusers", "AutoencoderKL"),
        ("text_encoder", "transformers", "CLIPTextModel"),
        (
            "text_encoder_2",
            "transformers",
            if flux { "T5EncoderModel" } else { "CLIPTextModelWithProjection" },
        ),
    ];
    let mut put = |name: &str, value: Value| _ = index.entry(name).or_insert(value);
    for (component, library, class) in classes {
        if model.contains(&format!("{component}/config.json")) {
            put(component, json!([library, class]));
        }
    }
    for (tokenizer, class) in [
        ("tokenizer", "CLIPTokenizer"),
        ("tokenizer_2", if flux { "T5TokenizerFast" } else { "CLIPTokenizer" }),
    ] {
        let files = ["vocab.json", "tokenizer.json", "spiece.model"];
        let encodes =
            model.contains(&format!("{}/config.json", tokenizer.replace("tokenizer", "text_encoder")));
        if encodes && files.iter().any(|file| model.contains(&format!("{tokenizer}/{file}"))) {
            put(tokenizer, json!(["transformers", class]));
        }
    }
    // Some of diffusers' pipelines look for it.
    put("_diffusers_version", DIFFUSERS_VERSION.into());
    if let Some(class) = scheduler.get("_class_name") {
        put("scheduler", json!(["diffusers", class]));
    }
    if !flux && !model.contains("text_encoder_2/config.json") {
        put("safety_checker", json!([null, null]));
        put("feature_extractor", json!([null, null]));
        put("requires_safety_checker", false.into());
    }
    Ok(Value::from(index))
}

fn single(model: &ModelFolder, output: &Path, encoding: Encoding, progress: Progress<'_>) -> Result<Written> {
    let mut parts = components(model)?;
    let gguf = match encoding {
        Encoding::Block(format) => {
            parts.retain(|(component, _)| matches!(component, Component::Unet | Component::Transformer));
            Some(format)
        }
        _ => None,
    };
    let Some((denoiser, _)) = parts.first() else {
        return Err(Error::file(model.path(""), "holds no denoiser"));
    };
    let denoiser = *denoiser;
    let family = Family::of(model, denoiser);
    let total: u64 = parts.iter().map(|(_, views)| views.bytes()).sum();
    let mut tensors = Vec::new();
    for (component, views) in &parts {
        let joined = joined::originals(*component, family, views)
            .map_err(|e| Error::file(model.path(component.folder()), e))?;
        // A GGUF file of the denoiser alone has no prefix.
        let prefix = if gguf.is_some() { "" } else { family.prefix(*component) };
        tensors.extend(joined.into_iter().map(|joined| (joined.below(prefix), views)));
    }
    let kind = match gguf {
        Some(format) => Kind::Gguf { architecture: family.architecture(), format },
        None => Kind::Safetensors(BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            (CONFIGS.to_owned(), configs(model)?),
        ])),
    };
    let encoder = Encoder::new(encoding, denoiser);
    writer::write(output, kind, tensors, &encoder, &mut |bytes| progress(bytes, total.max(bytes)))
}

/// All configs as one JSON object, for the header.
fn configs(model: &ModelFolder) -> Result<String> {
    let mut all = serde_json::Map::new();
    let components = FOLDERS.map(|folder| format!("{folder}/config.json"));
    let others = ["model_index.json", "scheduler/scheduler_config.json"].map(str::to_owned);
    for file in components.into_iter().chain(others) {
        if model.contains(&file) {
            all.insert(file.clone(), model.json(&file)?);
        }
    }
    Ok(Value::from(all).to_string())
}

/// Whose original code's names a single file gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Sd1,
    Sd2,
    Sdxl,
    SdxlRefiner,
    Flux,
}

impl Family {
    fn of(model: &ModelFolder, denoiser: Component) -> Self {
        let has = |folder: &str| model.contains(&format!("{folder}/config.json"));
        let linear = || {
            let config: Value = model.json("unet/config.json").unwrap_or_default();
            config.get("use_linear_projection") == Some(&Value::Bool(true))
        };
        match (denoiser, has("text_encoder"), has("text_encoder_2")) {
            (Component::Transformer, ..) => Self::Flux,
            (_, true, true) => Self::Sdxl,
            (_, false, true) => Self::SdxlRefiner,
            _ if linear() => Self::Sd2,
            _ => Self::Sd1,
        }
    }

    fn prefix(self, component: Component) -> &'static str {
        match (component, self) {
            (Component::Unet | Component::Transformer, _) => "model.diffusion_model.",
            (Component::Vae, Self::Flux) => "vae.",
            (Component::Vae, _) => "first_stage_model.",
            (Component::TextEncoder, Self::Flux) => "text_encoders.clip_l.transformer.",
            (Component::TextEncoder, Self::Sd2) => "cond_stage_model.model.",
            (Component::TextEncoder, Self::Sd1) => "cond_stage_model.transformer.",
            (Component::TextEncoder, _) => "conditioner.embedders.0.transformer.",
            (Component::TextEncoder2, Self::Flux) => "text_encoders.t5xxl.transformer.",
            (Component::TextEncoder2, Self::SdxlRefiner) => "conditioner.embedders.0.model.",
            (Component::TextEncoder2, _) => "conditioner.embedders.1.model.",
        }
    }

    /// What programs of llama.cpp's kind call it.
    fn architecture(self) -> &'static str {
        match self {
            Self::Sd1 | Self::Sd2 => "sd1",
            Self::Sdxl | Self::SdxlRefiner => "sdxl",
            Self::Flux => "flux",
        }
    }
}
