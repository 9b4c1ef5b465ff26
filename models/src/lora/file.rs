//! One LoRA file: its keys sorted into modules.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device};

use super::adapter_config::AdapterConfig;
use super::factors::{self, Factors};
use super::key::{self, Key, LayerName, Part, Place};
use super::magnitude::Magnitude;
use super::{Format, Target};
use crate::checkpoint::safetensors_file::SafetensorsFile;
use crate::text::textual_inversion::TextualInversion;
use crate::{Error, Result};

/// The difference of one layer.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) place: Place,
    pub(super) layer: LayerName,
    pub(super) factors: Factors,
    /// Rows and columns of the difference.
    pub(super) shape: (usize, usize),
    pub(super) magnitude: Option<Magnitude>,
    /// What is added to the layer's bias, scaled as the difference is.
    pub(super) bias: Option<String>,
    /// `alpha / rank`.
    pub(super) scale: f64,
    /// All its keys, sorted.
    pub(super) keys: Vec<String>,
}

/// A LoRA file, open: its tensors are read when they are merged.
#[derive(Debug)]
pub struct LoraFile {
    pub(super) file: SafetensorsFile,
    format: Format,
    pub(super) modules: Vec<Module>,
    /// Keys of no known kind, sorted.
    pub(super) unknown: Vec<String>,
    /// Tokens whose embeddings were trained along.
    tokens: Vec<String>,
}

