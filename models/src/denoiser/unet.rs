//! The UNet of Stable Diffusion 1.x, 2.x and SDXL.
//!
//! Source: `UNet2DConditionModel` of diffusers; Rombach et al. 2022, Podell et al. 2023.

use std::sync::Arc;

use aquatint_kernels::{Recorder, timestep_embedding, upsample_nearest};
use candle_core::{D, DType, Device, Tensor, TensorId};

use super::config::UnetConfig;
use super::step_cache::DeepFeatures;
use super::transformer::{KeyValue, Transformer2D};
use crate::checkpoint::Weights;
use crate::layers::{Activation, Conv2d, GroupNorm, Linear, Padding};
use crate::range::Range;
use crate::resnet::ResnetBlock;
use crate::{Error, Result};

/// SDXL's conditioning beside the prompt's tokens.
#[derive(Clone, Debug)]
pub struct AddedConditioning {
    /// `(batch, channels)`.
    pub pooled_prompt_embeds: Tensor,
    /// One list a sample: original size, crop corner and target size, `(height, width)` each, in pixels; the refiner
    /// has an aesthetic score in place of the target size.
    pub time_ids: Vec<Vec<f32>>,
}

/// What a picture is made of, before the UNet has seen it.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// `(batch, tokens, cross_attention_dim)`.
    pub prompt_embeds: Tensor,
    /// Needed by `text_time` models.
    pub added: Option<AddedConditioning>,
    /// The guidance scale of models that were distilled to take it as an input (`time_cond_proj_dim`).
    pub guidance: Option<f64>,
}

/// A [`Conditioning`] after everything that does not depend on the timestep: it is computed once a request.
#[derive(Clone, Debug)]
pub struct UnetContext {
    /// For each transformer of the UNet in its order, keys and values of each block.
    prompt: Vec<Vec<KeyValue>>,
    /// `(batch, time channels)`, added to every time embedding.
    added: Option<Tensor>,
    /// `(batch, time_cond_proj_dim)`.
    guidance: Option<Tensor>,
}

impl UnetContext {
    /// Whether the samples of both can go through the UNet in one batch: equally many tokens, the same inputs.
    pub fn joins(&self, other: &Self) -> bool {
        let tokens = |c: &Self| c.prompt.iter().flatten().next().map(|(keys, _)| keys.dims()[1]);
        tokens(self) == tokens(other)
            && self.added.is_some() == other.added.is_some()
            && self.guidance.is_some() == other.guidance.is_some()
    }

    /// All of its tensors, in an order that depends on the UNet alone.
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let prompt = self.prompt.iter().flatten().flat_map(|(keys, values)| [keys, values]);
        prompt.chain(&self.added).chain(&self.guidance)
    }

    /// See [`super::Context::id`].
    pub(super) fn id(&self) -> Option<TensorId> {
        self.tensors().next().map(Tensor::id)
    }

    /// The same context made of other tensors, in the order of [`Self::tensors`].
    fn with_tensors(&self, tensors: &[Tensor]) -> Result<Self> {
        let mut all = tensors.iter().cloned();
        let mut next = || all.next().ok_or_else(|| Error::invalid("the context is another unet's"));
        let mut key_value = |_: &KeyValue| Ok((next()?, next()?));
        let mut prompt = Vec::with_capacity(self.prompt.len());
        for blocks in &self.prompt {
            prompt.push(blocks.iter().map(&mut key_value).collect::<Result<Vec<_>>>()?);
        }
        let added = self.added.is_some().then(&mut next).transpose()?;
        let guidance = self.guidance.is_some().then(next).transpose()?;
        Ok(Self { prompt, added, guidance })
    }

    /// All samples of several contexts, in their order.
    ///
    /// # Errors
    /// Where they do not [join](Self::joins), or there is none.
    pub fn cat(contexts: &[&Self]) -> Result<Self> {
        let (Some(first), true) = (contexts.first(), contexts.iter().all(|c| c.joins(contexts[0]))) else {
            return Err(Error::invalid("contexts of different shapes cannot be joined"));
        };
        let cat = |part: &dyn Fn(&Self) -> Option<&Tensor>| -> Result<Option<Tensor>> {
            let parts: Vec<&Tensor> = contexts.iter().filter_map(|c| part(c)).collect();
            Ok(if parts.is_empty() { None } else { Some(Tensor::cat(&parts, 0)?) })
        };
        let key_value = |transformer: usize, block: usize| -> Result<KeyValue> {
            let of = |c: &Self| c.prompt[transformer][block].clone();
            let (keys, values): (Vec<_>, Vec<_>) = contexts.iter().map(|c| of(c)).unzip();
            Ok((Tensor::cat(&keys, 0)?, Tensor::cat(&values, 0)?))
        };
        let transformer = |(t, blocks): (usize, &Vec<KeyValue>)| -> Result<Vec<KeyValue>> {
            (0..blocks.len()).map(|b| key_value(t, b)).collect()
        };
        Ok(Self {
            prompt: first.prompt.iter().enumerate().map(transformer).collect::<Result<_>>()?,
            added: cat(&|c| c.added.as_ref())?,
            guidance: cat(&|c| c.guidance.as_ref())?,
        })
    }
}

