//! A model in the diffusers folder layout: `model_index.json` and a folder for each component; or a single file, which
//! answers as such a folder would.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde::de::DeserializeOwned;

use super::published::Published;
use super::safetensors_file::SafetensorsFile;
use super::single_file::SingleFile;
use super::stored::StoredType;
use super::tokenizers::Tokenizer;
use super::view::Views;
use super::weights::held_as;
use super::{Weights, builtin};
use crate::{Error, Result};

/// A folder on disk, or what stands in for one.
#[derive(Clone, Debug)]
pub enum ModelFolder {
    /// A folder on disk.
    Disk(PathBuf),
    /// A single file, with configs that follow from its tensors.
    Single(SingleFile),
    /// A folder on disk of which configs and tokenizers are read; weights are random.
    Untrained(PathBuf),
    /// Files in the program itself, by their path; weights that are not among them are synthetic.
    Embedded(Files),
    /// A published model's shapes, with random weights.
    Published(&'static Published),
}

/// Files by their path.
type Files = &'static [(&'static str, &'static [u8])];

/// File names of a component's weights, in order of preference.
const WEIGHTS: [&str; 4] = [
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors",
    "model.fp16.safetensors",
];

/// Below this size what replaces 16-bit weights on the CPU, a merged LoRA say, is held in 32 bits.
const WIDEN_BELOW_BYTES: u64 = 1 << 30;

/// What random weights are held in where nothing else is asked for: large models are published so.
pub const RANDOM_WEIGHTS: DType = DType::BF16;

impl ModelFolder {
    /// A folder on disk that holds a `model_index.json`, or a single file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_file() {
            return Ok(Self::Single(SingleFile::open(path)?));
        }
        if !path.is_dir() {
            return Err(Error::file(
                path,
                "no such file or folder: a model is a folder in the diffusers layout or a single file",
            ));
        }
        let folder = Self::Disk(path.to_owned());
        if !folder.contains("model_index.json") {
            return Err(Error::file(
                path,
                "holds no model_index.json: a model is a folder in the diffusers layout",
            ));
        }
        Ok(folder)
    }

    /// A folder on disk that holds a `model_index.json`; weights in it are not read but made up.
    pub fn untrained(path: impl AsRef<Path>) -> Result<Self> {
        match Self::open(path)? {
            Self::Disk(path) => Ok(Self::Untrained(path)),
            other => Err(Error::file(other.path(""), "is no folder of configs")),
        }
    }

    /// The files that are in the program.
    fn embedded(&self) -> Files {
        match self {
            Self::Disk(_) | Self::Single(_) | Self::Untrained(_) => &[],
            Self::Embedded(files) => files,
            Self::Published(model) => model.files,
        }
    }

    /// How errors and listings name it.
    pub fn name(&self) -> String {
        match self {
            Self::Disk(path) | Self::Untrained(path) => path.display().to_string(),
            Self::Single(file) => file.path().display().to_string(),
            Self::Embedded(_) => "builtin".to_owned(),
            Self::Published(model) => model.name.to_owned(),
        }
    }

    /// The path of a file in it, for errors and for reading.
    pub fn path(&self, file: &str) -> PathBuf {
        match self {
            Self::Disk(path) | Self::Untrained(path) => path.join(file),
            Self::Single(single) => single.path().join(file),
            Self::Embedded(_) => PathBuf::from(format!("{}{file}", builtin::PREFIX)),
            Self::Published(model) => PathBuf::from(format!("{}:{file}", model.name)),
        }
    }

    /// Whether it holds the file.
    pub fn contains(&self, file: &str) -> bool {
        match self {
            Self::Disk(path) => path.join(file).is_file(),
            Self::Untrained(path) => {
                path.join(file).is_file() || shared_tokenizer(path, file).is_some_and(|(t, name)| t.has(name))
            }
            Self::Single(single) => single.contains(file),
            Self::Embedded(_) | Self::Published(_) => self.embedded().iter().any(|(name, _)| *name == file),
        }
    }

    /// A whole file.
    pub fn read(&self, file: &str) -> Result<Vec<u8>> {
        match self {
            Self::Disk(path) => read(&path.join(file)),
            Self::Untrained(path) => match shared_tokenizer(path, file).and_then(|(t, name)| t.file(name)) {
                Some(bytes) => Ok(bytes.into_owned()),
                None => read(&path.join(file)),
            },
            Self::Single(single) => Ok(single.read(file)?.into_owned()),
            Self::Embedded(_) | Self::Published(_) => {
                match self.embedded().iter().find(|(name, _)| *name == file) {
                    Some((_, bytes)) => Ok(bytes.to_vec()),
                    None => Err(Error::file(self.path(file), "no such file")),
                }
            }
        }
    }

    /// A JSON file; an error names the field that does not fit.
    pub fn json<T: DeserializeOwned>(&self, file: &str) -> Result<T> {
        serde_json::from_slice(&self.read(file)?).map_err(|e| Error::file(self.path(file), e))
    }

    /// The weights of a component. `dtype`: what matrices are held in; `None` chooses by size, and leaves quantised
    /// ones and eight-bit floats as they are.
    pub fn weights(&self, component: &str, dtype: Option<DType>, device: &Device) -> Result<Weights> {
        let views = match self {
            Self::Published(_) | Self::Untrained(_) => {
                return Ok(Weights::random(component, dtype.unwrap_or(RANDOM_WEIGHTS), device));
            }
            Self::Embedded(files) => return embedded(files, component, dtype, device),
            Self::Disk(_) | Self::Single(_) => self.views(component)?,
        };
        let widen = device.is_cpu() && views.bytes() < WIDEN_BELOW_BYTES && !views.any_encoded();
        Ok(Weights::from_views(component, views, dtype.or(widen.then_some(DType::F32)), device))
    }

    /// The tensors of a component on disk, under diffusers' names.
    ///
    /// # Errors
    /// Where it has none, or its files cannot be read.
    pub fn views(&self, component: &str) -> Result<Views> {
        match self {
            Self::Single(file) => file.views(component),
            _ => Views::open(component, &self.weight_files(component)?),
        }
    }

    /// Bytes of a component's weights in the types that [`Self::weights`] holds them in.
    pub fn held_bytes(&self, component: &str, dtype: Option<DType>, on_cpu: bool) -> Result<u64> {
        let views = match self {
            Self::Disk(_) | Self::Single(_) => self.views(component)?,
            _ => return Ok(self.weight_bytes(component)),
        };
        let widen = on_cpu && views.bytes() < WIDEN_BELOW_BYTES && !views.any_encoded();
        let dtype = dtype.or(widen.then_some(DType::F32));
        let bytes = |name: &String| {
            let elements: usize = views.shape(name).unwrap_or_default().iter().product();
            let (len, size) = match (dtype, views.stored_type(name)) {
                (_, Some(StoredType::Plain(stored))) => (1, held_as(stored, dtype, on_cpu).size_in_bytes()),
                (Some(dtype), _) => (1, dtype.size_in_bytes()),
                (None, Some(stored)) => stored.block(),
                (None, None) => (1, 0),
            };
            (elements / len * size) as u64
        };
        Ok(views.names().map(bytes).sum())
    }

    fn weight_files(&self, component: &str) -> Result<Vec<PathBuf>> {
        let folder = self.path(component);
        match WEIGHTS.iter().find(|name| folder.join(name).is_file()) {
            Some(name) => Ok(vec![folder.join(name)]),
            None => match self.gguf(component)? {
                Some(path) => Ok(vec![path]),
                None => self.shards(component),
            },
        }
    }

    /// The one GGUF file of a component that has no safetensors.
    fn gguf(&self, component: &str) -> Result<Option<PathBuf>> {
        let folder = self.path(component);
        let Ok(files) = std::fs::read_dir(&folder) else { return Ok(None) };
        let paths = files.filter_map(|file| Some(file.ok()?.path()));
        let mut paths: Vec<_> =
            paths.filter(|p| p.is_file() && p.extension().is_some_and(|e| e == "gguf")).collect();
        paths.sort();
        match paths.len() {
            0 | 1 => Ok(paths.pop()),
            n => Err(Error::file(
                folder,
                format!("holds {n} GGUF files: one is needed, or a model in safetensors"),
            )),
        }
    }

    /// Bytes of a component's weights in their files; 0 where it has none.
    pub fn weight_bytes(&self, component: &str) -> u64 {
        match self {
            Self::Disk(_) => self.weight_files(component).map_or(0, |paths| bytes(&paths)),
            Self::Single(file) => file.weight_bytes(component),
            Self::Published(_) | Self::Untrained(_) => 0,
            Self::Embedded(files) => {
                embedded_file(files, component).map_or(0, |(_, bytes)| bytes.len() as u64)
            }
        }
    }

    /// The files of a sharded component, from its `*.safetensors.index.json`.
    fn shards(&self, component: &str) -> Result<Vec<PathBuf>> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: std::collections::BTreeMap<String, String>,
        }
        for name in WEIGHTS {
            let index = format!("{component}/{name}.index.json");
            // diffusers writes the variant after the index: model.safetensors.index.fp16.json
            let variant =
                format!("{component}/{}.safetensors.index.fp16.json", name.split('.').next().unwrap_or(name));
            for index in [index, variant] {
                if !self.contains(&index) {
                    continue;
                }
                let map: Index = self.json(&index)?;
                let mut names: Vec<_> = map.weight_map.into_values().collect();
                names.sort();
                names.dedup();
                if let Some(name) = names.iter().find(|n| n.contains(['/', '\\']) || n.starts_with('.')) {
                    return Err(Error::file(self.path(&index), format!("{name:?} is no file name")));
                }
                return Ok(names.iter().map(|n| self.path(component).join(n)).collect());
            }
        }
        let pickle = ["diffusion_pytorch_model.bin", "pytorch_model.bin"];
        if let Some(name) = pickle.iter().find(|n| self.contains(&format!("{component}/{n}"))) {
            let path = self.path(component).join(name);
            return Err(Error::file(
                path,
                "this is a Python pickle, which can run code: only safetensors are read",
            ));
        }
        Err(Error::file(
            self.path(component),
            format!("holds no weights: one of {} or a GGUF file is needed", WEIGHTS.join(", ")),
        ))
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::file(path, e))
}

