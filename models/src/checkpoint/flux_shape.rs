//! What kind of FLUX a checkpoint is, read off its tensors: a single file comes without a config.

use super::Weights;
use crate::{Error, Result};

/// The sizes of a FLUX transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FluxShape {
    /// Blocks in which text and picture have weights of their own.
    pub double_blocks: usize,
    /// Blocks over text and picture together.
    pub single_blocks: usize,
    /// Channels of a token that goes in: 64; 384 for Fill, 128 for control models.
    pub in_channels: usize,
    /// Channels of a token that comes out.
    pub out_channels: usize,
    /// Width of the residual stream: heads times `head_dim`.
    pub width: usize,
    /// Channels of an attention head.
    pub head_dim: usize,
    /// Channels of the prompt embeddings.
    pub joint_attention_dim: usize,
    /// Channels of the pooled prompt embedding.
    pub pooled_projection_dim: usize,
    /// Whether the guidance is an input: dev and its like.
    pub guidance_embeds: bool,
}

impl FluxShape {
    /// Attention heads.
    pub fn heads(&self) -> usize {
        self.width / self.head_dim
    }
}

/// More blocks than any model has: the search for the last one ends.
const MOST_BLOCKS: usize = 1 << 10;

/// Reads the sizes off the shapes of a transformer's tensors, which go by diffusers' names.
///
/// # Errors
/// A tensor that every FLUX transformer has is missing, or is no matrix.
pub fn shape_facts(weights: &Weights) -> Result<FluxShape> {
    let matrix = |name: &str| match weights.stored_shape(name).as_deref() {
        Some(&[rows, columns]) => Ok((rows, columns)),
        Some(shape) => Err(no_flux(weights, format!("{name} has shape {shape:?}"))),
        None => Err(no_flux(weights, format!("it has no {name}"))),
    };
    let blocks = |kind: &str| {
        (0..MOST_BLOCKS)
            .find(|i| !weights.contains(&format!("{kind}.{i}.attn.to_q.weight")))
            .unwrap_or(MOST_BLOCKS)
    };
    let (width, in_channels) = matrix("x_embedder.weight")?;
    let (double_blocks, single_blocks) = (blocks("transformer_blocks"), blocks("single_transformer_blocks"));
    let kind = if double_blocks > 0 { "transformer_blocks" } else { "single_transformer_blocks" };
    let norm = format!("{kind}.0.attn.norm_q.weight");
    let head_dim = match weights.stored_shape(&norm).as_deref() {
        Some(&[n]) if n > 0 && width.is_multiple_of(n) => n,
        shape => return Err(no_flux(weights, format!("{norm} is {shape:?} at a width of {width}"))),
    };
    Ok(FluxShape {
        double_blocks,
        single_blocks,
        in_channels,
        out_channels: matrix("proj_out.weight")?.0,
        width,
        head_dim,
        joint_attention_dim: matrix("context_embedder.weight")?.1,
        pooled_projection_dim: matrix("time_text_embed.text_embedder.linear_1.weight")?.1,
        guidance_embeds: weights.contains("time_text_embed.guidance_embedder.linear_1.weight"),
    })
}

fn no_flux(weights: &Weights, reason: String) -> Error {
    Error::file(weights.source_path(), format!("no FLUX transformer: {reason}"))
}
