//! What Stable Diffusion takes: all weights, and the most of the activations.
//!
//! The sums follow the code they are of, `UNet2DCondition::forward` and the VAE's `Decoder::forward`, tensor by tensor;
//! a test compares them with what a run takes.

use std::path::Path;

use candle_core::{DType, Device};

use super::{Extent, TILE_PIXELS, gigabytes, held_bytes, overhead, parameters};
use crate::checkpoint::ModelFolder;
use crate::denoiser::{DeepCache, StepCache, UnetConfig};
use crate::pipeline::LoadOptions;
use crate::vae::AutoencoderKlConfig;
use crate::{Error, Result};

/// Pixels of a side beyond which no model was trained.
const LARGEST_NATIVE_PX: usize = 4096;

/// What decides about memory.
#[derive(Clone, Debug)]
pub struct UnetNeeds {
    /// Bytes of all weights.
    pub weights: u64,
    /// The denoiser, and the refiner's.
    pub unets: Vec<UnetConfig>,
    /// Bytes of an activation in the denoiser.
    pub activation: u64,
    /// Channels of the VAE, finest first.
    pub vae_channels: Vec<usize>,
    /// Bytes of an activation in the VAE.
    pub vae_activation: u64,
    /// What is taken beside tensors.
    pub overhead: u64,
}

impl UnetNeeds {
    /// What can be said from configs and the heads of files. Types of activations are known better once the weights are
    /// there.
    ///
    /// # Errors
    /// A config of the refiner that cannot be read.
    pub fn before_loading(
        folder: &ModelFolder,
        options: &LoadOptions,
        (unet, vae): (&UnetConfig, &AutoencoderKlConfig),
        device: &Device,
    ) -> Result<Self> {
        let dtype = options.precision.dtype(device);
        // Small parts in 16 bits are widened; what cannot be read is told by who reads it.
        let of_file = |path: &Path, times: u64| path.metadata().map_or(0, |file| times * file.len());
        let part = |folder: &ModelFolder, name: &str, file: Option<&Path>, times| match file {
            Some(path) => of_file(path, times),
            None => held_bytes(folder, name, dtype, device).unwrap_or(0),
        };
        // A byte is left of each of them; blocks of GGUF files, smaller or as small, stay.
        let rounded = |bytes: u64, config: &UnetConfig| {
            let each = bytes as f64 / parameters::unet(config).max(1.0);
            let saved = if options.quantisation.is_some() { (each - 1.0).max(0.0) } else { 0.0 };
            bytes.saturating_sub((saved * parameters::in_blocks(config)) as u64)
        };
        let mut weights = rounded(part(folder, "unet", options.unet.as_deref(), 1), unet)
            + part(folder, "vae", options.vae.as_deref(), 2)
            + part(folder, "text_encoder", options.text_encoder.as_deref(), 2)
            + part(folder, "text_encoder_2", None, 1);
        let mut unets = vec![unet.clone()];
        if let Some(path) = &options.refiner {
            let refiner = ModelFolder::open(path)?;
            let unet: UnetConfig = refiner.json("unet/config.json")?;
            weights += rounded(part(&refiner, "unet", None, 1), &unet);
            weights += part(&refiner, "text_encoder_2", None, 1);
            unets.push(unet);
        }
        let wide = device.is_cpu() || dtype == Some(DType::F32);
        Ok(Self {
            weights,
            unets,
            activation: if wide { 4 } else { 2 },
            vae_channels: vae.block_out_channels.clone(),
            vae_activation: if wide || vae.force_upcast { 4 } else { 2 },
            overhead: overhead(device),
        })
    }

    /// Refuses a model that has no room for a picture of its own size, without guidance and with the VAE in tiles.
    ///
    /// # Errors
    /// [`Error::NoRoom`] names what it needs and what there is.
    pub fn check_model(&self, room: u64) -> Result<()> {
        let latents = self.unets.first().map_or(0, UnetConfig::native_latent_size);
        let side = latents.saturating_mul(8).min(LARGEST_NATIVE_PX) as u64;
        let extent = Extent { pixels: side * side, samples: 1, ..Extent::default() };
        let least = self.peak(&extent, true);
        if least <= room {
            return Ok(());
        }
        Err(Error::NoRoom(format!(
            "this model needs at least {} of memory, {} are free: take a smaller one or one in 16 bits, or free memory",
            gigabytes(least),
            gigabytes(room)
        )))
    }

