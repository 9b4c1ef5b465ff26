//! The weights of one component, by name, and the layers made of them.
//!
//! A layer asks for its tensors by the names and shapes of its config, so a checkpoint that does not fit is refused
//! with both shapes. Linear and convolutional layers are remembered under their names: LoRAs are merged by replacing
//! a remembered layer's weight, and undone by reading the base from the file again, so nothing can drift.
//!
//! Here is where tensors come from; `layers` makes layers of them, `remembered` changes and restores those.

mod layers;
mod remembered;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use aquatint_kernels::EightBits;
use candle_core::{DType, Device, Tensor};

use super::file::CheckpointFile;
use super::safetensors_file::SafetensorsFile;
use super::synthetic;
use super::view::Views;
use crate::layers::{Conv2d, Linear};
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
    Files(Views),
    /// Computed from their names; or made by the device's own generator, where the values do not matter.
    Synthetic {
        seed: u64,
        by_device: bool,
    },
}

#[derive(Debug)]
struct Component {
    /// For errors: the component's name.
    name: String,
    source: Source,
    /// The type that matrices and filters are held in; `None` keeps the stored one. See [`held_as`].
    dtype: Option<DType>,
    device: Device,
    /// Whether linear layers are held in Q8_0, whatever they are stored in.
    eight_bits: AtomicBool,
    /// What linear layers are rounded to that are made to be; see [`Weights::rounded`].
    quantisation: OnceLock<EightBits>,
    layers: Mutex<BTreeMap<String, (Layer, Vec<usize>)>>,
    /// Layers whose weight is read when it is needed, and whether it was replaced, so that it must stay.
    streamed: Mutex<BTreeMap<String, bool>>,
    used: Mutex<BTreeSet<String>>,
}

/// A component's weights, seen from a prefix. Cloning is cheap and shares everything.
#[derive(Clone, Debug)]
pub struct Weights {
    component: Arc<Component>,
    prefix: String,
    /// Whether linear layers are made without their weights.
    streams: bool,
    /// Whether linear layers are rounded, where that was asked for.
    rounds: bool,
    divisors: Divisors,
}

/// What the weights and the biases of layers are divided by as they are made; powers of two.
#[derive(Clone, Copy, Debug)]
struct Divisors {
    weight: f64,
    bias: f64,
}

impl Divisors {
    const NONE: Self = Self { weight: 1.0, bias: 1.0 };
}

