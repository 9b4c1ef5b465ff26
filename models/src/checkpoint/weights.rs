//! The weights of one component, by name, and the layers made of them.
//!
//! A layer asks for its tensors by the names and shapes of its config, so a checkpoint that does not fit is refused
//! with both shapes. Linear and convolutional layers are remembered under their names: LoRAs are merged by replacing
//! a remembered layer's weight, and undone by reading the base from the file again, so nothing can drift.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use aquatint_kernels::{EightBits, EncodedWeight, Format, StoredRows};
use candle_core::{DType, Device, Tensor};

use super::file::CheckpointFile;
use super::safetensors_file::SafetensorsFile;
use super::stored::{Matrix, StoredType};
use super::synthetic;
use super::view::Views;
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear, LowRank, Padding};
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

/// A layer's weight on its way into the layer.
enum Held {
    /// As its file has it.
    Rows(StoredRows),
    Matrix(Matrix),
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

/// Whether a matrix that is stored in a format is held in it where layers are rounded: blocks are, and codes of the same
/// kind.
fn stays_in(format: Format, rounding: Option<EightBits>) -> bool {
    format.block_len() > 1 || rounding.is_none_or(|to| format == to.format())
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

    /// An embedding table in the type weights are held in.
    pub fn table(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.held(&self.path(name), shape)
    }

    /// Bytes of an element of a table in the type weights are held in.
    pub fn held_size(&self, name: &str) -> usize {
        self.size_held(&self.path(name))
    }

    /// The same for `key`, a full name.
    fn size_held(&self, key: &str) -> usize {
        let stored = match &self.component.source {
            Source::Files(views) => views.stored_type(key),
            Source::Synthetic { .. } => None,
        };
        match stored {
            Some(StoredType::Plain(stored)) => self.held_as(stored),
            _ => self.held_as(DType::F32),
        }
        .size_in_bytes()
    }

    fn held_as(&self, stored: DType) -> DType {
        held_as(stored, self.component.dtype, self.device().is_cpu())
    }

    /// A filter or table in the type weights are held in.
    fn held(&self, key: &str, shape: &[usize]) -> Result<Tensor> {
        let stored = self.read(key, shape)?;
        let stored = match self.divisors.weight {
            1.0 => stored,
            by => (stored.to_dtype(DType::F32)? / by)?.to_dtype(stored.dtype())?,
        };
        Ok(stored.to_dtype(self.held_as(stored.dtype()))?)
    }

    /// A matrix of this stored shape in the type or format weights are held in.
    fn held_matrix(
        &self,
        key: &str,
        shape: &[usize],
        dims: (usize, usize),
        rounding: Option<EightBits>,
    ) -> Result<Matrix> {
        if let (None, Source::Files(views)) = (self.component.dtype, &self.component.source)
            && let Some(StoredType::Encoded(format)) = views.stored_type(key)
            && self.divisors.weight == 1.0
            && stays_in(format, rounding)
        {
            self.check(key, shape)?;
            return named(key, views.read(key)?.into_matrix(dims, self.device()));
        }
        let matrix = self.held(key, shape)?.reshape(dims)?;
        if rounding.is_none() && self.shrinks(dims.1) {
            return Ok(Matrix::Encoded(EncodedWeight::q8_0(&matrix)?));
        }
        Ok(Matrix::Tensor(matrix))
    }

    /// A weight that the CPU can take as its file has it, having checked its stored shape.
    fn stored_rows(&self, key: &str, shape: &[usize], dims: &[usize]) -> Result<Option<StoredRows>> {
        self.check(key, shape)?;
        let Source::Files(views) = &self.component.source else { return Ok(None) };
        let as_stored = self.device().is_cpu() && self.divisors.weight == 1.0;
        match views.stored_type(key) {
            Some(StoredType::Plain(stored)) if as_stored && self.held_as(stored) == stored => {
                views.stored_rows(key, dims)
            }
            _ => Ok(None),
        }
    }

    /// The weight of a linear layer, `(out, in)`, which has `shape` in its file.
    fn linear_weight(
        &self,
        key: &str,
        shape: &[usize],
        dims: (usize, usize),
        rounding: Option<EightBits>,
    ) -> Result<Held> {
        if rounding.is_none()
            && !self.shrinks(dims.1)
            && let Some(rows) = self.stored_rows(key, shape, &[dims.0, dims.1])?
        {
            return Ok(Held::Rows(rows));
        }
        Ok(Held::Matrix(self.held_matrix(key, shape, dims, rounding)?))
    }

    /// Whether a matrix of so many columns is held in Q8_0 instead of its own type.
    fn shrinks(&self, columns: usize) -> bool {
        self.component.eight_bits.load(Ordering::Relaxed) && columns.is_multiple_of(Format::Q8_0.block_len())
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
        let shape = match here.stored_shape("weight") {
            Some(s) if s.len() == 4 && s[2..] == [1, 1] => vec![out_features, in_features, 1, 1],
            _ => vec![out_features, in_features],
        };
        let bias = if bias { Some(here.bias(out_features)?) } else { None };
        let key = here.path("weight");
        let rounding = self.rounding(in_features, out_features);
        let linear = if self.streams {
            here.check(&key, &shape)?;
            lock(&self.component.streamed).insert(here.prefix.clone(), false);
            Linear::without_weight(in_features, out_features, bias.as_ref(), rounding)?
        } else {
            match here.linear_weight(&key, &shape, (out_features, in_features), rounding)? {
                Held::Matrix(matrix) if rounding.is_some() => {
                    let linear = Linear::without_weight(in_features, out_features, bias.as_ref(), rounding)?;
                    self.put_matrix(&linear, matrix)?;
                    linear
                }
                Held::Rows(rows) => Linear::stored(rows, bias.as_ref())?,
                Held::Matrix(Matrix::Tensor(weight)) => Linear::new(&weight, bias.as_ref())?,
                Held::Matrix(Matrix::Encoded(weight)) => {
                    Linear::encoded(&weight, bias.as_ref(), self.device())?
                }
            }
        };
        let linear = Arc::new(linear);
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
        let key = here.path("weight");
        let rows = here.stored_rows(&key, &shape, &shape)?;
        let bias = here.bias(out_channels)?;
        let conv = match rows {
            Some(rows) => Conv2d::stored(rows, Some(&bias), stride, padding)?,
            None => Conv2d::new(&here.held(&key, &shape)?, Some(&bias), stride, padding)?,
        };
        let conv = Arc::new(conv);
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

    /// The type of activations for a model whose weights are held as `layer`'s is: f32 on the CPU, whose kernels know
    /// nothing else, the weights' own elsewhere.
    pub fn activations(&self, layer: &str) -> DType {
        if self.device().is_cpu() { DType::F32 } else { self.held_type(&self.path(layer)) }
    }

    /// The type that a weight which replaces a layer's is held in: bf16 in place of one in a format.
    fn held_type(&self, layer: &str) -> DType {
        match (&self.component.dtype, &self.component.source) {
            (Some(dtype), _) => *dtype,
            (None, Source::Synthetic { .. }) => DType::F32,
            (None, Source::Files(views)) => match views.stored_type(&format!("{layer}.weight")) {
                Some(StoredType::Plain(dtype)) if dtype != DType::F64 => dtype,
                Some(StoredType::Encoded(_)) => DType::BF16,
                _ => DType::F32,
            },
        }
    }

    /// Whether any linear layer is held in 16 bits or more, and so could be held in 8.
    pub fn is_wide(&self) -> bool {
        let layers = lock(&self.component.layers).clone();
        layers.iter().any(|(name, (layer, _))| matches!(layer, Layer::Linear(_)) && !self.is_encoded(name))
    }

    /// Whether a layer's weight is held in a format, which no merged weight can be. What is rounded row by row is again
    /// when it was merged.
    pub fn is_encoded(&self, layer: &str) -> bool {
        match self.held_format(layer) {
            Some(StoredType::Encoded(format)) => {
                self.rounding_of(layer).is_none_or(|to| format != to.format())
            }
            _ => false,
        }
    }

    fn rounding_of(&self, layer: &str) -> Option<EightBits> {
        match self.layer(layer) {
            Ok((Layer::Linear(l), _)) => l.rounding(),
            _ => None,
        }
    }

    /// The format that a layer's weight is held in; `None` where it is held in one of candle's types.
    fn held_format(&self, layer: &str) -> Option<StoredType> {
        let rounding = self.rounding_of(layer);
        if let (None, Source::Files(views)) = (self.component.dtype, &self.component.source)
            && let Some(stored @ StoredType::Encoded(format)) = views.stored_type(&format!("{layer}.weight"))
            && stays_in(format, rounding)
        {
            return Some(stored);
        }
        match (rounding, self.layer(layer)) {
            (Some(to), _) => Some(StoredType::Encoded(to.format())),
            (None, Ok((Layer::Linear(l), _))) if self.shrinks(l.in_features()) => {
                Some(StoredType::Encoded(Format::Q8_0))
            }
            _ => None,
        }
    }

    /// Replaces a layer's weight; `weight` has the stored shape and is cast to the type weights are held in, which is
    /// bf16 where the present one is in a format. A streamed layer keeps it in memory until [`Self::restore`].
    pub fn replace(&self, layer: &str, weight: &Tensor) -> Result<()> {
        let (target, shape) = self.layer(layer)?;
        let weight = weight.reshape(shape)?.to_dtype(self.held_type(layer))?;
        match target {
            Layer::Linear(l) => l.replace_weight(&weight.reshape((l.out_features(), l.in_features()))?)?,
            Layer::Conv2d(c) => c.replace_weight(&weight)?,
        }
        if let Some(kept) = lock(&self.component.streamed).get_mut(layer) {
            *kept = true;
        }
        Ok(())
    }

    /// Reads the base weight of a layer into it, in the type or format it is held in.
    fn put_base(&self, layer: &str) -> Result<()> {
        let (target, shape) = self.layer(layer)?;
        let key = format!("{layer}.weight");
        match target {
            Layer::Linear(l) => {
                match self.linear_weight(&key, &shape, (l.out_features(), l.in_features()), l.rounding())? {
                    Held::Rows(rows) => l.replace_stored(rows)?,
                    Held::Matrix(matrix) => self.put_matrix(&l, matrix)?,
                }
            }
            Layer::Conv2d(c) => match self.stored_rows(&key, &shape, &shape)? {
                Some(rows) => c.replace_stored(rows)?,
                None => c.replace_weight(&self.held(&key, &shape)?)?,
            },
        }
        Ok(())
    }

    fn put_matrix(&self, layer: &Linear, matrix: Matrix) -> Result<()> {
        match matrix {
            Matrix::Tensor(weight) => layer.replace_weight(&weight)?,
            Matrix::Encoded(weight) => layer.replace_encoded(&weight, self.device())?,
        }
        Ok(())
    }

    /// Puts the base weight of a layer back, bit for bit and in its format.
    pub fn restore(&self, layer: &str) -> Result<()> {
        if let Some(kept) = lock(&self.component.streamed).get_mut(layer) {
            *kept = false;
            if let (Layer::Linear(linear), _) = self.layer(layer)? {
                linear.drop_weight();
            }
            return Ok(());
        }
        self.put_base(layer)
    }

    /// Whether a layer's weight is read when it is needed instead of staying in memory.
    pub fn is_streamed(&self, layer: &str) -> bool {
        lock(&self.component.streamed).contains_key(layer)
    }

    /// The names of the layers whose weight is streamed, under this prefix, sorted.
    pub fn streamed_layers(&self) -> Vec<String> {
        let below = |name: &String| {
            let rest = name.strip_prefix(&self.prefix);
            self.prefix.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        lock(&self.component.streamed).keys().filter(|name| below(name)).cloned().collect()
    }

    /// Reads the weight of a streamed layer; one that was replaced is there already.
    pub fn load(&self, layer: &str) -> Result<()> {
        if lock(&self.component.streamed).get(layer) != Some(&false) {
            return Ok(());
        }
        self.put_base(layer)
    }

    /// Frees the weight of a streamed layer, unless it was replaced.
    pub fn unload(&self, layer: &str) -> Result<()> {
        if lock(&self.component.streamed).get(layer) == Some(&false)
            && let (Layer::Linear(linear), _) = self.layer(layer)?
        {
            linear.drop_weight();
        }
        Ok(())
    }

    /// Bytes of a layer's weight in the type or format it is held in, and how many of them are in memory at present.
    pub fn weight_bytes(&self, layer: &str) -> Result<(u64, u64)> {
        let (target, shape) = self.layer(layer)?;
        let (block_len, block_bytes) = match self.held_format(layer) {
            Some(format) => format.block(),
            None => (1, self.size_held(&format!("{layer}.weight"))),
        };
        let total = (shape.iter().product::<usize>() / block_len * block_bytes) as u64;
        Ok(match target {
            Layer::Linear(l) if l.weight_bytes() == 0 => (total, 0),
            Layer::Linear(_) | Layer::Conv2d(_) => (total, total),
        })
    }

    /// Whether a layer has a bias that can be replaced. A convolution's cannot.
    pub fn has_bias(&self, layer: &str) -> bool {
        matches!(self.layer(layer), Ok((Layer::Linear(l), _)) if l.has_bias())
    }

    /// The base bias of a linear layer in f32, `(out)`, read from the source again.
    pub fn base_bias(&self, layer: &str) -> Result<Tensor> {
        let linear = self.linear_layer(layer)?;
        Ok(self.read(&format!("{layer}.bias"), &[linear.out_features()])?.to_dtype(DType::F32)?)
    }

    /// Replaces a linear layer's bias, `(out)`.
    pub fn replace_bias(&self, layer: &str, bias: &Tensor) -> Result<()> {
        Ok(self.linear_layer(layer)?.replace_bias(bias)?)
    }

    /// Puts the base bias of a linear layer back, bit for bit.
    pub fn restore_bias(&self, layer: &str) -> Result<()> {
        self.replace_bias(layer, &self.base_bias(layer)?)
    }

    /// Applies these differences beside a linear layer's weight, in place of those that are; none undoes it.
    pub fn replace_low_rank(&self, layer: &str, low_rank: Vec<LowRank>) -> Result<()> {
        Ok(self.linear_layer(layer)?.replace_low_rank(low_rank)?)
    }

    fn linear_layer(&self, name: &str) -> Result<Arc<Linear>> {
        match self.layer(name)?.0 {
            Layer::Linear(linear) => Ok(linear),
            Layer::Conv2d(_) => {
                Err(Error::invalid(format!("{}: {name} is no linear layer", self.component.name)))
            }
        }
    }

    fn layer(&self, name: &str) -> Result<(Layer, Vec<usize>)> {
        let layers = lock(&self.component.layers);
        layers
            .get(name)
            .cloned()
            .ok_or_else(|| Error::invalid(format!("{}: no layer {name}", self.component.name)))
    }
}
