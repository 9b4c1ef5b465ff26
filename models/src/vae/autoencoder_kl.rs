//! The VAE of Stable Diffusion, SDXL and FLUX: a picture to a normal distribution of latents, and latents to a picture.
//!
//! Paper: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models".
//! Source: diffusers' `AutoencoderKL`, whose `config.json` and keys these are.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{D, DType, Device, Tensor};

use super::AutoencoderKlConfig;
use super::blocks::{Decoder, Encoder};
use crate::checkpoint::{ModelFolder, Weights};
use crate::layers::{Conv2d, Padding};
use crate::range::{Range, is_finite};
use crate::{Error, Result};

/// A normal distribution for each value of the latents.
#[derive(Clone, Debug)]
pub struct DiagonalGaussian {
    /// `(batch, height / downscale, width / downscale, latent_channels)`, unscaled.
    pub mean: Tensor,
    /// Standard deviations, in the shape of `mean`.
    pub std: Tensor,
}

impl DiagonalGaussian {
    /// From means and logarithms of variances side by side in the last dimension.
    pub(super) fn from_moments(moments: &Tensor) -> Result<Self> {
        let halves = moments.chunk(2, D::Minus1)?;
        // The bounds are the reference's: they keep `std` finite in f16.
        let std = (halves[1].clamp(-30f32, 20f32)? * 0.5)?.exp()?;
        Ok(Self { mean: halves[0].contiguous()?, std })
    }

    /// The most likely latents: the means.
    pub fn mode(&self) -> &Tensor {
        &self.mean
    }

    /// `mean + std * noise`; `noise`: standard normal values in the shape of `mean`.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        Ok((&self.mean + (&self.std * noise)?)?)
    }
}

/// The VAE.
#[derive(Debug)]
pub struct AutoencoderKl {
    config: AutoencoderKlConfig,
    activations: DType,
    encoder: Encoder,
    quant_conv: Option<Arc<Conv2d>>,
    post_quant_conv: Option<Arc<Conv2d>>,
    decoder: Decoder,
    /// `latents_mean` and `latents_std` where both are given.
    statistics: Option<(Tensor, Tensor)>,
    /// Runs that had to be repeated in f32.
    repeated: AtomicU64,
}

