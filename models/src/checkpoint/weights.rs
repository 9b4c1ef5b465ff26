//! The weights of one component, by name, and the layers made of them.
//!
//! A layer asks for its tensors by the names and shapes of its config, so a checkpoint that does not fit is refused
//! with both shapes. Linear and convolutional layers are remembered under their names: LoRAs are merged by replacing
//! a remembered layer's weight, and undone by reading the base from the file again, so nothing can drift.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Device, Tensor};

use super::safetensors_file::SafetensorsFile;
use super::synthetic;
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear, Padding};
use crate::{Error, Result};

/// A layer whose weight can be replaced.
#[derive(Clone, Debug)]
pub enum Layer {
    /// A matrix; its checkpoint may store it as a 1x1 convolution.
    Linear(Arc<Linear>),
    /// A convolution.
    Conv2d(Arc<Conv2d>),
}

#[derive(Debug)]
enum Source {
    Files { files: Vec<SafetensorsFile>, file_of: BTreeMap<String, usize> },
    Synthetic { seed: u64 },
}

#[derive(Debug)]
struct Component {
    /// For errors: the component's name.
    name: String,
    source: Source,
    /// The type that matrices and filters are held in; `None` keeps the stored one.
    dtype: Option<DType>,
    device: Device,
    layers: Mutex<BTreeMap<String, (Layer, Vec<usize>)>>,
    used: Mutex<BTreeSet<String>>,
}

/// A component's weights, seen from a prefix. Cloning is cheap and shares everything.
#[derive(Clone, Debug)]
pub struct Weights {
    component: Arc<Component>,
    prefix: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Weights {
    fn new(name: &str, source: Source, dtype: Option<DType>, device: &Device) -> Self {
        let component = Component {
            name: name.to_owned(),
            source,
            dtype,
            device: device.clone(),
            layers: Mutex::default(),
            used: Mutex::default(),
        };
        Self { component: Arc::new(component), prefix: String::new() }
    }

    /// The tensors of one or several files. `dtype`: what matrices and filters are held in, `None` as stored.
    pub fn from_files(
        name: &str,
        files: Vec<SafetensorsFile>,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self> {
        let mut file_of = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for key in file.entries().keys() {
                if file_of.insert(key.clone(), i).is_some() {
                    return Err(Error::file(
                        file.path(),
                        format!("tensor {key} stands in an earlier file too"),
                    ));
                }
            }
        }
        Ok(Self::new(name, Source::Files { files, file_of }, dtype, device))
    }

    /// Opens safetensors files; see [`Weights::from_files`].
    pub fn open(name: &str, paths: &[PathBuf], dtype: Option<DType>, device: &Device) -> Result<Self> {
        let files = paths.iter().map(SafetensorsFile::open).collect::<Result<_>>()?;
        Self::from_files(name, files, dtype, device)
    }

    /// Weights computed from their names; see [`synthetic`].
    pub fn synthetic(name: &str, seed: u64, device: &Device) -> Self {
        Self::new(name, Source::Synthetic { seed }, None, device)
    }

    /// The same weights under `prefix.segment`.
    pub fn pp(&self, segment: impl std::fmt::Display) -> Self {
        Self { component: self.component.clone(), prefix: self.path(&segment.to_string()) }
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// Where the tensors live.
    pub fn device(&self) -> &Device {
        &self.component.device
    }

    /// Whether there is a tensor of this name. Synthetic weights have every name.
    pub fn contains(&self, name: &str) -> bool {
        match &self.component.source {
            Source::Files { file_of, .. } => file_of.contains_key(&self.path(name)),
            Source::Synthetic { .. } => true,
        }
    }

    /// The shape of a stored tensor; `None` where there is none of this name or the weights are synthetic.
    pub fn stored_shape(&self, name: &str) -> Option<Vec<usize>> {
        match &self.component.source {
            Source::Files { files, file_of } => {
                let key = self.path(name);
                file_of.get(&key).map(|&i| files[i].entries()[&key].shape.clone())
            }
            Source::Synthetic { .. } => None,
        }
    }

    /// Names of stored tensors that no layer asked for, sorted.
    pub fn unused(&self) -> Vec<String> {
        let used = lock(&self.component.used);
        match &self.component.source {
            Source::Files { file_of, .. } => file_of.keys().filter(|k| !used.contains(*k)).cloned().collect(),
            Source::Synthetic { .. } => Vec::new(),
        }
    }

    /// Reads `key` (a full name) as it is stored, having checked its shape.
    fn read(&self, key: &str, shape: &[usize]) -> Result<Tensor> {
        let component = &*self.component;
        lock(&component.used).insert(key.to_owned());
        match &component.source {
            Source::Synthetic { seed } => {
                Ok(Tensor::from_vec(synthetic::tensor(key, shape, *seed), shape, &component.device)?)
            }
            Source::Files { files, file_of } => {
                let Some(&i) = file_of.get(key) else {
                    let file = files.first().map_or(component.name.as_ref(), |f| f.path());
                    return Err(Error::file(file, format!("no tensor {key}, which this config needs")));
                };
                let stored = &files[i].entries()[key].shape;
                if stored != shape {
                    let reason = format!("tensor {key} has shape {stored:?}, this config needs {shape:?}");
                    return Err(Error::file(files[i].path(), reason));
                }
                files[i].tensor(key, &component.device)
            }
        }
    }

    /// A tensor in f32: norms, biases, embedding tables.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(self.read(&self.path(name), shape)?.to_dtype(DType::F32)?)
    }

    /// An embedding table in the type weights are held in.
    pub fn table(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.held(&self.path(name), shape)
    }

    /// A matrix or filter in the type weights are held in.
    fn held(&self, key: &str, shape: &[usize]) -> Result<Tensor> {
        let stored = self.read(key, shape)?;
        match self.component.dtype {
            Some(dtype) => Ok(stored.to_dtype(dtype)?),
            // The CPU's kernels widen 16-bit weights as they read them; F64 is nothing they know.
            None if stored.dtype() == DType::F64 => Ok(stored.to_dtype(DType::F32)?),
            None => Ok(stored),
        }
    }

    fn remember(&self, name: &str, layer: Layer, stored_shape: Vec<usize>) {
        lock(&self.component.layers).insert(self.path(name), (layer, stored_shape));
    }

    /// `name.weight` of `(out, in)`, or `(out, in, 1, 1)` as older checkpoints store projections, and `name.bias`.
    pub fn linear(
        &self,
        name: &str,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> Result<Arc<Linear>> {
        let here = self.pp(name);
        let matrix = vec![out_features, in_features];
        let shape = match here.stored_shape("weight") {
            Some(s) if s.len() == 4 && s[2..] == [1, 1] => vec![out_features, in_features, 1, 1],
            _ => matrix.clone(),
        };
        let weight = here.held(&here.path("weight"), &shape)?.reshape(matrix)?;
        let bias = if bias { Some(here.tensor("bias", &[out_features])?) } else { None };
        let linear = Arc::new(Linear::new(&weight, bias.as_ref())?);
        self.remember(name, Layer::Linear(linear.clone()), shape);
        Ok(linear)
    }

    /// `name.weight` of `(out, in, kernel, kernel)` and `name.bias`.
    pub fn conv2d(
        &self,
        name: &str,
        in_channels: usize,
        out_channels: usize,
        kernel: usize,
        stride: usize,
        padding: Padding,
    ) -> Result<Arc<Conv2d>> {
        let here = self.pp(name);
        let shape = vec![out_channels, in_channels, kernel, kernel];
        let weight = here.held(&here.path("weight"), &shape)?;
        let bias = here.tensor("bias", &[out_channels])?;
        let conv = Arc::new(Conv2d::new(&weight, Some(&bias), stride, padding)?);
        self.remember(name, Layer::Conv2d(conv.clone()), shape);
        Ok(conv)
    }

    /// `name.weight` and `name.bias` of a group normalisation.
    pub fn group_norm(&self, name: &str, groups: usize, channels: usize, eps: f64) -> Result<GroupNorm> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            let name = self.path(name);
            return Err(Error::invalid(format!(
                "{name}: {channels} channels do not divide into {groups} groups"
            )));
        }
        let here = self.pp(name);
        let (weight, bias) = (here.tensor("weight", &[channels])?, here.tensor("bias", &[channels])?);
        Ok(GroupNorm { weight, bias, groups, eps })
    }