/// The tokenizer of a file that a folder of configs does not have itself, and the file's name.
fn shared_tokenizer<'a>(folder: &Path, file: &'a str) -> Option<(Tokenizer, &'a str)> {
    let (component, name) = file.split_once('/')?;
    if folder.join(component).is_dir() {
        return None;
    }
    let tokenizer = match component {
        "tokenizer" => Tokenizer::Clip,
        "tokenizer_2" if folder.join("transformer").is_dir() => Tokenizer::T5,
        "tokenizer_2" => Tokenizer::OpenClip,
        _ => return None,
    };
    Some((tokenizer, name))
}

/// Weights in the program: one file a component, or synthetic ones where there is none.
fn embedded(
    files: &[(&'static str, &'static [u8])],
    component: &str,
    dtype: Option<DType>,
    device: &Device,
) -> Result<Weights> {
    let Some((file, bytes)) = embedded_file(files, component) else {
        return Ok(Weights::synthetic(component, 0, device));
    };
    let file = SafetensorsFile::from_bytes(&format!("{}{file}", builtin::PREFIX), bytes)?;
    Weights::from_files(component, vec![file], dtype.or(Some(DType::F32)), device)
}

/// The file that holds a component's weights.
fn embedded_file(
    files: &[(&'static str, &'static [u8])],
    component: &str,
) -> Option<(&'static str, &'static [u8])> {
    let named = |name: &&str| files.iter().find(|(file, _)| *file == format!("{component}/{name}"));
    WEIGHTS.iter().find_map(named).copied()
}

fn bytes(paths: &[PathBuf]) -> u64 {
    paths.iter().filter_map(|p| p.metadata().ok()).map(|m| m.len()).sum()
}