/// Two linear layers with a SiLU between.
#[derive(Debug)]
struct Embedding {
    cond_proj: Option<Arc<Linear>>,
    linear_1: Arc<Linear>,
    linear_2: Arc<Linear>,
}

impl Embedding {
    fn new(weights: &Weights, channels: usize, out: usize, cond: Option<usize>) -> Result<Self> {
        Ok(Self {
            cond_proj: cond.map(|c| weights.linear("cond_proj", c, channels, false)).transpose()?,
            linear_1: weights.linear("linear_1", channels, out, true)?,
            linear_2: weights.linear("linear_2", out, out, true)?,
        })
    }

    fn forward(&self, x: &Tensor, cond: Option<&Tensor>) -> Result<Tensor> {
        let x = match (&self.cond_proj, cond) {
            (Some(proj), Some(c)) => (x + proj.forward(c)?)?,
            _ => x.clone(),
        };
        Ok(self.linear_2.forward(&self.linear_1.forward_with(&x, Activation::Silu, None)?)?)
    }
}

/// A residual block and the transformer that may follow it.
#[derive(Debug)]
struct Layer {
    resnet: ResnetBlock,
    attention: Option<Transformer2D>,
}

/// Layers of one resolution, and the way to the next.
#[derive(Debug)]
struct Block {
    layers: Vec<Layer>,
    /// Down blocks: a strided convolution. Up blocks: a convolution behind a nearest-neighbour upsampling.
    resample: Option<Arc<Conv2d>>,
}

/// The model.
#[derive(Debug)]
pub struct UNet2DCondition {
    config: UnetConfig,
    weights: Weights,
    activations: DType,
    recorder: Recorder,
    conv_in: Arc<Conv2d>,
    time_embedding: Embedding,
    add_embedding: Option<Embedding>,
    down: Vec<Block>,
    /// A residual block with a transformer, then (unless the block is without attention) another residual block.
    mid: Vec<Layer>,
    up: Vec<Block>,
    conv_norm_out: GroupNorm,
    conv_out: Arc<Conv2d>,
}

