//! What a run is conditioned on, before and after everything that does not depend on the latents.

use candle_core::Tensor;

use crate::Result;

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

/// A [`FluxConditioning`] for all timesteps of a run; computed once a request.
#[derive(Clone, Debug)]
pub struct FluxContext {}

impl FluxContext {
    /// Whether the samples of both can go through the transformer in one batch: equally many tokens, references of
    /// equal sizes.
    pub fn joins(&self, _other: &Self) -> bool {
        false
    }

    /// All samples of several contexts, in their order.
    ///
    /// # Errors
    /// Where they do not [join](Self::joins), or there is none.
    pub fn cat(_contexts: &[&Self]) -> Result<Self> {
        Err(crate::Error::invalid("contexts of different shapes cannot be joined"))
    }
}
