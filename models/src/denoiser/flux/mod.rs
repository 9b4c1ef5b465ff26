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

use std::ops::Range;
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
use super::step_cache::{FirstBlockFeatures, SampleFeatures};
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

/// Text and picture between two blocks, `(batch, tokens, inner)`.
enum Tokens {
    Apart {
        text: Tensor,
        picture: Tensor,
    },
    /// As one sequence that begins with so many tokens of text.
    Joined(Tensor, usize),
}

impl Tokens {
    fn joined(&self) -> Result<(Tensor, usize)> {
        Ok(match self {
            Self::Apart { text, picture } => (Tensor::cat(&[text, picture], 1)?, text.dim(1)?),
            Self::Joined(x, text) => (x.clone(), *text),
        })
    }

    /// Those of the picture, and of its references behind it.
    fn picture(&self) -> Result<Tensor> {
        Ok(match self {
            Self::Apart { picture, .. } => picture.clone(),
            Self::Joined(x, text) => x.narrow(1, *text, x.dim(1)?.saturating_sub(*text))?,
        })
    }
}

/// What a step reads beside the weights: whatever differs from step to step is in tensors.
struct Step {
    /// Packed latents.
    tokens: Tensor,
    text: Tensor,
    reference: Option<Tensor>,
    rotation: Rotation,
    rows: Rows,
    /// Of the picture, in tokens.
    size: (usize, usize),
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
        let of_blocks = streamed(options.blocks == BlockWeights::Streamed).rounded();
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
        let step = self.step(x, timesteps, context)?;
        let [cos, sin] = step.rotation.tensors();
        let inputs = [&step.tokens, &step.text, cos, sin, &step.rows.vectors].into_iter();
        let inputs: Vec<&Tensor> = inputs.chain(&step.reference).collect();
        let outputs = self.recorder.run(&inputs, |inputs| match inputs {
            [tokens, text, cos, sin, vectors, reference @ ..] => {
                let step = Step {
                    tokens: tokens.clone(),
                    text: text.clone(),
                    reference: reference.first().cloned(),
                    rotation: Rotation::from_tensors(cos.clone(), sin.clone())?,
                    rows: step.rows.with_vectors(vectors),
                    size: step.size,
                };
                Ok(vec![self.run(&step, None)?])
            }
            _ => Err(Error::invalid("a transformer without inputs")),
        })?;
        let y = outputs.first().ok_or_else(|| Error::invalid("a transformer without an output"))?;
        unpack(y, step.size)
    }

    /// The same with a first-block cache: each sample reuses what its blocks added in an earlier step where its first
    /// block adds about the same.
    pub(super) fn forward_reusing(
        &self,
        x: &Tensor,
        timesteps: &[f64],
        context: &FluxContext,
        features: &mut FirstBlockFeatures,
    ) -> Result<Tensor> {
        let mut outputs = Vec::new();
        for (i, (sample, &t)) in context.samples.iter().zip(timesteps).enumerate() {
            let alone = FluxContext { samples: vec![sample.clone()] };
            let step = self.step(&x.narrow(0, i, 1)?.contiguous()?, &[t], &alone)?;
            outputs.push(unpack(&self.run(&step, Some((features, i)))?, step.size)?);
        }
        Ok(Tensor::cat(&outputs, 0)?)
    }

    fn step(&self, x: &Tensor, timesteps: &[f64], context: &FluxContext) -> Result<Step> {
        let (tokens, size) = pack(x, "latents")?;
        self.check_input(x, context.batch())?;
        if timesteps.len() != context.batch() {
            return Err(Error::invalid(format!(
                "{} timesteps for {} samples",
                timesteps.len(),
                context.batch()
            )));
        }
        let (text, reference) = (context.text()?, context.reference()?);
        let references = context.samples.first().map_or_else(Vec::new, |s| s.reference_sizes.clone());
        let positions = Positions { text: text.dim(1)?, picture: size, references };
        let rotation = self.rotation(positions, x)?;
        Ok(Step { tokens, text, reference, rotation, rows: context.rows(timesteps)?, size })
    }

    /// From packed latents to packed output, f32. `features`: those of one sample, to be reused.
    fn run(&self, step: &Step, features: Option<(&mut FirstBlockFeatures, usize)>) -> Result<Tensor> {
        let Step { tokens, text, reference, rotation, rows, size } = step;
        let mut picture = self.residual.write(&self.x_embedder, &self.activations(tokens)?)?;
        if let Some(reference) = reference {
            picture = Tensor::cat(&[&picture, reference], 1)?;
        }
        let tokens = Tokens::Apart { text: text.clone(), picture };
        let h = match features {
            None => self.run_blocks(0..self.blocks.len(), tokens, rows, rotation)?.picture()?,
            Some((features, sample)) => {
                let before = tokens.picture()?;
                let head = self.run_blocks(0..1, tokens, rows, rotation)?;
                let after = head.picture()?;
                let first = (&after - before)?;
                match features.reuse(sample, &first)? {
                    Some(others) => (after + others)?,
                    None => {
                        let h = self.run_blocks(1..self.blocks.len(), head, rows, rotation)?;
                        let h = h.picture()?;
                        features.keep(sample, SampleFeatures { first, others: (&h - after)? });
                        h
                    }
                }
            }
        };
        let h = h.narrow(1, 0, size.0 * size.1)?.contiguous()?;
        let [scale, shift] = rows.of(self.modulation.layers().saturating_sub(1))?;
        let h = modulated_layer_norm(&h, &scale, &shift, self.residual.eps())?;
        Ok(self.proj_out.forward(&h)?.to_dtype(DType::F32)?)
    }

    /// Some of the blocks, in their order.
    fn run_blocks(
        &self,
        range: Range<usize>,
        mut tokens: Tokens,
        rows: &Rows,
        rotation: &Rotation,
    ) -> Result<Tokens> {
        let _alone = self.streaming.lock().unwrap_or_else(PoisonError::into_inner);
        let doubles = self.config.num_layers;
        let blocks = self.blocks.get(range.clone()).unwrap_or_default();
        let stages: Vec<&Stage> = blocks.iter().map(|(_, stage)| stage).collect();
        one_ahead(&stages, |at| {
            let i = range.start + at;
            match (blocks.get(at).map(|(block, _)| block), &tokens) {
                (Some(Block::Double(block)), Tokens::Apart { text, picture }) => {
                    let m = (&rows.of(2 * i + 1)?, &rows.of(2 * i)?);
                    let (text, picture) = block.forward((text, picture), m, rotation, self.residual)?;
                    tokens = Tokens::Apart { text, picture };
                }
                (Some(Block::Single(block)), _) => {
                    let (x, text) = tokens.joined()?;
                    let x = block.forward(&x, &rows.of(doubles + i)?, rotation, self.residual)?;
                    tokens = Tokens::Joined(x, text);
                }
                // Double blocks come first.
                (Some(Block::Double(_)), Tokens::Joined(..)) | (None, _) => {}
            }
            Ok(())
        })?;
        Ok(tokens)
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
