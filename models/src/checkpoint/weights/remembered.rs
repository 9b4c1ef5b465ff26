//! Layers that were made: their weights replaced, put back, read when they are needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquatint_kernels::{EightBits, Format};
use candle_core::{DType, Tensor};

use super::layers::{Held, stays_in};
use super::{Layer, Source, Weights, lock};
use crate::checkpoint::stored::{Matrix, StoredType};
use crate::layers::{Linear, LowRank};
use crate::{Error, Result};

impl Weights {
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

    pub(super) fn put_matrix(&self, layer: &Linear, matrix: Matrix) -> Result<()> {
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