impl UNet2DCondition {
    /// Builds the model its config describes; the config is checked first.
    pub fn new(config: UnetConfig, weights: &Weights) -> Result<Self> {
        config.check()?;
        let w = weights;
        let channels = &config.block_out_channels;
        let first = channels[0];
        let time = config.time_channels();
        let add_embedding = match config.projection_class_embeddings_input_dim {
            Some(c) if config.addition_embed_type.is_some() => {
                Some(Embedding::new(&w.pp("add_embedding"), c, time, None)?)
            }
            _ => None,
        };
        let (kernel_in, kernel_out) = (config.conv_in_kernel, config.conv_out_kernel);
        Ok(Self {
            conv_in: w.conv2d(
                "conv_in",
                config.in_channels,
                first,
                kernel_in,
                1,
                Padding::same(kernel_in / 2),
            )?,
            time_embedding: Embedding::new(&w.pp("time_embedding"), first, time, config.time_cond_proj_dim)?,
            add_embedding,
            down: (0..channels.len()).map(|i| down_block(&config, w, i)).collect::<Result<_>>()?,
            mid: mid_block(&config, w)?,
            up: (0..channels.len()).map(|i| up_block(&config, w, i)).collect::<Result<_>>()?,
            conv_norm_out: w.group_norm("conv_norm_out", config.norm_num_groups, first, config.norm_eps)?,
            conv_out: w.conv2d(
                "conv_out",
                first,
                config.out_channels,
                kernel_out,
                1,
                Padding::same(kernel_out / 2),
            )?,
            weights: w.clone(),
            activations: w.activations("conv_in"),
            recorder: Recorder::default(),
            config,
        })
    }

    /// The same with activations of another type between operations; sums are f32 in any case.
    pub fn with_activations(self, activations: DType) -> Self {
        Self { activations, ..self }
    }

