//! One picture in the making.

use candle_core::{D, Tensor, TensorId};

use super::Pipeline;
use super::memory::Extent;
use crate::denoiser::step_cache::Features;
use crate::denoiser::{Context, Denoiser};
use crate::noise::TorchGenerator;
use crate::range::is_finite;
use crate::sampler::Sampler;
use crate::{Error, Result};

/// A picture on its way from noise: latents, where in the schedule they are, and everything the next step needs.
#[derive(Debug)]
pub struct Denoising {
    /// Size of the picture that was asked for.
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) latents: Tensor,
    /// What the last step of this stage went from.
    pub(super) last: Option<Evaluated>,
    pub(super) noise: TorchGenerator,
    pub(super) stage: Stage,
    pub(super) refiner: Option<Stage>,
    pub(super) inpaint: Option<Inpaint>,
    pub(super) extent: Extent,
    pub(super) done: usize,
}

/// A denoiser's share of the schedule.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) sampler: Sampler,
    pub(super) context: Context,
    /// With those of its batch, where it is the first.
    pub(super) joined: Option<Joined>,
    /// `None` runs the denoiser once a step.
    pub(super) guidance_scale: Option<f64>,
    pub(super) refining: bool,
    /// What steps reuse of earlier ones, where that was asked for.
    pub(super) features: Option<Features>,
    /// Where in its schedule it began.
    pub(super) began_at: usize,
}

/// The contexts of a batch in one: hundreds of tensors, which stay where they are as long as the batch stays the same.
#[derive(Debug)]
pub(super) struct Joined {
    of: Vec<Option<TensorId>>,
    context: Context,
}

impl Joined {
    /// Of a batch that is not empty: what its first kept of the last step, or anew.
    fn of(batch: &mut [&mut Denoising]) -> Result<Self> {
        let of: Vec<_> = batch.iter().map(|d| d.stage.context.id()).collect();
        match batch.first_mut().and_then(|first| first.stage.joined.take()) {
            Some(kept) if kept.of == of => Ok(kept),
            _ => {
                let contexts: Vec<_> = batch.iter().map(|d| &d.stage.context).collect();
                Ok(Self { of, context: Context::cat(&contexts)? })
            }
        }
    }
}

/// An evaluation of the denoiser.
#[derive(Debug)]
pub(super) struct Evaluated {
    /// Its place in the schedule.
    index: usize,
    latents: Tensor,
    model_output: Tensor,
}

/// What inpainting keeps.
#[derive(Debug)]
pub(super) enum Inpaint {
    /// An ordinary denoiser: after each step the kept part is put back, noised as far as the schedule is.
    Blend {
        /// `(1, h, w, 1)`, 1 is repainted.
        mask: Tensor,
        image_latents: Tensor,
        noise: Tensor,
    },
    /// A denoiser for inpainting sees mask and masked picture: `(1, h, w, 5)` for a UNet, `(1, h, w, 80)` for FLUX.
    Concatenate(Tensor),
}

impl Denoising {
    /// Runs of the denoiser in all.
    pub fn steps(&self) -> usize {
        let left = |s: &Stage| s.sampler.len() - s.sampler.position();
        self.done + left(&self.stage) + self.refiner.as_ref().map_or(0, left)
    }

    /// Runs of the denoiser so far.
    pub fn position(&self) -> usize {
        self.done
    }

    /// Whether the latents are ready to be decoded.
    pub fn is_done(&self) -> bool {
        self.done >= self.steps()
    }

    /// Latents as they are now: `(1, height, width, channels)`.
    pub fn latents(&self) -> &Tensor {
        &self.latents
    }

    /// Runs of the denoiser so far that reused features of earlier ones; one of which only half of the samples did is half
    /// a run.
    pub fn reused(&self) -> usize {
        self.stage.features.as_ref().map_or(0, Features::reused) / self.stage.samples()
    }

    /// What the last step says the latents will be in the end, for previews; before there is one, the latents.
    pub(super) fn denoised(&self) -> Result<Tensor> {
        match &self.last {
            Some(Evaluated { index, latents, model_output }) => {
                self.stage.sampler.denoised(*index, model_output, latents)
            }
            None => Ok(self.latents.clone()),
        }
    }
}

impl Pipeline {
    /// Runs the denoiser once and moves the latents one step on.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the latents would be no numbers any more, which would decode to a black picture. On a
    /// GPU this is noticed at the last step.
    pub fn step(&self, denoising: &mut Denoising) -> Result<()> {
        self.step_together(&mut [denoising])
    }