    /// The most that is in memory at a time, in a step or in the VAE, `tiled` or not.
    pub fn peak(&self, extent: &Extent, tiled: bool) -> u64 {
        let latents = at_level(extent.pixels as f64, self.vae_channels.len().saturating_sub(1));
        let step = self.unets.iter().map(|unet| step_values(unet, latents)).fold(0.0, f64::max);
        let kept = match (extent.step_cache, self.unets.first()) {
            // The last are there until a step has computed the next.
            (Some(StepCache::Deep(cache)), Some(unet)) => 2.0 * kept_values(unet, latents, cache),
            _ => 0.0,
        };
        let step = (step + kept) * extent.samples as f64 * self.activation as f64;
        let at_once = if tiled { extent.pixels.min(TILE_PIXELS) } else { extent.pixels };
        let decode = decode_values(&self.vae_channels, at_once as f64) * self.vae_activation as f64
            // The picture, and the tiles it is put together of, in f32.
            + extent.pixels as f64 * 3.0 * 4.0 * 2.0;
        self.overhead.saturating_add(self.weights).saturating_add(step.max(decode) as u64)
    }
}

// Sums are of f64: a config, which is checked later, may hold any numbers.

/// Pixels of a level, each of which has half the sides of the one before.
fn at_level(pixels: f64, level: usize) -> f64 {
    (pixels / 4f64.powi(i32::try_from(level).unwrap_or(i32::MAX))).ceil()
}

/// Values that are in memory at the most while a sample of so many latents goes through the UNet.
fn step_values(unet: &UnetConfig, latents: f64) -> f64 {
    /// More residual blocks at one level than any model has.
    const LAYERS: usize = 64;
    let channels: Vec<f64> = unet.block_out_channels.iter().map(|&c| c as f64).collect();
    let (blocks, first) = (channels.len(), channels.first().copied().unwrap_or(0.0));
    let attends =
        |types: &[String], block: usize| types.get(block).is_some_and(|t| t.starts_with("CrossAttn"));
    // What comes down is kept for the way up.
    let mut skips = vec![first * latents];
    let (mut peak, mut from) = (0f64, first);
    for (level, &out) in channels.iter().enumerate() {
        let pixels = at_level(latents, level);
        for _ in 0..unet.layers(level).min(LAYERS) {
            let layer = layer_values(from, out, pixels, attends(&unet.down_block_types, level));
            peak = peak.max(skips.iter().sum::<f64>() + layer);
            skips.push(out * pixels);
            from = out;
        }
        if level + 1 < blocks {
            skips.push(out * at_level(latents, level + 1));
        }
    }
    let coarsest = at_level(latents, blocks.saturating_sub(1));
    peak = peak.max(skips.iter().sum::<f64>() + from * coarsest + layer_values(from, from, coarsest, true));
    for (block, level) in (0..blocks).rev().enumerate() {
        let (out, pixels) = (channels[level], at_level(latents, level));
        for _ in 0..=unet.layers(level).min(LAYERS) {
            // Joined, and apart.
            let skip = skips.last().copied().unwrap_or(0.0) / pixels.max(1.0);
            let kept = skips.iter().sum::<f64>() + (2.0 * from + skip) * pixels;
            let layer = layer_values(from + skip, out, pixels, attends(&unet.up_block_types, block));
            peak = peak.max(kept + layer);
            skips.pop();
            from = out;
        }
        if level > 0 {
            // Before, upsampled, and after.
            let around = out * (pixels + 2.0 * at_level(latents, level - 1));
            peak = peak.max(skips.iter().sum::<f64>() + around);
        }
    }
    peak
}

/// Values that DeepCache keeps of a sample: what goes into its branch's layer.
fn kept_values(unet: &UnetConfig, latents: f64, cache: DeepCache) -> f64 {
    let (block, layer) = cache.branch(unet);
    // The first layer of an up block reads what the coarser block, or the one in the middle, gives.
    let from = if layer == unet.layers(block) { block + 1 } else { block };
    let channels = unet.block_out_channels.get(from).or(unet.block_out_channels.last());
    channels.map_or(0.0, |&channels| channels as f64 * at_level(latents, block))
}

/// A residual block and the transformer behind it, without the block's input.
fn layer_values(from: f64, out: f64, pixels: f64, attends: bool) -> f64 {
    // Its result; then, over the tokens: what came into the block, what was normalised first, the sums after both
    // attentions, what is normalised, and the feed-forward layer's eight widths and their gated half.
    let transformer = if attends { (1.0 + 17.0) * out * pixels } else { 0.0 };
    resnet_values(from, out, pixels).max(transformer)
}

/// A residual block, without its input: normalised and convolved, or both and the shortcut's, with the result.
fn resnet_values(from: f64, out: f64, pixels: f64) -> f64 {
    let shortcut = if from == out { 0.0 } else { out };
    pixels * (from + out).max(2.0 * out + shortcut)
}