    /// The type of activations between operations.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// The config it was built from.
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// The weights it was built from, for merging LoRAs.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    fn transformers(&self) -> impl Iterator<Item = &Transformer2D> {
        let down = self.down.iter().flat_map(|b| &b.layers);
        let up = self.up.iter().flat_map(|b| &b.layers);
        down.chain(&self.mid).chain(up).filter_map(|l| l.attention.as_ref())
    }

    /// Computes what stays the same through all steps.
    ///
    /// # Errors
    /// If the conditioning lacks what the config asks for, or its shapes do not fit.
    pub fn context(&self, conditioning: &Conditioning) -> Result<UnetContext> {
        let embeds = &conditioning.prompt_embeds.to_dtype(self.activations)?;
        let (batch, _, channels) = embeds.dims3()?;
        let expected = self.config.context_channels(0);
        if channels != expected {
            return Err(Error::invalid(format!(
                "the text encoders give {channels} channels, the unet's cross_attention_dim is {expected}"
            )));
        }
        let prompt = self.transformers().map(|t| t.key_values(embeds)).collect::<Result<_>>()?;
        let added = match (&self.add_embedding, &conditioning.added) {
            (None, _) => None,
            (Some(_), None) => {
                return Err(Error::invalid("this unet needs pooled_prompt_embeds and time_ids"));
            }
            (Some(embedding), Some(added)) => Some(self.embed_added(embedding, added, batch)?),
        };
        let guidance = match (self.config.time_cond_proj_dim, conditioning.guidance) {
            (Some(channels), Some(scale)) => {
                // diffusers' get_guidance_scale_embedding of w = (scale - 1) * 1000, sines first
                let w = vec![((scale - 1.0) * 1000.0) as f32; batch];
                let embedded = timestep_embedding(&w, channels, false, 1.0, embeds.device())?;
                Some(embedded.to_dtype(self.activations)?)
            }
            _ => None,
        };
        Ok(UnetContext { prompt, added, guidance })
    }

    fn embed_added(&self, embedding: &Embedding, added: &AddedConditioning, batch: usize) -> Result<Tensor> {
        let config = &self.config;
        let pooled = &added.pooled_prompt_embeds;
        let dim = config.addition_time_embed_dim.unwrap_or(0);
        let ids: Vec<f32> = added.time_ids.concat();
        let time_ids =
            timestep_embedding(&ids, dim, config.flip_sin_to_cos, config.freq_shift, pooled.device())?;
        let given = pooled.dim(1)? + ids.len() / batch.max(1) * dim;
        let needed = config.projection_class_embeddings_input_dim.unwrap_or(0);
        let even = added.time_ids.len() == batch && ids.len().is_multiple_of(batch);
        if given != needed || !even {
            return Err(Error::invalid(format!(
                "pooled_prompt_embeds and time_ids give {given} channels for {} of {batch} samples, the unet's \
                 projection_class_embeddings_input_dim is {needed}",
                added.time_ids.len()
            )));
        }
        let time_ids = time_ids.reshape((batch, ()))?.to_dtype(pooled.dtype())?;
        let both = Tensor::cat(&[pooled, &time_ids], D::Minus1)?;
        embedding.forward(&both.to_dtype(self.activations)?, None)
    }

    /// Predicts the model output (epsilon, v or the sample, as the schedule says).
    ///
    /// `latents`: `(batch, height, width, in_channels)`; `timesteps`: one a sample, 0 to 1000; `context`: what
    /// [`Self::context`] made for the same batch. Returns `(batch, height, width, out_channels)` in the latents' type. Odd
    /// sizes work.
    pub fn forward(&self, latents: &Tensor, timesteps: &[f64], context: &UnetContext) -> Result<Tensor> {
        let embedded = self.embed(timesteps, latents.device())?;
        let inputs: Vec<&Tensor> = [latents, &embedded].into_iter().chain(context.tensors()).collect();
        let outputs = self.recorder.run(&inputs, |inputs| match inputs {
            [latents, embedded, rest @ ..] => {
                let whole = Depth { branch: None, deep: None };
                Ok(vec![self.run(latents, embedded, &context.with_tensors(rest)?, whole)?.0])
            }
            _ => Err(Error::invalid("a unet without inputs")),
        })?;
        outputs.into_iter().next().ok_or_else(|| Error::invalid("a unet without an output"))
    }

    /// The same with DeepCache: the `index`th timestep of a picture reuses the deep features of an earlier one, or keeps
    /// its own.
    pub(super) fn forward_reusing(
        &self,
        latents: &Tensor,
        timesteps: &[f64],
        context: &UnetContext,
        features: &mut DeepFeatures,
        index: usize,
    ) -> Result<Tensor> {
        let deep = features.kept.as_ref().filter(|_| features.reuses(index));
        let depth = Depth { branch: Some(features.cache.branch(&self.config)), deep };
        let embedded = self.embed(timesteps, latents.device())?;
        let (output, kept) = self.run(latents, &embedded, context, depth)?;
        match kept {
            Some(kept) => features.kept = Some(kept),
            None => features.reused += timesteps.len(),
        }
        Ok(output)
    }

    /// Sinusoids of the timesteps, `(batch, first channels)`.
    fn embed(&self, timesteps: &[f64], device: &Device) -> Result<Tensor> {
        let UnetConfig { flip_sin_to_cos, freq_shift, block_out_channels, .. } = &self.config;
        let t: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
        Ok(timestep_embedding(&t, block_out_channels[0], *flip_sin_to_cos, *freq_shift, device)?)
    }

    /// The output, and what went into the branch's layer if it was computed. What differs from step to step is in tensors.
    fn run(
        &self,
        latents: &Tensor,
        embedded: &Tensor,
        context: &UnetContext,
        depth: Depth<'_>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let mut time =
            self.time_embedding.forward(&embedded.to_dtype(self.activations)?, context.guidance.as_ref())?;
        if let Some(added) = &context.added {
            time = (time + added)?;
        }
        let time = Activation::Silu.forward(&time)?;

        let mut prompt = context.prompt.iter();
        let mut h = self.conv_in.forward(&latents.to_dtype(self.activations)?)?;
        let mut skips = vec![h.clone()];
        for (i, block) in self.down.iter().enumerate() {
            for (j, layer) in block.layers.iter().enumerate() {
                if depth.leaves_out_down((i, j)) {
                    layer.leave_out(&mut prompt);
                    continue;
                }
                h = layer.forward(&h, &time, &mut prompt)?;
                skips.push(h.clone());
            }
            if let Some(downsample) = &block.resample
                && !depth.leaves_out_down((i, block.layers.len()))
            {
                h = downsample.forward(&h)?;
                skips.push(h.clone());
            }
        }
        for layer in &self.mid {
            if depth.deep.is_some() {
                layer.leave_out(&mut prompt);
            } else {
                h = layer.forward(&h, &time, &mut prompt)?;
            }
        }
        let mut kept = None;
        for (i, block) in self.up.iter().rev().enumerate().rev() {
            for (j, layer) in block.layers.iter().rev().enumerate().rev() {
                if depth.leaves_out_up((i, j)) {
                    layer.leave_out(&mut prompt);
                    continue;
                }
                match (depth.branch == Some((i, j)), depth.deep) {
                    (true, Some(deep)) => h = deep.clone(),
                    (true, None) => kept = Some(h.clone()),
                    (false, _) => {}
                }
                // Down and up blocks have equally many entries and layers: `check` and `new` see to it.
                let skip =
                    skips.pop().ok_or_else(|| Error::invalid("unet config: more up than down layers"))?;
                h = layer.forward(&Tensor::cat(&[&h, &skip], D::Minus1)?, &time, &mut prompt)?;
            }
            if let (Some(conv), Some(next)) = (&block.resample, skips.last())
                && !depth.leaves_out_up((i, 0))
            {
                // Twice the size, or one less where the way down rounded up.
                let (_, height, width, _) = next.dims4()?;
                h = conv.forward(&upsample_nearest(&h, height, width)?)?;
            }
        }
        let h = self.conv_norm_out.forward(&h, Activation::Silu)?;
        Ok((self.conv_out.forward(&h)?.to_dtype(latents.dtype())?, kept))
    }
}

