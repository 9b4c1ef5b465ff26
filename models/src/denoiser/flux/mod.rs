//! The transformer of FLUX.1 (schnell, dev, Fill, Kontext, Krea).
//!
//! Latents are packed to tokens of 2x2; text tokens come first in every sequence. Double blocks keep text and picture
//! apart but for their attention, single blocks take them as one sequence.
//!
//! Source: `FluxTransformer2DModel` of diffusers; Black Forest Labs 2024; Esser et al. 2024 (double blocks), Dehghani
//! et al. 2023 (parallel single blocks), Su et al. 2021 (rotary positions).

pub mod config;
pub mod context;
mod double_block;
mod modulation;
pub mod options;
mod pack;
mod report;
mod residual;
mod rope;
mod single_block;

use std::sync::{Arc, Mutex, PoisonError};

use aquatint_kernels::{Recorder, Rotation, modulated_layer_norm};
use candle_core::{DType, Tensor};

use self::context::Sample;
use self::double_block::DoubleBlock;
use self::modulation::{Modulation, Rows};
use self::pack::{pack, unpack};
use self::residual::Residual;
use self::rope::Positions;
use self::single_block::SingleBlock;
use crate::checkpoint::Weights;
use crate::checkpoint::stream::{Stage, one_ahead};
use crate::layers::Linear;
use crate::{Error, Result};
pub use config::FluxConfig;
pub use context::{FluxConditioning, FluxContext};
pub use options::{BlockWeights, FluxOptions, ModulationWeights, WeightBytes, WeightReport};

#[derive(Debug)]
enum Block {
    Double(DoubleBlock),
    Single(SingleBlock),
}

/// diffusers' `FluxTransformer2DModel`.
#[derive(Debug)]
pub struct FluxTransformer {
    config: FluxConfig,
    options: FluxOptions,
    weights: Weights,
    residual: Residual,
    context_embedder: Arc<Linear>,
    x_embedder: Arc<Linear>,
    /// Double blocks, then single blocks, each with what is streamed of it.
    blocks: Vec<(Block, Stage)>,
    proj_out: Arc<Linear>,
    modulation: Modulation,
    recorder: Recorder,
    /// The angles of the last sequence's positions: they stay the same through all steps of a run.
    rotation: Mutex<Option<(Positions, Rotation)>>,
    /// Streamed weights come and go, so one run at a time may use them.
    streaming: Mutex<()>,
}

impl FluxTransformer {
    /// All weights in memory, f32 activations.
    ///
    /// # Errors
    /// Where the config is not one this transformer can be, or a tensor is missing or has another shape.
    pub fn new(config: FluxConfig, weights: &Weights) -> Result<Self> {
        Self::with_options(config, weights, FluxOptions::default())
    }

    /// As [`Self::new`], held as `options` says.
    ///
    /// # Errors
    /// As [`Self::new`]; where `residual_scale` is no power of two from 1 to 65536.
    pub fn with_options(config: FluxConfig, weights: &Weights, options: FluxOptions) -> Result<Self> {
        config.check()?;
        let inner = config.inner_dim();
        let streamed = |is: bool| if is { weights.streamed() } else { weights.clone() };
        let of_blocks = streamed(options.blocks == BlockWeights::Streamed);
        let mut blocks = Vec::new();
        for i in 0..config.num_layers {
            let w = of_blocks.pp("transformer_blocks").pp(i);
            blocks.push((Block::Double(DoubleBlock::new(&config, &w)?), Stage::new(&w)));
        }
        for i in 0..config.num_single_layers {
            let w = of_blocks.pp("single_transformer_blocks").pp(i);
            blocks.push((Block::Single(SingleBlock::new(&config, &w)?), Stage::new(&w)));
        }
        // After the blocks: their stages must not take the modulation's layers, which have names below theirs.
        let modulation =
            Modulation::new(&config, &streamed(options.modulation == ModulationWeights::Streamed))?;
        Ok(Self {
            residual: Residual::new(options.residual_scale)?,
            context_embedder: weights.linear("context_embedder", config.joint_attention_dim, inner, true)?,
            x_embedder: weights.linear("x_embedder", config.in_channels, inner, true)?,
            proj_out: weights.linear("proj_out", inner, config.out_channels(), true)?,
            blocks,
            modulation,
            recorder: Recorder::default(),
            rotation: Mutex::default(),
            streaming: Mutex::default(),
            weights: weights.clone(),
            config,
            options,
        })
    }

