//! Two-dimensional convolution over channels-last features, with what follows it.

use std::sync::RwLock;

use candle_core::{DType, Result, Tensor, bail};

/// Zero rows and columns added around the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub fn same(n: usize) -> Self {
        Self { top: n, bottom: n, left: n, right: n }
    }

    /// One row below and one column to the right: the VAE encoder's downsampling.
    pub fn bottom_right() -> Self {
        Self { bottom: 1, right: 1, ..Self::default() }
    }
}

/// A convolution that owns its filters in the layout its device wants.
#[derive(Debug)]
pub struct Conv2d {
    weight: RwLock<Tensor>,
    bias: Option<Tensor>,
    shape: (usize, usize, usize, usize),
    stride: usize,
    padding: Padding,
}

impl Conv2d {
    /// `weight`: `(out, in, kernel height, kernel width)` as checkpoints store it; `bias`: `(out)`.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Result<Self> {
        let shape = weight.dims4()?;
        let bias = bias.map(|b| b.to_dtype(DType::F32)).transpose()?;
        if let Some(b) = &bias
            && b.dims() != [shape.0]
        {
            bail!("conv2d: the bias has shape {:?}, the weight {:?}", b.dims(), weight.dims());
        }
        if stride == 0 {
            bail!("conv2d: the stride is 0, it must be at least 1");
        }
        Ok(Self { weight: RwLock::new(weight.clone()), bias, shape, stride, padding })
    }

    /// `(out, in, kernel height, kernel width)`.
    pub fn shape(&self) -> (usize, usize, usize, usize) {
        self.shape
    }

    /// Puts other filters of the same shape in place of the present ones: how LoRAs are merged and undone.
    pub fn replace_weight(&self, weight: &Tensor) -> Result<()> {
        if weight.dims4()? != self.shape {
            bail!("conv2d: filters of shape {:?} cannot replace {:?}", weight.dims(), self.shape);
        }
        *self.weight.write().unwrap_or_else(|e| e.into_inner()) = weight.clone();
        Ok(())
    }

    /// `x`: `(batch, height, width, in)`; returns `(batch, out height, out width, out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, None, None)
    }

    /// `conv(x) + b + per_sample[:, None, None, :] + residual`.
    ///
    /// `per_sample`: `(batch, out)`, the time embedding of a residual block; `residual`: the result's shape.
    pub fn forward_with(
        &self,
        x: &Tensor,
        per_sample: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let Padding { top, bottom, left, right } = self.padding;
        let x = x.permute((0, 3, 1, 2))?;
        let x = x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?.contiguous()?;
        let w = self.weight.read().unwrap_or_else(|e| e.into_inner()).to_dtype(x.dtype())?;
        let mut y = x.conv2d(&w, 0, self.stride, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()?;
        if let Some(b) = &self.bias {
            y = y.broadcast_add(b)?;
        }
        if let Some(t) = per_sample {
            y = y.broadcast_add(&t.unsqueeze(1)?.unsqueeze(1)?)?;
        }
        match residual {
            Some(r) => y + r,
            None => Ok(y),
        }
    }
}
