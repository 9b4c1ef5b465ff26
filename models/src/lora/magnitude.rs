//! DoRA: the direction of the changed weight with a learnt magnitude for each row.

use candle_core::{DType, Tensor};

use super::factors::{count, join};
use super::layer_names::Slice;
use crate::checkpoint::safetensors_file::SafetensorsFile;
use crate::{Error, Result};

/// A learnt magnitude. PEFT and LyCORIS agree at scale 1 and differ between.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Magnitude {
    /// `lora_magnitude_vector`: the scale is inside, `m (W + s D) / |W + s D|`; always one value for each output.
    /// Source: PEFT `tuners/lora/layer.py`, `merge`.
    Peft(String),
    /// `dora_scale`: the scale is outside, `W + s (m (W + D) / |W + D| - W)`, so that 0.5 is half the way; one value
    /// for each output, `(out, 1, ..)`, or for each input, `(1, in, ..)`.
    /// Source: `finalize_updown` in the web UI's `network.py`; ComfyUI's `weight_decompose`.
    Lycoris(String),
}

impl Magnitude {
    pub(super) fn key(&self) -> &String {
        match self {
            Self::Peft(key) | Self::Lycoris(key) => key,
        }
    }

    /// The magnitude's shape against `(out, in, kernel)`: `(out, 1, 1)` or `(1, in, 1)`.
    fn shape(&self, file: &SafetensorsFile, weight: (usize, usize, usize)) -> Result<(usize, usize, usize)> {
        let (out, inputs, _) = weight;
        let stored = &file.entries()[self.key()].shape[..];
        let values = count(stored);
        match self {
            Self::Peft(_) if values == out => Ok((out, 1, 1)),
            Self::Lycoris(_) if values == out && stored.first() == Some(&out) => Ok((out, 1, 1)),
            Self::Lycoris(_) if values == inputs && stored.get(1) == Some(&inputs) => Ok((1, inputs, 1)),
            _ => {
                let key = self.key();
                let reason =
                    format!("{key} has shape {stored:?}, the weight has {out} outputs and {inputs} inputs");
                Err(Error::file(file.path(), reason))
            }
        }
    }

    /// Checks the magnitude against its layer's shape, or that of the `outputs` of several fused ones.
    pub(super) fn check(&self, file: &SafetensorsFile, outputs: usize, weight: &[usize]) -> Result<()> {
        let (_, inputs, kernel) = split(weight);
        self.shape(file, (outputs, inputs, kernel)).map(|_| ())
    }

    /// Whether it has one value for each input, so that each norm goes over all outputs.
    pub(super) fn is_by_input(
        &self,
        file: &SafetensorsFile,
        outputs: usize,
        weight: &[usize],
    ) -> Result<bool> {
        let (_, inputs, kernel) = split(weight);
        Ok(self.shape(file, (outputs, inputs, kernel))?.0 == 1 && outputs != 1)
    }

    /// `weight` (any shape) changed by `difference` (of the same shape, alpha applied) at this scale.
    ///
    /// `outputs`: how many outputs the magnitude is about; `slice`: which of them are the weight's. `squares`: for each
    /// input the sum of squares over all outputs, `(1, in, 1)`, where some of the outputs are another layer's.
    pub(super) fn apply(
        &self,
        file: &SafetensorsFile,
        weight: &Tensor,
        difference: &Tensor,
        scale: f64,
        (outputs, slice): (usize, &Slice),
        squares: Option<&Tensor>,
    ) -> Result<Tensor> {
        let rescale = |weight: &Tensor| self.rescale(file, weight, (outputs, slice), squares);
        Ok(match self {
            Self::Peft(_) => rescale(&(weight + (difference * scale)?)?)?,
            Self::Lycoris(_) => {
                let whole = rescale(&(weight + difference)?)?;
                (weight + ((whole - weight)? * scale)?)?
            }
        })
    }

    /// `m W / |W|`.
    fn rescale(
        &self,
        file: &SafetensorsFile,
        weight: &Tensor,
        (outputs, slice): (usize, &Slice),
        squares: Option<&Tensor>,
    ) -> Result<Tensor> {
        let shape = split(weight.dims());
        let magnitude = file.tensor(self.key(), weight.device())?.to_dtype(DType::F32)?;
        let by = self.shape(file, (outputs, shape.1, shape.2))?;
        let by_output = by == (outputs, 1, 1);
        let mut magnitude = magnitude.reshape(by)?;
        if by_output {
            magnitude = join(&slice.rows, |rows| Ok(magnitude.narrow(0, rows.start, rows.len())?))?;
        }
        let rows = weight.reshape(shape)?;
        let squares = match squares {
            Some(squares) => squares.clone(),
            None => rows.sqr()?.sum_keepdim(if by_output { &[1, 2][..] } else { &[0, 2] })?,
        };
        // A row of zeros has no direction: the epsilon keeps it zero.
        let norm = (squares.sqrt()? + f64::from(f32::EPSILON))?;
        Ok(rows.broadcast_mul(&(magnitude / norm)?)?.reshape(weight.dims())?)
    }
}

/// For each input the sum of squares over outputs and kernel, `(1, in, 1)`.
pub(super) fn squares_by_input(weight: &Tensor) -> Result<Tensor> {
    Ok(weight.reshape(split(weight.dims()))?.sqr()?.sum_keepdim(&[0, 2][..])?)
}

/// A weight's shape as `(out, in, kernel)`.
fn split(shape: &[usize]) -> (usize, usize, usize) {
    let get = |i: usize| shape.get(i).copied().unwrap_or(1);
    (get(0), get(1), shape.iter().skip(2).product())
}
