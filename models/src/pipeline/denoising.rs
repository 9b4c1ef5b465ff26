//! One picture in the making.

use candle_core::{D, Tensor};

use super::Pipeline;
use crate::denoiser::{UNet2DCondition, UnetContext};
use crate::noise::TorchGenerator;
use crate::sampler::Sampler;
use crate::{Error, Result};

/// A picture on its way from noise: latents, where in the schedule they are, and everything the next step needs.
#[derive(Debug)]
pub struct Denoising {
    /// Size of the picture that was asked for.
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) latents: Tensor,
    pub(super) noise: TorchGenerator,
    pub(super) stage: Stage,
    pub(super) refiner: Option<Stage>,
    pub(super) inpaint: Option<Inpaint>,
    pub(super) done: usize,
}

/// A denoiser's share of the schedule.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) sampler: Sampler,
    pub(super) context: UnetContext,
    /// `None` runs the denoiser once a step.
    pub(super) guidance_scale: Option<f64>,
    pub(super) refining: bool,
}

/// What inpainting keeps.
#[derive(Debug)]
pub(super) enum Inpaint {
    /// A 4-channel UNet: after each step the kept part is put back, noised as far as the schedule is.
    Blend {
        /// `(1, h, w, 1)`, 1 is repainted.
        mask: Tensor,
        image_latents: Tensor,
        noise: Tensor,
    },
    /// A 9-channel UNet sees mask and masked picture: `(1, h, w, 5)`.
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
}

impl Pipeline {
    /// Runs the denoiser once and moves the latents one step on.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the latents are no numbers any more, which would decode to a black picture.
    pub fn step(&self, denoising: &mut Denoising) -> Result<()> {
        if denoising.stage.sampler.is_done() {
            match denoising.refiner.take() {
                Some(refiner) => denoising.stage = refiner,
                None => return Ok(()),
            }
        }
        let Denoising { latents, noise, stage, inpaint, .. } = denoising;
        let unet = match (&self.refiner, stage.refining) {
            (Some(refiner), true) => &refiner.unet,
            _ => &self.unet,
        };
        let model_output = stage.predict(unet, latents, inpaint.as_ref())?;
        *latents = stage.sampler.step(&model_output, latents, noise)?;
        if let Some(Inpaint::Blend { mask, image_latents, noise }) = inpaint {
            *latents = stage.put_back(latents, mask, image_latents, noise)?;
        }
        denoising.done += 1;
        if !latents.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
            return Err(Error::NotFinite { step: denoising.done });
        }
        Ok(())
    }
}

impl Stage {
    /// The model output for the next timestep, guided where it is to be.
    fn predict(&self, unet: &UNet2DCondition, latents: &Tensor, inpaint: Option<&Inpaint>) -> Result<Tensor> {
        let mut input = self.sampler.scale_model_input(latents)?;
        if let Some(Inpaint::Concatenate(extra)) = inpaint {
            input = Tensor::cat(&[&input, extra], D::Minus1)?;
        }
        let t = self.sampler.timesteps()[self.sampler.position()];
        let Some(scale) = self.guidance_scale else {
            return unet.forward(&input, &[t], &self.context);
        };
        let both = unet.forward(&Tensor::cat(&[&input, &input], 0)?, &[t, t], &self.context)?;
        // negative + scale * (prompt - negative)
        let (negative, prompt) = (both.narrow(0, 0, 1)?, both.narrow(0, 1, 1)?);
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