/// How deep a run goes. Places are `(block, layer)`; the finest is `(0, 0)` on the way down, and on the way up its last.
#[derive(Clone, Copy, Debug)]
struct Depth<'a> {
    /// The place on the way up whose input is kept, or taken from `deep`.
    branch: Option<(usize, usize)>,
    /// What goes in there; layers of which nothing else is needed are left out.
    deep: Option<&'a Tensor>,
}

impl Depth<'_> {
    fn leaves_out_down(&self, place: (usize, usize)) -> bool {
        self.deep.is_some() && self.branch.is_some_and(|branch| place >= branch)
    }

    fn leaves_out_up(&self, place: (usize, usize)) -> bool {
        self.deep.is_some() && self.branch.is_some_and(|branch| place > branch)
    }
}

impl Layer {
    /// Goes past what the prompt gives this layer.
    fn leave_out<'a>(&self, prompt: &mut impl Iterator<Item = &'a Vec<KeyValue>>) {
        if self.attention.is_some() {
            let _not_needed = prompt.next();
        }
    }

    fn forward<'a>(
        &self,
        x: &Tensor,
        time: &Tensor,
        prompt: &mut impl Iterator<Item = &'a Vec<KeyValue>>,
    ) -> Result<Tensor> {
        let h = self.resnet.forward(x, Some(time))?;
        match &self.attention {
            None => Ok(h),
            Some(attention) => {
                let prompt = prompt.next().ok_or_else(|| Error::invalid("the context is another unet's"))?;
                attention.forward(&h, prompt)
            }
        }
    }
}

/// Whether blocks of this type attend to the prompt.
fn attends(block_type: &str, plain: &str, cross: &str) -> Result<bool> {
    match block_type {
        t if t == plain => Ok(false),
        t if t == cross => Ok(true),
        other => {
            Err(Error::invalid(format!("unet config: block type {other:?}, {plain} or {cross} is supported")))
        }
    }
}