    /// Moves each of these one step on, with one run of the denoiser where they [join](Denoising::joins). Each keeps
    /// its own timestep, guidance, sampler and noise.
    ///
    /// # Errors
    /// As [`Self::step`], for the first of them that has one. Those whose position has not moved are as they were.
    pub fn step_together(&self, batch: &mut [&mut Denoising]) -> Result<()> {
        for denoising in batch.iter_mut() {
            denoising.next_stage();
        }
        let mut batch: Vec<&mut Denoising> =
            batch.iter_mut().filter(|d| !d.is_done()).map(|d| &mut **d).collect();
        if batch.iter().skip(1).any(|d| !d.joins(batch[0])) {
            return batch.into_iter().try_for_each(|denoising| self.step(denoising));
        }
        // What does not fit together goes in parts.
        let most = match batch.iter().map(|d| d.extent).max_by_key(|extent| extent.samples) {
            Some(extent) if batch.len() > 1 => {
                self.memory.together(&extent, batch.len(), self.memory.room_on(&self.device))
            }
            _ => 1,
        };
        for part in batch.chunks_mut(most) {
            let outputs = self.predict(part)?;
            part.iter_mut().zip(outputs).try_for_each(|(denoising, output)| denoising.advance(output))?;
        }
        Ok(())
    }

    /// The model output of each for its next timestep, guided where it is to be. All of them join.
    fn predict(&self, batch: &mut [&mut Denoising]) -> Result<Vec<Tensor>> {
        let Some(first) = batch.first() else { return Ok(Vec::new()) };
        let denoiser = match (&self.refiner, first.stage.refining) {
            (Some(refiner), true) => &refiner.unet,
            _ => &self.denoiser,
        };
        let (mut inputs, mut timesteps) = (Vec::new(), Vec::new());
        for denoising in batch.iter() {
            let (input, t) = denoising.input()?;
            let samples = denoising.stage.samples();
            let (_, height, width, channels) = input.dims4()?;
            inputs.push(input.expand((samples, height, width, channels))?);
            timesteps.extend(std::iter::repeat_n(t, samples));
        }
        let inputs = Tensor::cat(&inputs, 0)?.contiguous()?;
        let outputs = match &mut *batch {
            [alone] => alone.stage.run(denoiser, &inputs, &timesteps)?,
            several => {
                let joined = Joined::of(several)?;
                let outputs = denoiser.forward(&inputs, &timesteps, &joined.context)?;
                several[0].stage.joined = Some(joined);
                outputs
            }
        };
        let mut at = 0;
        let output = |denoising: &&mut Denoising| {
            let samples = denoising.stage.samples();
            let own = outputs.narrow(0, at, samples)?;
            at += samples;
            denoising.stage.guide(&own)
        };
        batch.iter().map(output).collect()
    }
}

impl Denoising {
    /// Whether both can go through the denoiser in one batch: the same size, stage and number of tokens. What reuses
    /// features goes alone, as its steps run other layers.
    pub fn joins(&self, other: &Self) -> bool {
        let extra = |d: &Self| matches!(d.inpaint, Some(Inpaint::Concatenate(_)));
        let reuses = |d: &Self| d.stage.features.is_some();
        self.latents.dims() == other.latents.dims()
            && !(reuses(self) || reuses(other))
            && self.stage.refining == other.stage.refining
            && extra(self) == extra(other)
            && self.stage.context.joins(&other.stage.context)
    }

    /// Goes on to the refiner where the base model is done.
    fn next_stage(&mut self) {
        if self.stage.sampler.is_done()
            && let Some(refiner) = self.refiner.take()
        {
            self.stage = refiner;
            self.last = None;
        }
    }

    /// What the denoiser sees, and the timestep it is told.
    fn input(&self) -> Result<(Tensor, f64)> {
        let sampler = &self.stage.sampler;
        let input = sampler.scale_model_input(&self.latents)?;
        let input = match &self.inpaint {
            Some(Inpaint::Concatenate(extra)) => Tensor::cat(&[&input, extra], D::Minus1)?,
            _ => input,
        };
        Ok((input, sampler.timesteps()[sampler.position()]))
    }

