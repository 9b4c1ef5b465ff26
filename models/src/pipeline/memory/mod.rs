//! What a model and its pictures take in memory, decided before anything is loaded or computed.
//!
//! `Budget` holds what is known of a loaded model: [`flux`] chooses which parts of FLUX stay in memory, [`unet`] sums
//! up Stable Diffusion. Both estimate the most that is in memory at a time while a picture is made: in the denoiser,
//! whose batch multiplies it, or in the VAE, which can work in tiles instead. What does not fit even so is refused.

pub mod flux;
mod parameters;
pub mod unet;

use aquatint_kernels::DeviceMemory;
use candle_core::{DType, Device};

pub use flux::{FluxNeeds, MemoryPlan, Place};
pub use unet::UnetNeeds;

use crate::checkpoint::{ModelFolder, RANDOM_WEIGHTS};
use crate::denoiser::StepCache;
use crate::{Error, Result};

/// Pixels of a tile of the VAE.
const TILE_PIXELS: u64 = 512 * 512;
/// What the program and the allocator take on a CPU beside tensors.
const CPU_OVERHEAD: u64 = 64 << 20;
/// What a GPU needs beside the tensors that are counted: kernels as they are loaded, and the workspaces of convolutions,
/// products and attention, up to 256 MB each. An upper bound by their constants; not measured on a device.
const GPU_OVERHEAD: u64 = 1 << 30;

/// A picture and its prompt, as far as memory depends on them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Extent {
    /// Pixels of the picture.
    pub pixels: u64,
    /// Image tokens of FLUX, those of a reference picture included.
    pub image_tokens: u64,
    /// Text tokens.
    pub text_tokens: u64,
    /// Samples that go through the denoiser at a time: with classifier-free guidance two a picture.
    pub samples: u64,
    /// What keeps features from step to step, if anything does.
    pub step_cache: Option<StepCache>,
}

/// What is taken beside tensors.
pub(super) fn overhead(device: &Device) -> u64 {
    if device.is_cpu() { CPU_OVERHEAD } else { GPU_OVERHEAD }
}

/// Bytes of a component's weights as they are held; 0 where a model of random weights has none.
///
/// # Errors
/// Files or a config that cannot be read.
pub(super) fn held_bytes(
    folder: &ModelFolder,
    component: &str,
    dtype: Option<DType>,
    device: &Device,
) -> Result<u64> {
    match folder {
        ModelFolder::Published(_) | ModelFolder::Untrained(_) => {
            let size = dtype.unwrap_or(RANDOM_WEIGHTS).size_in_bytes();
            Ok((parameters::parameters(folder, component)? * size as f64) as u64)
        }
        _ => folder.held_bytes(component, dtype, device.is_cpu()),
    }
}

/// What a model needs.
#[derive(Debug)]
pub(super) enum Needs {
    Flux(FluxNeeds, MemoryPlan),
    Unet(UnetNeeds),
}

/// What a model needs, and what there is.
#[derive(Debug)]
pub(super) struct Budget {
    needs: Needs,
    /// As it was before the model was loaded, or as the user has set it.
    room: u64,
    is_set: bool,
}

impl Budget {
    /// `room`: what [`room`] said before the model was loaded; `is_set`: by the user.
    pub(super) fn new(needs: Needs, room: u64, is_set: bool) -> Self {
        Self { needs, room, is_set }
    }

    /// The most that is in memory at a time while this is made, `tiled`: with the VAE in tiles.
    pub(super) fn peak(&self, extent: &Extent, tiled: bool) -> u64 {
        match &self.needs {
            Needs::Flux(needs, plan) => {
                MemoryPlan { vae_tiling: plan.vae_tiling || tiled, ..*plan }.peak(needs, extent)
            }
            Needs::Unet(needs) => needs.peak(extent, tiled),
        }
    }

    /// Bytes for this model and its pictures if it has the device for itself. A GPU is asked anew: other programs may
    /// have come or gone. On a CPU the process' own freed memory would not be seen.
    pub(super) fn room_on(&self, device: &Device) -> u64 {
        match DeviceMemory::of(device) {
            Some(memory) if !self.is_set => memory.attainable(),
            _ => self.room,
        }
    }

