//! What a run is conditioned on, before and after everything that does not depend on the latents.

use std::sync::Arc;

use candle_core::{Tensor, TensorId};

use super::modulation::{Rows, Run};
use crate::{Error, Result};

/// What a picture is made of, before the transformer has seen it. One sample.
#[derive(Clone, Debug)]
pub struct FluxConditioning {
    /// `(1, tokens, joint_attention_dim)`, T5's.
    pub prompt_embeds: Tensor,
    /// `(1, pooled_projection_dim)`, CLIP's.
    pub pooled_prompt_embeds: Tensor,
    /// The distilled guidance (3.5 is dev's usual); needed where the config has `guidance_embeds`, else ignored.
    pub guidance: Option<f64>,
    /// Kontext's reference pictures as latents, `(1, height, width, channels)`, even sizes.
    pub reference: Vec<Tensor>,
}

/// One sample's part of a context.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// `(1, tokens, inner)`.
    pub(super) text: Tensor,
    /// All references' tokens, `(1, tokens, inner)`.
    pub(super) reference: Option<Tensor>,
    /// Rows and columns of each reference, in tokens.
    pub(super) reference_sizes: Vec<(usize, usize)>,
    /// Shared by all steps, and by the context's clones.
    pub(super) run: Arc<Run>,
}

/// A [`FluxConditioning`] for all timesteps of a run; computed once a request. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct FluxContext {
    pub(super) samples: Vec<Sample>,
}

impl FluxContext {
    /// Whether the samples of both can go through the transformer in one batch: equally many tokens, references of
    /// equal sizes. Their timesteps and guidances may differ.
    pub fn joins(&self, other: &Self) -> bool {
        let shape = |s: &Sample| (s.text.dims().to_vec(), s.reference_sizes.clone(), s.run.widths().to_vec());
        match (self.samples.first(), other.samples.first()) {
            (Some(a), Some(b)) => shape(a) == shape(b),
            _ => false,
        }
    }

    /// All samples of several contexts, in their order.
    ///
    /// # Errors
    /// Where they do not [join](Self::joins), or there is none.
    pub fn cat(contexts: &[&Self]) -> Result<Self> {
        let Some(first) = contexts.first().filter(|first| contexts.iter().all(|c| c.joins(first))) else {
            return Err(Error::invalid("contexts of different shapes cannot be joined"));
        };
        let mut all = (*first).clone();
        all.samples.extend(contexts.iter().skip(1).flat_map(|c| c.samples.iter().cloned()));
        Ok(all)
    }

    /// See [`crate::denoiser::Context::id`].
    pub(crate) fn id(&self) -> Option<TensorId> {
        self.samples.first().map(|sample| sample.text.id())
    }

    /// Samples.
    pub fn batch(&self) -> usize {
        self.samples.len()
    }

    /// The text tokens of all samples.
    pub(super) fn text(&self) -> Result<Tensor> {
        join(self.samples.iter().map(|s| &s.text))
    }

    /// The reference tokens of all samples.
    pub(super) fn reference(&self) -> Result<Option<Tensor>> {
        let all: Vec<&Tensor> = self.samples.iter().filter_map(|s| s.reference.as_ref()).collect();
        if all.is_empty() { Ok(None) } else { Ok(Some(join(all.into_iter())?)) }
    }

    /// Each sample's row of the modulation.
    pub(super) fn rows(&self, timesteps: &[f64]) -> Result<Rows> {
        let row = |(s, &t): (_, &f64)| {
            let Sample { run, .. }: &Sample = s;
            Ok((&**run, run.row(t)?))
        };
        Rows::of_samples(&self.samples.iter().zip(timesteps).map(row).collect::<Result<Vec<_>>>()?)
    }
}

fn join<'a>(parts: impl Iterator<Item = &'a Tensor>) -> Result<Tensor> {
    let parts: Vec<&Tensor> = parts.collect();
    Ok(if let [part] = parts[..] { part.clone() } else { Tensor::cat(&parts, 0)? })
}