impl LoraFile {
    /// Opens a file and understands its keys; `adapter_config.json` beside it counts where PEFT wrote it.
    ///
    /// # Errors
    /// Where the file cannot be read, holds nothing of a LoRA, or a module's factors are incomplete or do not fit
    /// each other.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(SafetensorsFile::open(path)?)
    }

    /// The same over an open file.
    pub fn new(file: SafetensorsFile) -> Result<Self> {
        let mut grouped: BTreeMap<(Place, LayerName), (String, BTreeMap<Part, String>)> = BTreeMap::new();
        let mut formats: BTreeMap<Format, usize> = BTreeMap::new();
        let (mut unknown, mut tokens) = (Vec::new(), Vec::new());
        for name in file.entries().keys() {
            let Some(Key { format, place, layer, path, part }) = key::parse(name) else {
                // cloneofsimo/lora marks a token's embedding in the header.
                match file.metadata().get(name).is_some_and(|text| text == "<embed>") {
                    true => tokens.push(name.clone()),
                    false => unknown.push(name.clone()),
                }
                continue;
            };
            *formats.entry(format).or_default() += 1;
            let (_, parts) = grouped.entry((place, layer)).or_insert_with(|| (path, BTreeMap::new()));
            match parts.entry(part) {
                Entry::Vacant(entry) => _ = entry.insert(name.clone()),
                Entry::Occupied(_) => unknown.push(name.clone()),
            }
        }
        let format = formats.into_iter().max_by_key(|(_, keys)| *keys).map(|(format, _)| format);
        let Some(format) = format else {
            let first = file.entries().keys().next().map_or("nothing at all", String::as_str);
            return Err(Error::file(file.path(), format!("no LoRA of a known format: it holds {first}")));
        };
        let configs = Configs::read(&file, format)?;
        let mut modules = Vec::new();
        for ((place, layer), (path, mut parts)) in grouped {
            let module = module(&file, &configs, place, layer, &path, &mut parts)?;
            modules.extend(module);
            unknown.extend(parts.into_values());
        }
        unknown.sort();
        Ok(Self { file, format, modules, unknown, tokens })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Who wrote it.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Layers that it changes.
    pub fn layers(&self) -> usize {
        self.modules.len()
    }

    /// Keys of no known kind, sorted.
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }

    /// The components that it changes, by their folders; the denoiser has none, as either family's can be meant.
    pub fn components(&self) -> BTreeSet<&'static str> {
        let component = |module: &Module| match module.place {
            Place::Denoiser | Place::In(Target::Unet | Target::Transformer) => "denoiser",
            Place::In(Target::TextEncoder) | Place::SomeTextEncoder => "text_encoder",
            Place::In(Target::TextEncoder2) => "text_encoder_2",
        };
        self.modules.iter().map(component).collect()
    }

    /// The ranks of its differences.
    ///
    /// # Errors
    /// A factor that is no matrix.
    pub fn ranks(&self) -> Result<BTreeSet<usize>> {
        let ranks = self.modules.iter().map(|module| module.factors.rank(&self.file));
        Ok(ranks.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// The token embeddings that were trained along with the weights: cloneofsimo's files hold them.
    pub fn textual_inversions(&self) -> Result<Vec<TextualInversion>> {
        self.tokens.iter().map(|token| TextualInversion::of_token(&self.file, token)).collect()
    }
}

/// What a module of these parts is; `None` where the parts make no difference. Parts that belong to no module stay.
fn module(
    file: &SafetensorsFile,
    configs: &Configs,
    place: Place,
    layer: LayerName,
    path: &str,
    parts: &mut BTreeMap<Part, String>,
) -> Result<Option<Module>> {
    let all: BTreeSet<String> = parts.values().cloned().collect();
    let factors = match factors::take(parts) {
        Ok(Some(factors)) => factors,
        Ok(None) => return Ok(None),
        Err(reason) => {
            let first = all.first().map_or(path, String::as_str);
            return Err(Error::file(file.path(), format!("{first} is a part of a difference, but {reason}")));
        }
    };
    let (shape, rank) = (factors.shape(file)?, factors.rank(file)?);
    let alpha = parts.remove(&Part::Alpha).map(|key| number(file, &key)).transpose()?;
    let scale = match (alpha, rank) {
        (Some(alpha), Some(rank)) => alpha / rank as f64,
        _ => configs.scale(place, path, rank),
    };
    if !scale.is_finite() {
        let first = all.first().map_or(path, String::as_str);
        return Err(Error::file(file.path(), format!("{first}: alpha / rank is {scale}")));
    }
    let magnitude = match parts.remove(&Part::DoraScale) {
        Some(key) => Some(Magnitude::Lycoris(key)),
        None => parts.remove(&Part::MagnitudeVector).map(Magnitude::Peft),
    };
    let bias = parts.remove(&Part::UpBias);
    if let Some(key) = &bias
        && file.entries().get(key).is_none_or(|e| e.shape != [shape.0])
    {
        let stored = file.entries().get(key).map(|e| &e.shape);
        return Err(Error::file(
            file.path(),
            format!("{key} has shape {stored:?}, its layer {} outputs", shape.0),
        ));
    }
    let left: BTreeSet<String> = parts.values().cloned().collect();
    let keys = all.difference(&left).cloned().collect();
    Ok(Some(Module { place, layer, factors, shape, magnitude, bias, scale, keys }))
}

/// A tensor of one element.
fn number(file: &SafetensorsFile, key: &str) -> Result<f64> {
    let shape = &file.entries()[key].shape;
    if factors::count(shape) != 1 {
        return Err(Error::file(file.path(), format!("{key} has shape {shape:?}, one number is needed")));
    }
    let value = file.tensor(key, &Device::Cpu)?.to_dtype(DType::F64)?;
    Ok(value.reshape(())?.to_scalar()?)
}

/// Where alphas stand that no key holds.
struct Configs {
    by_target: BTreeMap<Target, AdapterConfig>,
    whole: Option<AdapterConfig>,
}

impl Configs {
    fn read(file: &SafetensorsFile, format: Format) -> Result<Self> {
        let in_header = AdapterConfig::in_header(file.metadata());
        let by_target = in_header.map_err(|reason| Error::file(file.path(), reason))?;
        let whole = if format == Format::Peft { AdapterConfig::beside(file.path())? } else { None };
        Ok(Self { by_target, whole })
    }

    fn scale(&self, place: Place, path: &str, rank: Option<usize>) -> f64 {
        let of = |target| self.by_target.get(&target);
        let own = match place {
            Place::Denoiser => of(Target::Unet).or(of(Target::Transformer)),
            Place::In(target) => of(target),
            Place::SomeTextEncoder => None,
        };
        own.or(self.whole.as_ref()).map_or(1.0, |config| config.scale(path, rank))
    }
}
