//! A whole model in one file, as model sites offer them: the names of the original code, and no configs.
//!
//! It answers what a folder in diffusers' layout would: tensors under diffusers' names, component by component, and
//! configs that follow from names and shapes. What no shape tells (how many heads, how noise was scheduled) is the
//! published model's of the same family. Files that this program wrote hold their configs in the header.

mod configs;
mod family;
mod prediction;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::file::CheckpointFile;
use super::original::{Component, Original};
use super::published::Published;
use super::tokenizers::Tokenizer;
use super::view::Views;
use crate::{Error, Result};

/// Where the header of a file holds configs: one JSON object, path in the folder -> config.
pub const CONFIGS: &str = "aquatint.configs";

/// What of a model is in a file.
type Parts = BTreeMap<Component, Views>;

/// A file with a denoiser, and whatever else of a model.
#[derive(Clone, Debug)]
pub struct SingleFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: Arc<CheckpointFile>,
    like: &'static Published,
    prediction: &'static str,
    /// Bytes of each component's tensors.
    bytes: BTreeMap<Component, u64>,
    /// Configs by their path in a folder.
    configs: BTreeMap<String, Vec<u8>>,
}

impl SingleFile {
    /// Opens a file and finds out what it is; its tensors are not read.
    ///
    /// # Errors
    /// A malformed file, or one without a denoiser of a known family.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = Arc::new(CheckpointFile::open(path)?);
        let original = Original::of(file.entries().keys().map(String::as_str));
        let mut parts = Parts::new();
        for component in original.components() {
            parts.insert(component, Views::of_component(component, vec![file.clone()])?);
        }
        let bad = |reason: String| Error::file(path, reason);
        let like = family::like(&file, &parts).map_err(bad)?;
        let prediction = prediction::of(&file, &parts, like)?;
        let mut configs = configs::of(path, like, &parts, &prediction).map_err(bad)?;
        if let Some(text) = file.metadata().get(CONFIGS) {
            let own: BTreeMap<String, Value> =
                serde_json::from_str(text).map_err(|e| bad(format!("its header's {CONFIGS}: {e}")))?;
            configs.extend(own);
        }
        let configs = configs.into_iter().map(|(name, config)| (name, config.to_string().into_bytes()));
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            file,
            like,
            prediction: prediction.kind,
            bytes: parts.iter().map(|(component, views)| (*component, views.bytes())).collect(),
            configs: configs.collect(),
        })))
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The published model whose family it belongs to.
    pub fn like(&self) -> &'static Published {
        self.0.like
    }

    /// What its denoiser was found to predict: `epsilon`, `v_prediction` or `flow`.
    pub fn prediction(&self) -> &'static str {
        self.0.prediction
    }

    /// The components that it has.
    pub fn components(&self) -> impl Iterator<Item = Component> + '_ {
        self.0.bytes.keys().copied()
    }

    /// The components that a model of its family has and this file has not.
    pub fn missing(&self) -> Vec<Component> {
        let needed = |c: &Component| self.0.like.file(&format!("{}/config.json", c.folder())).is_some();
        let missing = |c: &Component| needed(c) && !self.0.bytes.contains_key(c);
        Component::ALL.into_iter().filter(missing).collect()
    }

    /// Bytes of a component's tensors; 0 where it has none.
    pub(super) fn weight_bytes(&self, component: &str) -> u64 {
        let component = Component::of_folder(component);
        component.and_then(|component| self.0.bytes.get(&component)).copied().unwrap_or(0)
    }

    /// The tensors of a component under diffusers' or transformers' names.
    pub(super) fn views(&self, component: &str) -> Result<Views> {
        let held = Component::of_folder(component).filter(|c| self.0.bytes.contains_key(c));
        match held {
            Some(component) => Views::of_component(component, vec![self.0.file.clone()]),
            None => Err(Error::file(&self.0.path, self.lacks(component))),
        }
    }

    /// What to do about a component that is not there.
    fn lacks(&self, component: &str) -> String {
        let flux = self.0.bytes.contains_key(&Component::Transformer);
        let (what, flag) = match component {
            "vae" => ("VAE", Some("--vae")),
            "text_encoder" => ("CLIP text encoder", Some("--text-encoder")),
            "text_encoder_2" if flux => ("T5", Some("--t5")),
            "text_encoder_2" => ("second text encoder", None),
            other => (other, None),
        };
        match flag {
            Some(flag) => format!("holds no {what}: give the file of one as {flag}"),
            None => format!("holds no {what}: give this file as --unet beside a --model that has the rest"),
        }
    }

    fn tokenizer(&self, folder: &str) -> Option<Tokenizer> {
        let flux = self.0.bytes.contains_key(&Component::Transformer);
        let encodes = folder.replace("tokenizer", "text_encoder");
        if !self.0.configs.contains_key(&format!("{encodes}/config.json")) {
            return None;
        }
        match folder {
            "tokenizer" if self.0.like.name == "sd21" => Some(Tokenizer::OpenClip),
            "tokenizer" => Some(Tokenizer::Clip),
            "tokenizer_2" if flux => Some(Tokenizer::T5),
            "tokenizer_2" => Some(Tokenizer::OpenClip),
            _ => None,
        }
    }

    /// The folder of a tokenizer that lies beside the file; it goes before the program's own.
    fn tokenizer_beside(&self, folder: &str) -> Option<PathBuf> {
        let path = self.0.path.with_file_name(folder);
        (self.tokenizer(folder).is_some() && path.is_dir()).then_some(path)
    }

    /// Whether a folder of this model would hold the file.
    pub(super) fn contains(&self, file: &str) -> bool {
        if self.0.configs.contains_key(file) {
            return true;
        }
        let Some((folder, name)) = file.split_once('/') else { return false };
        match self.tokenizer_beside(folder) {
            Some(folder) => folder.join(name).is_file(),
            None => self.tokenizer(folder).is_some_and(|tokenizer| tokenizer.has(name)),
        }
    }

    /// What a folder of this model would hold in the file.
    ///
    /// # Errors
    /// Where it would hold none of this name, or a tokenizer beside the file cannot be read.
    pub(super) fn read(&self, file: &str) -> Result<Cow<'_, [u8]>> {
        if let Some(config) = self.0.configs.get(file) {
            return Ok(config.into());
        }
        let none = || Error::file(self.0.path.join(file), "a single file of this family has no such part");
        let (folder, name) = file.split_once('/').ok_or_else(none)?;
        match self.tokenizer_beside(folder) {
            Some(folder) => {
                let path = folder.join(name);
                Ok(std::fs::read(&path).map_err(|e| Error::file(&path, e))?.into())
            }
            None => self.tokenizer(folder).and_then(|tokenizer| tokenizer.file(name)).ok_or_else(none),
        }
    }

    /// All configs, by their path in a folder.
    pub fn configs(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.0.configs
    }
}