    /// `name.weight` and `name.bias` of a layer normalisation.
    pub fn layer_norm(&self, name: &str, channels: usize, eps: f64) -> Result<LayerNorm> {
        let here = self.pp(name);
        Ok(LayerNorm {
            weight: here.tensor("weight", &[channels])?,
            bias: here.tensor("bias", &[channels])?,
            eps,
        })
    }

    /// The names (without `.weight`) of all layers whose weight can be replaced, with the stored weight's shape.
    pub fn layer_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        lock(&self.component.layers).iter().map(|(k, (_, shape))| (k.clone(), shape.clone())).collect()
    }

    /// The base weight of a layer in f32, in its stored shape, read from the source again.
    pub fn base(&self, layer: &str) -> Result<Tensor> {
        let shape = self.layer(layer)?.1;
        Ok(self.read(&format!("{layer}.weight"), &shape)?.to_dtype(DType::F32)?)
    }

    /// Replaces a layer's weight; `weight` has the stored shape and is cast to the type weights are held in.
    pub fn replace(&self, layer: &str, weight: &Tensor) -> Result<()> {
        let (target, shape) = self.layer(layer)?;
        let dtype = match (&self.component.dtype, &self.component.source) {
            (Some(dtype), _) => *dtype,
            (None, Source::Synthetic { .. }) => DType::F32,
            (None, Source::Files { files, file_of }) => {
                let key = format!("{layer}.weight");
                match files[file_of[&key]].entries()[&key].dtype {
                    DType::F64 => DType::F32,
                    dtype => dtype,
                }
            }
        };
        let weight = weight.reshape(shape)?.to_dtype(dtype)?;
        match target {
            Layer::Linear(l) => l.replace_weight(&weight.reshape((l.out_features(), l.in_features()))?)?,
            Layer::Conv2d(c) => c.replace_weight(&weight)?,
        }
        Ok(())
    }

    /// Puts the base weight of a layer back, bit for bit.
    pub fn restore(&self, layer: &str) -> Result<()> {
        let base = self.base(layer)?;
        self.replace(layer, &base)
    }

    fn layer(&self, name: &str) -> Result<(Layer, Vec<usize>)> {
        let layers = lock(&self.component.layers);
        layers
            .get(name)
            .cloned()
            .ok_or_else(|| Error::invalid(format!("{}: no layer {name}", self.component.name)))
    }
}
