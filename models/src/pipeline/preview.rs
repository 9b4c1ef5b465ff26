//! A small picture of unfinished latents, without the VAE: each latent becomes one pixel, by a linear map.
//!
//! Published VAEs have known maps. For others one is fitted once, by decoding latents of flat colours.

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use super::{Denoising, Pipeline};
use crate::noise::TorchGenerator;
use crate::vae::AutoencoderKl;
use crate::{Error, Result};

/// From the denoiser's latents to colours in -1..1: a row for each latent channel, then the constant.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LatentToRgb(Vec<[f64; 3]>);

/// Source: `SD15.latent_rgb_factors` in ComfyUI's `comfy/latent_formats.py`.
const SD15: [[f64; 3]; 5] = [
    [0.3512, 0.2297, 0.3227],
    [0.3250, 0.4974, 0.2350],
    [-0.2829, 0.1762, 0.2721],
    [-0.2120, -0.2616, -0.7177],
    [0.0, 0.0, 0.0],
];
/// Source: `SDXL.latent_rgb_factors` and its bias in the same file.
const SDXL: [[f64; 3]; 5] = [
    [0.3651, 0.4232, 0.4341],
    [-0.2533, -0.0042, 0.1068],
    [0.1076, 0.1111, -0.0362],
    [-0.3165, -0.2492, -0.2188],
    [0.1084, -0.0175, -0.0011],
];

/// Blocks of the published VAEs of SD and SDXL, which differ in `scaling_factor`.
const PUBLISHED_BLOCKS: [usize; 4] = [128, 256, 512, 512];

/// The fit decodes this many flat patches on a side, each of so many latents on a side.
const PATCHES: usize = 8;
const PATCH: usize = 4;

impl Pipeline {
    /// What the picture looks like so far, one pixel for each latent.
    ///
    /// # Errors
    /// Those of the device.
    pub fn preview(&self, denoising: &Denoising) -> Result<RgbImage> {
        let map = match self.preview.get() {
            Some(map) => map,
            None => {
                let map = LatentToRgb::of(&self.vae, &self.device)?;
                self.preview.get_or_init(|| map)
            }
        };
        map.picture(&denoising.denoised()?)
    }
}

impl LatentToRgb {
    fn of(vae: &AutoencoderKl, device: &Device) -> Result<Self> {
        let config = vae.config();
        let published = config.block_out_channels == PUBLISHED_BLOCKS && config.latent_channels == 4;
        match config.scaling_factor {
            0.18215 if published => Ok(Self(SD15.to_vec())),
            0.13025 if published => Ok(Self(SDXL.to_vec())),
            _ => Self::fitted(vae, device),
        }
    }

    /// The least-squares map from latents to the mean colours of what the VAE makes of them.
    fn fitted(vae: &AutoencoderKl, device: &Device) -> Result<Self> {
        let mut fit = LeastSquares::new(vae.config().latent_channels + 1);
        for (latent, colour) in flat_colours(vae, 0, device)? {
            fit.add(&latent, colour);
        }
        Ok(Self(fit.solve()))
    }