    /// Its config.
    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// How it is held.
    pub fn options(&self) -> &FluxOptions {
        &self.options
    }

    /// Its weights, for merging LoRAs.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Computes what does not depend on the latents, for all `timesteps` of a run (0 to 1000, as the schedule counts).
    /// It holds `4 * 344 * inner` bytes a step for the published depths: 4.2 MB.
    ///
    /// # Errors
    /// If the conditioning lacks what the config asks for, or its shapes do not fit.
    pub fn context(&self, conditioning: &FluxConditioning, timesteps: &[f64]) -> Result<FluxContext> {
        let FluxConditioning { prompt_embeds, pooled_prompt_embeds, guidance, reference } = conditioning;
        let config = &self.config;
        match prompt_embeds.dims() {
            [1, tokens, channels] if *tokens > 0 && *channels == config.joint_attention_dim => {}
            dims => {
                return Err(Error::invalid(format!(
                    "prompt_embeds: {dims:?}, the transformer's joint_attention_dim is {}: (1, tokens, {0}) is needed",
                    config.joint_attention_dim
                )));
            }
        }
        if pooled_prompt_embeds.dims() != [1, config.pooled_projection_dim] {
            return Err(Error::invalid(format!(
                "pooled_prompt_embeds: {:?}, the transformer's pooled_projection_dim is {}: (1, {1}) is needed",
                pooled_prompt_embeds.dims(),
                config.pooled_projection_dim
            )));
        }
        if timesteps.is_empty() {
            return Err(Error::invalid("a run of no timesteps"));
        }
        let text = self.residual.write(&self.context_embedder, &self.activations(prompt_embeds)?)?;
        let (mut tokens, mut reference_sizes) = (Vec::new(), Vec::new());
        for latents in reference {
            let (packed, size) = pack(latents, "reference latents")?;
            self.check_input(latents, 1)?;
            tokens.push(self.residual.write(&self.x_embedder, &self.activations(&packed)?)?);
            reference_sizes.push(size);
        }
        let reference = if tokens.is_empty() { None } else { Some(Tensor::cat(&tokens, 1)?) };
        let _alone = self.streaming.lock().unwrap_or_else(PoisonError::into_inner);
        let run = Arc::new(self.modulation.run(timesteps, *guidance, pooled_prompt_embeds)?);
        Ok(FluxContext { samples: vec![Sample { text, reference, reference_sizes, run }] })
    }

    /// Predicts the velocity (noise minus sample).
    ///
    /// `x`: `(batch, height, width, in_channels / 4)`, even sizes; `timesteps`: one a sample, each one of those its
    /// context was made for. Returns `(batch, height, width, out_channels / 4)` in f32.
    ///
    /// # Errors
    /// Where shapes do not fit, or a timestep is none of the context's.
    pub fn forward(&self, x: &Tensor, timesteps: &[f64], context: &FluxContext) -> Result<Tensor> {
        let (tokens, size) = pack(x, "latents")?;
        self.check_input(x, context.batch())?;
        if timesteps.len() != context.batch() {
            return Err(Error::invalid(format!(
                "{} timesteps for {} samples",
                timesteps.len(),
                context.batch()
            )));
        }
        let rows = context.rows(timesteps)?;
        let (text, reference) = (context.text()?, context.reference()?);
        let references = context.samples.first().map_or_else(Vec::new, |s| s.reference_sizes.clone());
        let positions = Positions { text: text.dim(1)?, picture: size, references };
        let rotation = self.rotation(positions, x)?;
        let [cos, sin] = rotation.tensors();
        let inputs = [&tokens, &text, cos, sin].into_iter().chain(&reference).chain(&rows.0);
        let outputs = self.recorder.run(&inputs.collect::<Vec<_>>(), |inputs| match inputs {
            [tokens, text, cos, sin, rest @ ..] => {
                let (reference, rows) = match (&reference, rest) {
                    (Some(_), [reference, rows @ ..]) => (Some(reference), rows),
                    _ => (None, rest),
                };
                let rotation = Rotation::from_tensors(cos.clone(), sin.clone())?;
                Ok(vec![self.run(tokens, text, reference, &rotation, &Rows(rows.to_vec()))?])
            }
            _ => Err(Error::invalid("a transformer without inputs")),
        })?;
        let y = outputs.first().ok_or_else(|| Error::invalid("a transformer without an output"))?;
        unpack(y, size)
    }