fn down_block(config: &UnetConfig, weights: &Weights, i: usize) -> Result<Block> {
    let w = weights.pp("down_blocks").pp(i);
    let out = config.block_out_channels[i];
    let first = config.block_out_channels[i.saturating_sub(1)];
    let attends = attends(&config.down_block_types[i], "DownBlock2D", "CrossAttnDownBlock2D")?;
    let layer = |j: usize| {
        let from = if j == 0 { first } else { out };
        let attention = attends.then(|| (i, config.transformer_layers(i, j)));
        layer(config, &w, j, from, out, attention)
    };
    let layers = (0..config.layers(i)).map(layer).collect::<Result<_>>()?;
    let last = i + 1 == config.block_out_channels.len();
    let padding = if config.downsample_padding == 1 { Padding::same(1) } else { Padding::bottom_right() };
    let resample = (!last).then(|| w.conv2d("downsamplers.0.conv", out, out, 3, 2, padding)).transpose()?;
    Ok(Block { layers, resample })
}

fn mid_block(config: &UnetConfig, weights: &Weights) -> Result<Vec<Layer>> {
    let w = weights.pp("mid_block");
    let last = config.block_out_channels.len() - 1;
    let channels = config.block_out_channels[last];
    match config.mid_block_type.as_deref() {
        None => Ok(Vec::new()),
        Some("UNetMidBlock2D") => Ok(vec![layer(config, &w, 0, channels, channels, None)?]),
        Some("UNetMidBlock2DCrossAttn") => {
            let attention = Some((last, config.transformer_layers(last, 0)));
            Ok(vec![
                layer(config, &w, 0, channels, channels, attention)?,
                layer(config, &w, 1, channels, channels, None)?,
            ])
        }
        Some(other) => Err(Error::invalid(format!(
            "unet config: mid_block_type {other:?}, UNetMidBlock2DCrossAttn, UNetMidBlock2D or null is supported"
        ))),
    }
}

fn up_block(config: &UnetConfig, weights: &Weights, i: usize) -> Result<Block> {
    let w = weights.pp("up_blocks").pp(i);
    let blocks = config.block_out_channels.len();
    let mirror = blocks - 1 - i;
    let out = config.block_out_channels[mirror];
    let before = config.block_out_channels[(mirror + 1).min(blocks - 1)];
    let finer = config.block_out_channels[mirror.saturating_sub(1)];
    let attends = attends(&config.up_block_types[i], "UpBlock2D", "CrossAttnUpBlock2D")?;
    let count = config.layers(mirror) + 1;
    let layer = |j: usize| {
        let skip = if j + 1 == count { finer } else { out };
        let from = if j == 0 { before } else { out };
        let attention = attends.then(|| (mirror, config.up_transformer_layers(i, j)));
        layer(config, &w, j, from + skip, out, attention)
    };
    let layers = (0..count).map(layer).collect::<Result<_>>()?;
    let resample = (i + 1 != blocks)
        .then(|| w.conv2d("upsamplers.0.conv", out, out, 3, 1, Padding::same(1)))
        .transpose()?;
    Ok(Block { layers, resample })
}

/// `attention`: the down block whose heads and context it has, and its number of transformer layers.
fn layer(
    config: &UnetConfig,
    weights: &Weights,
    j: usize,
    from: usize,
    out: usize,
    attention: Option<(usize, usize)>,
) -> Result<Layer> {
    let groups = config.norm_num_groups;
    let time = Some(config.time_channels());
    let w = weights.pp("resnets").pp(j);
    let resnet = ResnetBlock::new(&w, from, out, time, (groups, config.norm_eps), Range::FULL)?;
    let attention = attention.map(|(block, layers)| {
        let w = weights.pp("attentions").pp(j);
        Transformer2D::new(&w, out, config.context_channels(block), config.heads(block), layers, groups)
    });
    Ok(Layer { resnet, attention: attention.transpose()? })
}