    /// Refuses what would not fit into `room` even alone and in tiles, before anything is computed for it.
    ///
    /// # Errors
    /// [`Error::Invalid`] names what it needs and what there is.
    pub(super) fn check(&self, extent: &Extent, room: u64) -> Result<()> {
        let peak = self.peak(extent, true);
        if peak <= room {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "width and height: {} pixels need {} of memory, {} are there: take a smaller picture",
            extent.pixels,
            gigabytes(peak),
            gigabytes(room)
        )))
    }

    /// Whether the VAE has to work in tiles for this to fit.
    pub(super) fn needs_tiles(&self, extent: &Extent, room: u64) -> bool {
        self.peak(extent, false) > room
    }

    /// How many of `pictures` that are alike fit into one step; at least one. `extent` is one picture's.
    pub(super) fn together(&self, extent: &Extent, pictures: usize, room: u64) -> usize {
        let fits = |count: usize| {
            let all = Extent { samples: extent.samples * count as u64, ..*extent };
            self.peak(&all, true) <= room
        };
        (2..=pictures).rev().find(|&count| fits(count)).unwrap_or(1)
    }
}

/// Bytes that a model may take: what the user has set, else what is free on the device and within a container's limit.
pub(super) fn room(set: Option<u64>, device: &Device) -> u64 {
    set.or_else(|| free_bytes(device)).unwrap_or(u64::MAX)
}

fn free_bytes(device: &Device) -> Option<u64> {
    if !device.is_cpu() {
        return DeviceMemory::of(device).map(|memory| memory.available());
    }
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let available = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
    });
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let limit = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(limit, used)| limit.saturating_sub(used));
    available.into_iter().chain(limit).min()
}

/// `12.3 GB`
fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoiser::UnetConfig;

    const GB: u64 = 1_000_000_000;

    /// Stable Diffusion 1.5 in f16 on a GPU.
    fn budget() -> Budget {
        let needs = UnetNeeds {
            weights: 2 * GB,
            unets: vec![UnetConfig::default()],
            activation: 2,
            vae_channels: vec![128, 256, 512, 512],
            vae_activation: 4,
            overhead: GPU_OVERHEAD,
        };
        Budget::new(Needs::Unet(needs), 8 * GB, true)
    }

    fn extent(side: u64, samples: u64) -> Extent {
        Extent { pixels: side * side, text_tokens: 77, samples, ..Extent::default() }
    }

    #[test]
    fn what_does_not_fit_even_in_tiles_is_refused_with_both_numbers() {
        let budget = budget();
        assert!(budget.check(&extent(512, 2), 6 * GB).is_ok());
        let refused = budget.check(&extent(512, 2), 3 * GB).unwrap_err();
        let text = refused.to_string();
        assert!(matches!(refused, Error::Invalid(_)));
        assert!(text.contains("262144 pixels need") && text.contains("3.0 GB are there"), "{text}");
    }

    #[test]
    fn tiles_come_before_a_refusal() {
        let (budget, large) = (budget(), extent(2048, 2));
        let (whole, tiled) = (budget.peak(&large, false), budget.peak(&large, true));
        assert!(tiled < whole);
        assert!(!budget.needs_tiles(&large, whole) && budget.needs_tiles(&large, whole - 1));
        assert!(budget.check(&large, tiled).is_ok() && budget.check(&large, tiled - 1).is_err());
    }

    #[test]
    fn a_batch_is_as_large_as_fits_and_never_empty() {
        let (budget, one) = (budget(), extent(1024, 2));
        let room_for = |count: u64| budget.peak(&Extent { samples: 2 * count, ..one }, true);
        for count in 1..=8 {
            assert_eq!(budget.together(&one, 8, room_for(count)), count as usize);
        }
        assert_eq!(budget.together(&one, 3, u64::MAX), 3, "no more than there are");
        assert_eq!(budget.together(&one, 8, 0), 1, "what does not fit alone fails alone");
    }

    #[test]
    fn what_is_set_goes_before_what_is_free() {
        assert_eq!(room(Some(5), &Device::Cpu), 5);
        assert_eq!(budget().room_on(&Device::Cpu), 8 * GB);
        let free = room(None, &Device::Cpu);
        assert!(cfg!(not(target_os = "linux")) || (1 << 20..u64::MAX).contains(&free), "{free}");
    }
}