/// What a tensor of a stored type is held in where `dtype` is asked for. The CPU's kernels widen weights as they read
/// them: there 16 bits stay 16 bits where f32 is asked for, and no result is another one.
pub(super) fn held_as(stored: DType, dtype: Option<DType>, on_cpu: bool) -> DType {
    match dtype {
        Some(DType::F32) if on_cpu && matches!(stored, DType::F16 | DType::BF16) => stored,
        Some(dtype) => dtype,
        // No kernel knows F64.
        None if stored == DType::F64 => DType::F32,
        None => stored,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Adds the name of a tensor to what went wrong with it.
fn named<T>(key: &str, result: Result<T>) -> Result<T> {
    result.map_err(|e| match e {
        Error::Device(e) => Error::Device(e.context(key.to_owned())),
        e => e,
    })
}

impl Weights {
    fn new(name: &str, source: Source, dtype: Option<DType>, device: &Device) -> Self {
        let component = Component {
            name: name.to_owned(),
            source,
            dtype,
            device: device.clone(),
            eight_bits: AtomicBool::new(false),
            quantisation: OnceLock::new(),
            layers: Mutex::default(),
            streamed: Mutex::default(),
            used: Mutex::default(),
        };
        Self {
            component: Arc::new(component),
            prefix: String::new(),
            streams: false,
            rounds: false,
            divisors: Divisors::NONE,
        }
    }

    /// The tensors of one or several files under the names they have there. `dtype`: what matrices and filters are
    /// held in, `None` as stored.
    pub fn from_files(
        name: &str,
        files: Vec<SafetensorsFile>,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self> {
        let files: Vec<_> = files.into_iter().map(CheckpointFile::Safetensors).collect();
        Ok(Self::new(name, Source::Files(Views::as_stored(files)?), dtype, device))
    }

    /// Opens the files of a component, of any kind that [`CheckpointFile`] reads, and gives their tensors diffusers'
    /// names, whichever of the names that [`Views::of_component`] knows they have. `name` is the component's folder.
    ///
    /// `dtype`: what matrices and filters are held in. `None` keeps the stored type, and the format of matrices that
    /// are quantised or of eight-bit floats; a type decodes them.
    pub fn open(name: &str, paths: &[PathBuf], dtype: Option<DType>, device: &Device) -> Result<Self> {
        Ok(Self::from_views(name, Views::open(name, paths)?, dtype, device))
    }

    /// The tensors of files under the names that they are seen by. `dtype` as in [`Weights::from_files`].
    pub fn from_views(name: &str, views: Views, dtype: Option<DType>, device: &Device) -> Self {
        Self::new(name, Source::Files(views), dtype, device)
    }

    /// Weights computed from their names; see [`synthetic`].
    pub fn synthetic(name: &str, seed: u64, device: &Device) -> Self {
        Self::new(name, Source::Synthetic { seed, by_device: false }, None, device)
    }

    /// Weights of the same sizes, held in `dtype` as if a checkpoint stored them so; a GPU makes its own.
    pub fn random(name: &str, dtype: DType, device: &Device) -> Self {
        let source = Source::Synthetic { seed: 0, by_device: !device.is_cpu() };
        Self::new(name, source, Some(dtype), device)
    }

    /// The same weights under `prefix.segment`.
    pub fn pp(&self, segment: impl std::fmt::Display) -> Self {
        Self { prefix: self.path(&segment.to_string()), ..self.clone() }
    }

    /// The same weights; linear layers made from them are checked and remembered, but their matrices are not read
    /// before [`Self::load`].
    pub fn streamed(&self) -> Self {
        Self { streams: true, ..self.clone() }
    }

    /// The same weights; linear layers made from them multiply in eight bits where [`Self::quantised`] was said.
    pub fn rounded(&self) -> Self {
        Self { rounds: true, ..self.clone() }
    }

    /// The same weights; linear and convolutional layers made from them have these divided by two powers of two. Layers
    /// that are replaced later are not.
    pub fn divided(&self, weight: f64, bias: f64) -> Self {
        Self { divisors: Divisors { weight, bias }, ..self.clone() }
    }

    /// Whether linear layers are made without their weights.
    pub fn is_streaming(&self) -> bool {
        self.streams
    }

    /// Holds linear layers of 16 bits or more in Q8_0 from now on, where their rows are whole blocks. Each block of 32
    /// weights is rounded to a 127th of its largest.
    #[must_use]
    pub fn in_eight_bits(self) -> Self {
        self.component.eight_bits.store(true, Ordering::Relaxed);
        self
    }

    /// From now on linear layers made from [`Self::rounded`] weights, and their inputs, are rounded to eight bits row by
    /// row; what is in a block format stays in it. Once said, it holds.
    #[must_use]
    pub fn quantised(self, to: Option<EightBits>) -> Self {
        if let Some(to) = to {
            let _stays = self.component.quantisation.set(to);
        }
        self
    }

    /// What a new linear layer is rounded to.
    fn rounding(&self, in_features: usize, out_features: usize) -> Option<EightBits> {
        // What tensor cores take.
        let fits = in_features.is_multiple_of(16) && out_features.is_multiple_of(16);
        self.component.quantisation.get().copied().filter(|_| self.rounds && fits)
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
            Source::Files(views) => views.shape(&self.path(name)).is_some(),
            Source::Synthetic { .. } => true,
        }
    }

    /// The shape of a stored tensor; `None` where there is none of this name or the weights are synthetic.
    pub fn stored_shape(&self, name: &str) -> Option<Vec<usize>> {
        match &self.component.source {
            Source::Files(views) => views.shape(&self.path(name)).map(<[usize]>::to_vec),
            Source::Synthetic { .. } => None,
        }
    }

    /// Names of stored tensors that no layer asked for, sorted.
    pub fn unused(&self) -> Vec<String> {
        let used = lock(&self.component.used);
        match &self.component.source {
            Source::Files(views) => views.names().filter(|k| !used.contains(*k)).cloned().collect(),
            Source::Synthetic { .. } => Vec::new(),
        }
    }

    /// The first file that the tensors come from; the component's name where they come from none.
    pub fn source_path(&self) -> PathBuf {
        let path = match &self.component.source {
            Source::Files(views) => views.path(),
            Source::Synthetic { .. } => None,
        };
        path.unwrap_or(Path::new(&self.component.name)).to_owned()
    }

    /// Refuses a `key` (a full name) that is not there or has another shape.
    fn check(&self, key: &str, shape: &[usize]) -> Result<()> {
        lock(&self.component.used).insert(key.to_owned());
        let Source::Files(views) = &self.component.source else { return Ok(()) };
        match views.shape(key) {
            Some(stored) if stored == shape => Ok(()),
            Some(stored) => {
                let reason = format!("tensor {key} has shape {stored:?}, this config needs {shape:?}");
                Err(Error::file(views.path_of(key), reason))
            }
            None => {
                let reason = format!("no tensor {key}, which this config needs");
                Err(Error::file(self.source_path(), reason))
            }
        }
    }

    /// Reads `key` (a full name) as it is stored, having checked its shape. Formats become f32.
    fn read(&self, key: &str, shape: &[usize]) -> Result<Tensor> {
        self.check(key, shape)?;
        match &self.component.source {
            Source::Synthetic { by_device: true, .. } => {
                let (scale, offset) = synthetic::range(key, shape);
                Ok(Tensor::rand(offset - scale, offset + scale, shape, self.device())?)
            }
            Source::Synthetic { seed, .. } => {
                Ok(Tensor::from_vec(synthetic::tensor(key, shape, *seed), shape, self.device())?)
            }
            Source::Files(views) if self.device().is_cpu() => {
                named(key, views.read(key)?.tensor(self.device()))
            }
            Source::Files(views) => match views.stored_rows(key, shape)? {
                Some(rows) => named(key, rows.tensor(self.device()).map_err(Error::from)),
                None => named(key, views.read(key)?.tensor(self.device())),
            },
        }
    }

    /// A tensor in f32: norms, biases, embedding tables.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(self.read(&self.path(name), shape)?.to_dtype(DType::F32)?)
    }

    fn bias(&self, channels: usize) -> Result<Tensor> {
        let bias = self.tensor("bias", &[channels])?;
        Ok(if self.divisors.bias == 1.0 { bias } else { (bias / self.divisors.bias)? })
    }

    /// Some rows of a tensor of this shape, in f32: what is needed of a table or a matrix that need not be in memory.
    ///
    /// # Errors
    /// As for whole tensors; and rows that are not there.
    pub fn rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Tensor> {
        let key = self.path(name);
        self.check(&key, shape)?;
        let tensor = match &self.component.source {
            Source::Synthetic { .. } => self.read(&key, shape)?.narrow(0, rows.start, rows.len())?,
            Source::Files(views) => views.read_rows(&key, rows)?.tensor(self.device())?,
        };
        Ok(tensor.to_dtype(DType::F32)?)
    }
}
