//! Layers made of a component's tensors, in the types and formats that they are held in.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use aquatint_kernels::{EightBits, EncodedWeight, Format, StoredRows};
use candle_core::{DType, Tensor};

use super::{Layer, Source, Weights, held_as, lock, named};
use crate::checkpoint::stored::{Matrix, StoredType};
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear, Padding};
use crate::{Error, Result};

/// A layer's weight on its way into the layer.
pub(super) enum Held {
    /// As its file has it.
    Rows(StoredRows),
    Matrix(Matrix),
}

/// Whether a matrix that is stored in a format is held in it where layers are rounded: blocks are, and codes of the same
/// kind.
pub(super) fn stays_in(format: Format, rounding: Option<EightBits>) -> bool {
    format.block_len() > 1 || rounding.is_none_or(|to| format == to.format())
}

impl Weights {
    /// An embedding table in the type weights are held in.
    pub fn table(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.held(&self.path(name), shape)
    }

    /// Bytes of an element of a table in the type weights are held in.
    pub fn held_size(&self, name: &str) -> usize {
        self.size_held(&self.path(name))
    }

    /// The same for `key`, a full name.
    pub(super) fn size_held(&self, key: &str) -> usize {
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

    pub(super) fn held_as(&self, stored: DType) -> DType {
        held_as(stored, self.component.dtype, self.device().is_cpu())
    }

    /// A filter or table in the type weights are held in.
    pub(super) fn held(&self, key: &str, shape: &[usize]) -> Result<Tensor> {
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
    pub(super) fn stored_rows(
        &self,
        key: &str,
        shape: &[usize],
        dims: &[usize],
    ) -> Result<Option<StoredRows>> {
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
    pub(super) fn linear_weight(
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
    pub(super) fn shrinks(&self, columns: usize) -> bool {
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
}