    /// From packed latents to packed output, f32: what differs from step to step is in tensors.
    fn run(
        &self,
        tokens: &Tensor,
        text: &Tensor,
        reference: Option<&Tensor>,
        rotation: &Rotation,
        rows: &Rows,
    ) -> Result<Tensor> {
        let mut picture = self.residual.write(&self.x_embedder, &self.activations(tokens)?)?;
        if let Some(reference) = reference {
            picture = Tensor::cat(&[&picture, reference], 1)?;
        }
        let h = self.run_blocks(text.clone(), picture, rows, rotation)?;
        let h = h.narrow(1, text.dim(1)?, tokens.dim(1)?)?.contiguous()?;
        let [scale, shift] = rows.of(self.modulation.layers().saturating_sub(1))?;
        let h = modulated_layer_norm(&h, &scale, &shift, self.residual.eps())?;
        Ok(self.proj_out.forward(&h)?.to_dtype(DType::F32)?)
    }

    /// All blocks; returns text and picture as one sequence.
    fn run_blocks(&self, text: Tensor, picture: Tensor, rows: &Rows, rotation: &Rotation) -> Result<Tensor> {
        let _alone = self.streaming.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut text, mut picture, mut joined) = (text, picture, None);
        let doubles = self.config.num_layers;
        let stages: Vec<&Stage> = self.blocks.iter().map(|(_, stage)| stage).collect();
        one_ahead(&stages, |i| {
            match self.blocks.get(i).map(|(block, _)| block) {
                Some(Block::Double(block)) => {
                    let m = (&rows.of(2 * i + 1)?, &rows.of(2 * i)?);
                    (text, picture) = block.forward((&text, &picture), m, rotation, self.residual)?;
                }
                Some(Block::Single(block)) => {
                    let x = match joined.take() {
                        Some(x) => x,
                        None => Tensor::cat(&[&text, &picture], 1)?,
                    };
                    joined = Some(block.forward(&x, &rows.of(doubles + i)?, rotation, self.residual)?);
                }
                None => {}
            }
            Ok(())
        })?;
        match joined {
            Some(x) => Ok(x),
            None => Ok(Tensor::cat(&[&text, &picture], 1)?),
        }
    }

    /// In the type of the activations.
    fn activations(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.to_dtype(self.options.activations)?)
    }

    fn check_input(&self, latents: &Tensor, batch: usize) -> Result<()> {
        let (samples, _, _, channels) = latents.dims4()?;
        let expected = self.config.in_channels / 4;
        if samples != batch || channels != expected {
            return Err(Error::invalid(format!(
                "latents of {samples} samples and {channels} channels, the context has {batch} and the transformer's \
                 in_channels are {}, {expected} a pixel",
                self.config.in_channels
            )));
        }
        Ok(())
    }

    fn rotation(&self, positions: Positions, x: &Tensor) -> Result<Rotation> {
        let mut last = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, rotation)) = &*last
            && *of == positions
        {
            return Ok(rotation.clone());
        }
        let rotation = positions.rotation(&self.config.axes_dims_rope, x.device())?;
        *last = Some((positions, rotation.clone()));
        Ok(rotation)
    }
}