    /// `latents`: `(1, height, width, channels)`.
    fn picture(&self, latents: &Tensor) -> Result<RgbImage> {
        let (_, height, width, channels) = latents.dims4()?;
        let (factors, Some(constant)) = (&self.0, self.0.get(channels)) else {
            return Err(Error::invalid(format!("no preview for latents of {channels} channels")));
        };
        let values: Vec<f32> = latents.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
        let colour = |latent: &[f32]| {
            let mut sums = *constant;
            for (&value, factor) in latent.iter().zip(factors) {
                for (sum, factor) in sums.iter_mut().zip(factor) {
                    *sum += f64::from(value) * factor;
                }
            }
            sums.map(|v| ((v + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8)
        };
        let bytes = values.chunks_exact(channels).flat_map(colour).collect();
        RgbImage::from_raw(width as u32, height as u32, bytes)
            .ok_or_else(|| Error::invalid("the preview does not have the latents' size"))
    }
}

/// Latents, each followed by a 1, and the colour that the VAE gives to a patch of each.
fn flat_colours(vae: &AutoencoderKl, seed: u64, device: &Device) -> Result<Vec<(Vec<f64>, [f64; 3])>> {
    let (channels, side, scale) = (vae.config().latent_channels, PATCHES * PATCH, vae.downscale());
    let flat = TorchGenerator::new(seed).latents(channels, PATCHES, PATCHES, device)?;
    let latents = aquatint_kernels::upsample_nearest(&flat, side, side)?;
    let pixels = vae.decode(&vae.unscale_latents(&latents)?)?;
    let flat: Vec<f32> = flat.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
    let pixels: Vec<f32> = pixels.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
    let width = side * scale;
    // The middle half of each patch: its edges know their neighbours.
    let (margin, middle) = (PATCH * scale / 4, (PATCH * scale / 2).max(1));
    let colour = |(patch, latent): (usize, &[f32])| {
        let (row, column) = (patch / PATCHES * PATCH * scale, patch % PATCHES * PATCH * scale);
        let mut colour = [0.0; 3];
        for y in row + margin..row + margin + middle {
            for x in column + margin..column + margin + middle {
                for (c, sum) in colour.iter_mut().enumerate() {
                    *sum += f64::from(pixels[(y * width + x) * 3 + c]) / (middle * middle) as f64;
                }
            }
        }
        (latent.iter().map(|&v| f64::from(v)).chain([1.0]).collect(), colour)
    };
    Ok(flat.chunks_exact(channels).enumerate().map(colour).collect())
}

/// Sums for a linear fit of three outputs.
struct LeastSquares {
    /// `inputs x inputs`, then the three outputs beside.
    rows: Vec<Vec<f64>>,
}

impl LeastSquares {
    fn new(inputs: usize) -> Self {
        // A trace of a ridge keeps a channel that never varies from dividing by zero.
        let row = |i| (0..inputs + 3).map(|j| if i == j { 1e-6 } else { 0.0 }).collect();
        Self { rows: (0..inputs).map(row).collect() }
    }

    fn add(&mut self, inputs: &[f64], outputs: [f64; 3]) {
        for (row, a) in self.rows.iter_mut().zip(inputs) {
            for (sum, b) in row.iter_mut().zip(inputs.iter().chain(&outputs)) {
                *sum += a * b;
            }
        }
    }

    /// The coefficients of each input, by Gauss-Jordan elimination: the matrix is positive definite.
    fn solve(mut self) -> Vec<[f64; 3]> {
        let n = self.rows.len();
        for pivot in 0..n {
            let own = self.rows[pivot].clone();
            for (i, row) in self.rows.iter_mut().enumerate() {
                let factor = if i == pivot { 0.0 } else { row[pivot] / own[pivot] };
                row.iter_mut().zip(&own).for_each(|(value, own)| *value -= factor * own);
            }
        }
        let solution = |(i, row): (usize, &Vec<f64>)| [0, 1, 2].map(|c| row[n + c] / row[i]);
        self.rows.iter().enumerate().map(solution).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{GenerationRequest, LoadOptions, ModelSource};

    #[test]
    fn finds_the_map_that_made_the_colours() {
        let (slope, constant) = ([[0.5, -1.0, 0.25], [2.0, 0.0, -0.5]], [0.1, 0.2, -0.3]);
        let mut fit = LeastSquares::new(3);
        for (a, b) in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (-1.5, 2.0), (0.3, 0.7)] {
            fit.add(&[a, b, 1.0], [0, 1, 2].map(|c| a * slope[0][c] + b * slope[1][c] + constant[c]));
        }
        for (found, expected) in fit.solve().iter().zip([slope[0], slope[1], constant]) {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
            }
        }
    }

    #[test]
    fn a_fitted_map_knows_the_colours_of_other_latents() {
        let vae =
            AutoencoderKl::load(&crate::checkpoint::builtin::folder(), "vae", None, &Device::Cpu).unwrap();
        let map = LatentToRgb::fitted(&vae, &Device::Cpu).unwrap();
        let held_out = flat_colours(&vae, 1, &Device::Cpu).unwrap();
        let mean = [0, 1, 2].map(|c| held_out.iter().map(|(_, colour)| colour[c]).sum::<f64>() / 64.0);
        let (mut error, mut spread) = (0.0, 0.0);
        for (latent, colour) in &held_out {
            for c in 0..3 {
                let predicted: f64 = latent.iter().zip(&map.0).map(|(value, row)| value * row[c]).sum();
                error += (predicted - colour[c]).powi(2);
                spread += (mean[c] - colour[c]).powi(2);
            }
        }
        // Even this small VAE is linear enough for more than half of the variance.
        assert!(error < spread / 2.0, "{error} of {spread}");
    }

    #[test]
    fn a_preview_shows_where_the_last_step_points() {
        let pipeline = Pipeline::load(&ModelSource::Builtin, &LoadOptions::default()).unwrap();
        let map = LatentToRgb::of(&pipeline.vae, &Device::Cpu).unwrap();
        let request = GenerationRequest {
            scheduler: Some("Euler".to_owned()),
            num_inference_steps: Some(3),
            ..GenerationRequest::new("a red apple", 1)
        };
        let mut denoising = pipeline.start(&request).unwrap();
        let difference = |denoising: &Denoising| {
            let (seen, latents) = (pipeline.preview(denoising).unwrap(), map.picture(&denoising.latents));
            let pairs = seen.into_raw().into_iter().zip(latents.unwrap().into_raw());
            pairs.map(|(a, b)| a.abs_diff(b)).max().unwrap()
        };
        assert_eq!(difference(&denoising), 0, "before the first there are the latents alone");
        for step in 1..=3 {
            pipeline.step(&mut denoising).unwrap();
            // Euler's last step goes all the way.
            assert_eq!(difference(&denoising) > 1, step < 3, "step {step}");
        }
    }

    #[test]
    fn one_pixel_a_latent_clamped() {
        let map = LatentToRgb(vec![[1.0, 0.0, -1.0], [0.0, 0.5, 0.0]]);
        let latents = Tensor::from_vec(vec![0f32, 1.0, -9.0], (1, 1, 3, 1), &Device::Cpu).unwrap();
        // 127.5 * (1 + value), rounded
        assert_eq!(map.picture(&latents).unwrap().into_raw(), [128, 191, 128, 255, 191, 0, 0, 191, 255]);
    }
}