impl AutoencoderKl {
    /// From the folder `component` of a model. `dtype`: what filters are held in, `None` chooses by size.
    pub fn load(
        folder: &ModelFolder,
        component: &str,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self> {
        let file = format!("{component}/config.json");
        let config: AutoencoderKlConfig = folder.json(&file)?;
        config.check().map_err(|e| Error::file(folder.path(&file), e))?;
        Self::new(config, &folder.weights(component, dtype, device)?)
    }

    /// From one file in diffusers' or the original names, as fine-tuned VAEs are published; of a whole checkpoint, its
    /// VAE.
    ///
    /// `config` is that of the VAE it replaces; an `AutoencoderKL` config.json beside the file goes before it.
    pub fn load_file(
        path: impl AsRef<Path>,
        config: AutoencoderKlConfig,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self> {
        let path = path.as_ref();
        let config = config_beside(path)?.unwrap_or(config);
        config.check()?;
        let weights = Weights::open("vae", &[path.to_owned()], dtype, device)?;
        let vae = Self::new(config, &weights)?;
        match weights.unused().first() {
            // A deeper VAE than the config's has all that the config needs, and would decode to noise.
            Some(key) => Err(Error::file(path, format!("tensor {key} has no place in this config"))),
            None => Ok(vae),
        }
    }

    /// `weights` holds diffusers' names. Activations are f32 on the CPU, elsewhere of the weights' type; in f16 features
    /// are held in [`Range::HALF`].
    ///
    /// # Errors
    /// A config that cannot be built, or a tensor that is missing or has another shape.
    pub fn new(config: AutoencoderKlConfig, weights: &Weights) -> Result<Self> {
        let activations = weights.activations("decoder.conv_in");
        let range = if activations == DType::F16 { Range::HALF } else { Range::FULL };
        Self::in_range(config, weights, activations, range)
    }

    /// As [`Self::new`], with activations and a range of one's own choice. Tests need those of other devices.
    #[doc(hidden)]
    pub fn in_range(
        config: AutoencoderKlConfig,
        weights: &Weights,
        activations: DType,
        range: Range,
    ) -> Result<Self> {
        config.check()?;
        let pointwise = |name: &str, c: usize| weights.conv2d(name, c, c, 1, 1, Padding::default());
        let channel = |v: &[f64]| {
            let v: Vec<f32> = v.iter().map(|&v| v as f32).collect();
            Tensor::from_slice(&v, v.len(), weights.device())
        };
        let statistics = match (&config.latents_mean, &config.latents_std) {
            (Some(mean), Some(std)) => Some((channel(mean)?, channel(std)?)),
            _ => None,
        };
        let latents = config.latent_channels;
        Ok(Self {
            encoder: Encoder::new(&config, &weights.pp("encoder"), range)?,
            quant_conv: config.use_quant_conv.then(|| pointwise("quant_conv", 2 * latents)).transpose()?,
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| pointwise("post_quant_conv", latents))
                .transpose()?,
            decoder: Decoder::new(&config, &weights.pp("decoder"), range)?,
            statistics,
            activations,
            repeated: AtomicU64::new(0),
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

    /// What it was built from.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// Pixels on a side of one latent.
    pub fn downscale(&self) -> usize {
        self.config.downscale()
    }

    /// The distribution of a picture's latents, unscaled.
    ///
    /// `image`: `(batch, height, width, 3)` in -1..1; sides that are no multiples of [`Self::downscale`] lose their
    /// rest. Source: `AutoencoderKL.encode` of diffusers.
    ///
    /// # Errors
    /// Another number of channels, or a side below [`Self::downscale`]. [`Error::NotFinite`] where it is that in f32 too.
    pub fn encode(&self, image: &Tensor) -> Result<DiagonalGaussian> {
        DiagonalGaussian::from_moments(&self.moments(image)?)
    }

    pub(super) fn moments(&self, image: &Tensor) -> Result<Tensor> {
        let (_, height, width, channels) = image.dims4()?;
        let least = self.downscale();
        if channels != self.config.in_channels || height < least || width < least {
            return Err(Error::invalid(format!(
                "the VAE cannot encode {height} x {width} pixels of {channels} channels: at least {least} x {least} \
                 of {} are needed",
                self.config.in_channels
            )));
        }
        self.guarded("the encoded picture is", |activations| {
            let moments = self.encoder.forward(&image.to_dtype(activations)?)?;
            let moments = match &self.quant_conv {
                Some(conv) => conv.forward(&moments)?,
                None => moments,
            };
            Ok(moments.to_dtype(image.dtype())?)
        })
    }

    /// Runs in the type of the activations, and where that gives what is not finite, once more in f32.
    fn guarded(&self, what: &str, run: impl Fn(DType) -> Result<Tensor>) -> Result<Tensor> {
        let y = run(self.activations)?;
        if is_finite(&y)? {
            return Ok(y);
        }
        if self.activations != DType::F32 {
            self.repeated.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("{what} not finite in {:?}: it is computed again in f32", self.activations);
            let y = run(DType::F32)?;
            if is_finite(&y)? {
                return Ok(y);
            }
        }
        Err(Error::NotFinite(what.to_owned()))
    }

    /// How often something was computed again in f32, because f16 or bf16 could not hold it.
    pub fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// The picture of latents.
    ///
    /// `latents`: `(batch, height, width, latent_channels)`, unscaled (see [`Self::unscale_latents`]); returns
    /// `(batch, height * downscale, width * downscale, 3)`, about -1..1. Source: `AutoencoderKL.decode` of diffusers.
    ///
    /// # Errors
    /// Another number of channels, or a side of 0. [`Error::NotFinite`] where the picture is that in f32 too.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let (_, height, width, channels) = latents.dims4()?;
        if channels != self.config.latent_channels || height == 0 || width == 0 {
            return Err(Error::invalid(format!(
                "the VAE cannot decode {height} x {width} latents of {channels} channels: at least 1 x 1 of {} are \
                 needed",
                self.config.latent_channels
            )));
        }
        self.guarded("the decoded picture is", |activations| {
            let z = latents.to_dtype(activations)?;
            let image = match &self.post_quant_conv {
                Some(conv) => self.decoder.forward(&conv.forward(&z)?)?,
                None => self.decoder.forward(&z)?,
            };
            Ok(image.to_dtype(latents.dtype())?)
        })
    }

    /// The VAE's latents as the denoiser works on them: about unit variance.
    ///
    /// `(latents - shift_factor) * scaling_factor`, or `(latents - mean) * scaling_factor / std` a channel.
    pub fn scale_latents(&self, latents: &Tensor) -> Result<Tensor> {
        let scale = self.config.scaling_factor;
        match &self.statistics {
            Some((mean, std)) => Ok((latents.broadcast_sub(mean)? * scale)?.broadcast_div(std)?),
            None => Ok(latents.affine(scale, -scale * self.config.shift_factor.unwrap_or(0.0))?),
        }
    }

    /// The denoiser's latents as [`Self::decode`] takes them: undoes [`Self::scale_latents`].
    pub fn unscale_latents(&self, latents: &Tensor) -> Result<Tensor> {
        let scale = self.config.scaling_factor;
        match &self.statistics {
            Some((mean, std)) => Ok((latents.broadcast_mul(std)? / scale)?.broadcast_add(mean)?),
            None => Ok(latents.affine(1.0 / scale, self.config.shift_factor.unwrap_or(0.0))?),
        }
    }
}

/// The config.json in the same folder, if it is that of an `AutoencoderKL`.
fn config_beside(path: &Path) -> Result<Option<AutoencoderKlConfig>> {
    let path = path.with_file_name("config.json");
    let Ok(bytes) = std::fs::read(&path) else {
        return Ok(None);
    };
    let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| Error::file(&path, e))?;
    if json["_class_name"] != "AutoencoderKL" {
        return Ok(None);
    }
    serde_json::from_value(json).map(Some).map_err(|e| Error::file(&path, e))
}