    /// Moves the latents one step on.
    fn advance(&mut self, model_output: Tensor) -> Result<()> {
        let (step, steps) = (self.done + 1, self.steps());
        let Self { latents, noise, stage, inpaint, .. } = self;
        let index = stage.sampler.position();
        let mut next = stage.sampler.step(&model_output, latents, noise)?;
        if let Some(Inpaint::Blend { mask, image_latents, noise }) = inpaint {
            next = stage.put_back(&next, mask, image_latents, noise)?;
        }
        // What is not finite stays so, and to ask a GPU would be to wait for it: there once, at the end.
        if (next.device().is_cpu() || step >= steps) && !is_finite(&next)? {
            return Err(Error::NotFinite(format!("the latents after step {step} are")));
        }
        let latents = std::mem::replace(&mut self.latents, next);
        self.last = Some(Evaluated { index, latents, model_output });
        self.done = step;
        if self.is_done()
            && let Some(features) = &mut self.stage.features
        {
            // There is no next step, and decoding needs the memory.
            features.clear();
        }
        Ok(())
    }
}

impl Stage {
    /// One run of the denoiser.
    fn run(&mut self, denoiser: &Denoiser, inputs: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let Some(features) = &mut self.features else {
            return denoiser.forward(inputs, timesteps, &self.context);
        };
        // As DeepCache counts: a timestep that comes twice is one.
        let (all, now) = (self.sampler.timesteps(), self.sampler.position());
        let place = |at: usize| all.iter().position(|t| Some(t) == all.get(at)).unwrap_or(at);
        let index = place(now).saturating_sub(place(self.began_at));
        denoiser.forward_reusing(inputs, timesteps, &self.context, features, index)
    }

    /// Runs of the denoiser a step: the negative prompt's and the prompt's, or the prompt's alone.
    fn samples(&self) -> usize {
        if self.guidance_scale.is_some() { 2 } else { 1 }
    }

    /// The model output from those of the negative prompt and the prompt.
    fn guide(&self, outputs: &Tensor) -> Result<Tensor> {
        let Some(scale) = self.guidance_scale else { return Ok(outputs.clone()) };
        // negative + scale * (prompt - negative)
        let (negative, prompt) = (outputs.narrow(0, 0, 1)?, outputs.narrow(0, 1, 1)?);
        Ok(aquatint_kernels::weighted_sum(&[(1.0 - scale, &negative), (scale, &prompt)])?)
    }

    /// Keeps what the mask does not repaint.
    fn put_back(
        &self,
        latents: &Tensor,
        mask: &Tensor,
        image_latents: &Tensor,
        noise: &Tensor,
    ) -> Result<Tensor> {
        let kept = match self.sampler.is_done() {
            true => image_latents.clone(),
            false => self.sampler.add_noise(image_latents, noise, self.sampler.position())?,
        };
        let repainted = latents.broadcast_mul(mask)?;
        Ok((repainted + kept.broadcast_mul(&mask.affine(-1.0, 1.0)?)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{GenerationRequest, LoadOptions, ModelSource};

    #[test]
    fn contexts_are_joined_anew_where_the_batch_is_another() {
        let pipeline = Pipeline::load(&ModelSource::Builtin, &LoadOptions::default()).unwrap();
        let start = |prompt: &str| pipeline.start(&GenerationRequest::new(prompt, 1)).unwrap();
        let prompts = ["a red apple", "a blue boat", "a green tree"];
        let (mut together, mut alone) = (prompts.map(start), prompts.map(start));
        let mut kept = Vec::new();
        for members in [&[0, 1, 2][..], &[0, 1, 2], &[0, 2], &[0, 1, 2]] {
            let is_member = |(i, denoising)| members.contains(&i).then_some(denoising);
            let mut batch: Vec<_> = together.iter_mut().enumerate().filter_map(is_member).collect();
            pipeline.step_together(&mut batch).unwrap();
            members.iter().for_each(|&i| pipeline.step(&mut alone[i]).unwrap());
            kept.push(together[0].stage.joined.as_ref().and_then(|joined| joined.context.id()));
        }
        assert_eq!(kept[0], kept[1]);
        assert!(kept[1] != kept[2] && kept[2] != kept[3] && kept[3] != kept[0]);
        for (a, b) in together.iter().zip(&alone) {
            let difference = (&a.latents - &b.latents).unwrap().abs().unwrap().max_all().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-4);
        }
        let other = (&alone[0].latents - &alone[2].latents).unwrap().abs().unwrap().max_all().unwrap();
        assert!(other.to_scalar::<f32>().unwrap() > 0.1, "another prompt shows");
    }
}
