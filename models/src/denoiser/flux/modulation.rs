//! The modulation: what timestep, guidance and pooled prompt do to every block.
//!
//! Its linear layers hold 3.25 B of FLUX.1's 11.9 B parameters and see one vector a step. All steps' vectors are known
//! before the first step, so each layer is applied once a run, to all steps together; a step then looks its row up.

use std::sync::Arc;

use aquatint_kernels::timestep_embedding;
use candle_core::{DType, Tensor};

use super::config::FluxConfig;
use crate::checkpoint::Weights;
use crate::checkpoint::stream::{Stage, one_ahead};
use crate::layers::{Activation, Linear};
use crate::{Error, Result};

/// Channels of the sinusoidal embeddings.
const SINUSOIDAL: usize = 256;

/// Two linear layers with a SiLU between.
#[derive(Debug)]
struct Embedder {
    linear_1: Arc<Linear>,
    linear_2: Arc<Linear>,
}

impl Embedder {
    fn new(weights: &Weights, channels: usize, out: usize) -> Result<Self> {
        Ok(Self {
            linear_1: weights.linear("linear_1", channels, out, true)?,
            linear_2: weights.linear("linear_2", out, out, true)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.linear_2.forward(&self.linear_1.forward_with(x, Activation::Silu, None)?)?)
    }
}

/// diffusers' `time_text_embed`, and the modulation layer of every block and of the output.
#[derive(Debug)]
pub(super) struct Modulation {
    timestep: Embedder,
    guidance: Option<Embedder>,
    text: Embedder,
    /// For each double block the picture's and the text's, for each single block one, then the output's.
    layers: Vec<Arc<Linear>>,
    /// What each of them must have in memory; the embedders come first.
    stages: Vec<Stage>,
}

impl Modulation {
    /// `weights`: the whole transformer's; streamed where these layers shall be.
    pub(super) fn new(config: &FluxConfig, weights: &Weights) -> Result<Self> {
        let inner = config.inner_dim();
        let embed = weights.pp("time_text_embed");
        let guidance =
            config.guidance_embeds.then(|| Embedder::new(&embed.pp("guidance_embedder"), SINUSOIDAL, inner));
        let (timestep, guidance, text) = (
            Embedder::new(&embed.pp("timestep_embedder"), SINUSOIDAL, inner)?,
            guidance.transpose()?,
            Embedder::new(&embed.pp("text_embedder"), config.pooled_projection_dim, inner)?,
        );
        let mut names = Vec::new();
        for i in 0..config.num_layers {
            names.push((format!("transformer_blocks.{i}.norm1"), 6));
            names.push((format!("transformer_blocks.{i}.norm1_context"), 6));
        }
        names.extend(
            (0..config.num_single_layers).map(|i| (format!("single_transformer_blocks.{i}.norm"), 3)),
        );
        names.push(("norm_out".to_owned(), 2));
        let (mut layers, mut stages) = (Vec::new(), vec![Stage::new(&embed)]);
        for (name, vectors) in names {
            let norm = weights.pp(name);
            layers.push(norm.linear("linear", inner, vectors * inner, true)?);
            stages.push(Stage::new(&norm));
        }
        Ok(Self { timestep, guidance, text, layers, stages })
    }

    /// What is streamed of its layers, as it is needed.
    pub(super) fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Modulation layers.
    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The vectors of all steps; `pooled`: `(1, channels)`.
    pub(super) fn run(&self, timesteps: &[f64], guidance: Option<f64>, pooled: &Tensor) -> Result<Run> {
        let mut conditioning = None;
        let mut vectors = Vec::with_capacity(self.layers.len());
        one_ahead(&self.stages.iter().collect::<Vec<_>>(), |i| {
            match (i.checked_sub(1).and_then(|i| self.layers.get(i)), &conditioning) {
                (Some(layer), Some(conditioning)) => vectors.push(layer.forward(conditioning)?),
                _ => conditioning = Some(self.conditioning(timesteps, guidance, pooled)?),
            }
            Ok(())
        })?;
        let widths = vectors.iter().map(|v| v.dim(1)).collect::<candle_core::Result<_>>()?;
        Ok(Run { timesteps: timesteps.to_vec(), vectors: Tensor::cat(&vectors, 1)?, widths })
    }

