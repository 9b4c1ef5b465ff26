//! `y = activation(x W^T + b) + residual`: a matrix product with its bias and what follows it.

use std::sync::RwLock;

use candle_core::{DType, Result, Tensor, bail};

use crate::Activation;

/// A linear layer that owns its weight in the layout its device wants.
#[derive(Debug)]
pub struct Linear {
    weight: RwLock<Tensor>,
    bias: Option<Tensor>,
    in_features: usize,
    out_features: usize,
}

impl Linear {
    /// `weight`: `(out, in)`, f32, f16 or bf16; `bias`: `(out)`.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (out_features, in_features) = weight.dims2()?;
        let bias = bias.map(|b| b.to_dtype(DType::F32)).transpose()?;
        if let Some(b) = &bias
            && b.dims() != [out_features]
        {
            bail!("linear: the bias has shape {:?}, the weight {:?}", b.dims(), weight.dims());
        }
        Ok(Self { weight: RwLock::new(weight.clone()), bias, in_features, out_features })
    }

    /// Channels of the input.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Channels of the output.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Puts another weight of the same shape in place of the present one: how LoRAs are merged and undone.
    pub fn replace_weight(&self, weight: &Tensor) -> Result<()> {
        if weight.dims() != [self.out_features, self.in_features] {
            bail!(
                "linear: a weight of shape {:?} cannot replace one of ({}, {})",
                weight.dims(),
                self.out_features,
                self.in_features
            );
        }
        *self.weight.write().unwrap_or_else(|e| e.into_inner()) = weight.clone();
        Ok(())
    }

    /// `x`: `(.., in)`; returns `(.., out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::None, None)
    }

    /// `activation(x W^T + b) + residual`; `residual` has the result's shape.
    pub fn forward_with(
        &self,
        x: &Tensor,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let w = self.weight.read().unwrap_or_else(|e| e.into_inner()).to_dtype(x.dtype())?;
        let mut y = x.contiguous()?.broadcast_matmul(&w.t()?)?;
        if let Some(b) = &self.bias {
            y = y.broadcast_add(b)?;
        }
        y = activation.forward(&y)?;
        match residual {
            Some(r) => y + r,
            None => Ok(y),
        }
    }
}