/// Values that are in memory at the most while the VAE decodes so many pixels.
fn decode_values(channels: &[usize], pixels: f64) -> f64 {
    let (mut peak, mut from) = (0f64, channels.last().copied().unwrap_or(0) as f64);
    for (level, &out) in channels.iter().enumerate().rev() {
        let (out, pixels) = (out as f64, at_level(pixels, level));
        // Before, upsampled, and after.
        let around = if level + 1 < channels.len() { from * 2.25 * pixels } else { 0.0 };
        peak = peak.max(around).max(from * pixels + resnet_values(from, out, pixels));
        from = out;
    }
    peak
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::published::Published;
    use crate::pipeline::{EightBits, Precision};

    #[test]
    fn the_vae_of_stable_diffusion_is_five_of_its_widths() {
        // Two of 256 and one of 128 channels in the first residual block at full size.
        assert_eq!(decode_values(&[128, 256, 512, 512], 1e6), 5.0 * 128.0 * 1e6);
    }

    #[test]
    fn a_step_grows_with_pixels_and_samples() {
        let unet = UnetConfig::default();
        let (small, large) = (step_values(&unet, 4096.0), step_values(&unet, 16384.0));
        assert!((3.9..4.1).contains(&(large / small)));
        let needs = UnetNeeds {
            weights: 7,
            unets: vec![unet],
            activation: 2,
            vae_channels: vec![4, 4, 4, 4],
            vae_activation: 4,
            overhead: 11,
        };
        let extent = |samples| Extent { pixels: 512 * 512, samples, ..Extent::default() };
        assert_eq!(needs.peak(&extent(1), false), 18 + 2 * small as u64);
        assert_eq!(needs.peak(&extent(8), false), 18 + 16 * small as u64);
    }

    /// SD 1.5 at 512 x 512: of 64 x 64 pixels the finest layers read 320 channels and the first of the finest block the
    /// 640 of the block before; of 8 x 8 the coarsest block reads the 1280 of the middle.
    #[test]
    fn what_deep_cache_keeps_counts_twice() {
        let needs = UnetNeeds {
            weights: 7,
            unets: vec![UnetConfig::default()],
            activation: 2,
            vae_channels: vec![4, 4, 4, 4],
            vae_activation: 4,
            overhead: 11,
        };
        let plain = Extent { pixels: 512 * 512, samples: 2, ..Extent::default() };
        for (branch_id, values) in [(0, 320 * 4096), (1, 320 * 4096), (2, 640 * 4096), (11, 1280 * 64)] {
            let step_cache = Some(StepCache::Deep(DeepCache { interval: 3, branch_id }));
            let kept = needs.peak(&Extent { step_cache, ..plain }, false) - needs.peak(&plain, false);
            // Two samples in two bytes, while the next are computed.
            assert_eq!(kept, 2 * 2 * 2 * values, "branch {branch_id}");
        }
    }

    /// Of SDXL 2.184 billion parameters are in transformer blocks, as diffusers counts them.
    #[test]
    fn rounded_blocks_take_a_byte_each() {
        let folder = ModelFolder::Published(Published::named("sdxl").unwrap());
        let (unet, vae) = (folder.json("unet/config.json").unwrap(), folder.json("vae/config.json").unwrap());
        let needs = |precision, quantisation| {
            let options = LoadOptions { precision, quantisation, ..LoadOptions::default() };
            UnetNeeds::before_loading(&folder, &options, (&unet, &vae), &Device::Cpu).unwrap().weights
        };
        for (precision, bytes) in [(Precision::Fp16, 2), (Precision::Fp32, 4)] {
            let saved = needs(precision, None) - needs(precision, Some(EightBits::Int8));
            assert!(saved.abs_diff((bytes - 1) * 2_183_987_200) <= 1, "{saved}");
        }
    }

    #[test]
    fn a_model_without_room_for_its_own_size_is_refused() {
        let needs = UnetNeeds {
            weights: 2_000_000_000,
            unets: vec![UnetConfig::default()],
            activation: 2,
            vae_channels: vec![128, 256, 512, 512],
            vae_activation: 4,
            overhead: 0,
        };
        assert!(needs.check_model(4_000_000_000).is_ok());
        let refused = needs.check_model(2_100_000_000).unwrap_err();
        assert!(matches!(&refused, Error::NoRoom(text) if text.contains("2.1 GB are free")), "{refused}");
    }

    #[test]
    fn configs_that_nobody_checked_give_some_number() {
        let none = UnetConfig { block_out_channels: Vec::new(), ..UnetConfig::default() };
        assert_eq!((step_values(&none, 4096.0), decode_values(&[], 4096.0)), (0.0, 0.0));
        let absurd = UnetConfig { block_out_channels: vec![usize::MAX; 100], ..UnetConfig::default() };
        let needs = UnetNeeds {
            weights: u64::MAX,
            unets: vec![absurd],
            activation: 2,
            vae_channels: vec![usize::MAX; 40],
            vae_activation: 4,
            overhead: 1,
        };
        let extent = Extent { pixels: u64::MAX, samples: u64::MAX, ..Extent::default() };
        assert_eq!(needs.peak(&extent, true), u64::MAX);
    }
}