    /// `(steps, inner)`, after the SiLU that every layer begins with.
    fn conditioning(&self, timesteps: &[f64], guidance: Option<f64>, pooled: &Tensor) -> Result<Tensor> {
        let device = pooled.device();
        // diffusers divides by 1000 in the pipeline and multiplies in the transformer, both in f32.
        let timesteps: Vec<f32> = timesteps.iter().map(|&t| t as f32 / 1000.0 * 1000.0).collect();
        let mut sum =
            self.timestep.forward(&timestep_embedding(&timesteps, SINUSOIDAL, true, 0.0, device)?)?;
        if let Some(embedder) = &self.guidance {
            let Some(guidance) = guidance else {
                return Err(Error::invalid("this transformer has guidance_embeds: it needs a guidance"));
            };
            let guidance = timestep_embedding(&[guidance as f32 * 1000.0], SINUSOIDAL, true, 0.0, device)?;
            sum = sum.broadcast_add(&embedder.forward(&guidance)?)?;
        }
        let text = self.text.forward(&pooled.to_dtype(DType::F32)?)?;
        Ok(Activation::Silu.forward(&sum.broadcast_add(&text)?)?)
    }
}

/// The modulation vectors of one request's run, f32.
#[derive(Clone, Debug)]
pub(super) struct Run {
    timesteps: Vec<f64>,
    /// `(steps, those of all layers)`: in one tensor, as a step's are copied to where its recording reads them.
    vectors: Tensor,
    /// How many of them are each layer's.
    widths: Arc<[usize]>,
}

impl Run {
    /// Which row a timestep has.
    pub(super) fn row(&self, timestep: f64) -> Result<usize> {
        // The sampler gives the very numbers back that it was planned with.
        self.timesteps.iter().position(|&t| t == timestep).ok_or_else(|| {
            Error::invalid(format!("timestep {timestep} is none of those that the context was made for"))
        })
    }

    /// How many vectors each modulation layer has, times their channels.
    pub(super) fn widths(&self) -> &[usize] {
        &self.widths
    }
}

/// The vectors of all samples of a batch for one step.
#[derive(Debug)]
pub(super) struct Rows {
    /// `(batch, those of all layers)`.
    pub(super) vectors: Tensor,
    widths: Arc<[usize]>,
}

impl Rows {
    /// Looks up each sample's row. All runs are the same transformer's.
    pub(super) fn of_samples(samples: &[(&Run, usize)]) -> Result<Self> {
        let rows = samples.iter().map(|(run, row)| run.vectors.narrow(0, *row, 1));
        let rows = rows.collect::<candle_core::Result<Vec<_>>>()?;
        let Some((run, _)) = samples.first() else {
            return Err(Error::invalid("a step of no samples"));
        };
        let vectors = if let [row] = rows.as_slice() { row.clone() } else { Tensor::cat(&rows, 0)? };
        Ok(Self { vectors, widths: run.widths.clone() })
    }

    /// The same of other vectors of the same shape.
    pub(super) fn with_vectors(&self, vectors: &Tensor) -> Self {
        Self { vectors: vectors.clone(), widths: self.widths.clone() }
    }

    /// The `N` vectors of a modulation layer, `(batch, inner)` each.
    pub(super) fn of<const N: usize>(&self, layer: usize) -> Result<[Tensor; N]> {
        let width =
            *self.widths.get(layer).ok_or_else(|| Error::invalid("the context is another transformer's"))?;
        let first = self.widths.iter().take(layer).sum();
        let own = self.vectors.narrow(1, first, width)?;
        let parts: std::result::Result<[Tensor; N], Vec<Tensor>> = own.chunk(N, 1)?.try_into();
        parts.map_err(|parts| Error::invalid(format!("{} modulation vectors, {N} are needed", parts.len())))
    }
}
