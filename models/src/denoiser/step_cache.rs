//! Steps that reuse what an earlier step computed: faster, and another picture.
//!
//! Both ways rest on deep features changing little from one step to the next. Neither is used unless it is asked for.
//!
//! Sources: `apply_first_block_cache` of diffusers, after Liu et al. 2024, <https://arxiv.org/abs/2411.19108>;
//! `DeepCacheSDHelper` of the package DeepCache, Ma et al. 2023, <https://arxiv.org/abs/2312.00858>.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Denoiser, UnetConfig};
use crate::{Error, Result};

/// Places of DeepCache in each block of a UNet, whatever its depth.
const BRANCHES_A_BLOCK: usize = 3;
/// The largest [`DeepCache::interval`]: beyond it hardly a step would be computed whole.
pub const MAX_INTERVAL: usize = 100;

/// A way to leave out work in some steps. The picture changes with it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum StepCache {
    /// For FLUX: where the first block changes its input nearly as it did in the last step that was computed whole, the
    /// other blocks are taken to do so too.
    FirstBlock {
        /// By which part the first block's change may differ, 0 to 1: 0 computes every step, diffusers' choice is 0.05.
        threshold: f64,
    },
    /// For UNets: all but the finest layers are computed in some steps only.
    Deep(DeepCache),
}

/// DeepCache's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeepCache {
    /// Every so many timesteps one is computed whole: 1 is all of them.
    pub interval: usize,
    /// The layer from which on steps in between reuse features: 0, the finest and fastest, to three a block of the UNet less
    /// one.
    pub branch_id: usize,
}

impl DeepCache {
    /// `(block, layer)`, finest first, of the first layer of the way up that every step computes. Blocks of fewer layers
    /// begin with their first.
    pub(crate) fn branch(self, unet: &UnetConfig) -> (usize, usize) {
        let (block, layer) = (self.branch_id / BRANCHES_A_BLOCK, self.branch_id % BRANCHES_A_BLOCK);
        (block, layer.min(unet.layers(block)))
    }
}

impl StepCache {
    /// What a picture keeps between its steps; `None` where no step would be left out.
    ///
    /// # Errors
    /// Names the value that is out of its range, or that the denoiser has no such cache.
    pub fn features(self, denoiser: &Denoiser) -> Result<Option<Features>> {
        match (self, denoiser) {
            (Self::FirstBlock { threshold }, Denoiser::Flux(_)) => {
                if !(0.0..=1.0).contains(&threshold) {
                    return Err(Error::invalid(format!(
                        "first_block_cache is {threshold}: 0 to 1 is allowed"
                    )));
                }
                Ok((threshold > 0.0).then(|| {
                    Features::FirstBlock(FirstBlockFeatures { threshold, samples: Vec::new(), reused: 0 })
                }))
            }
            (Self::Deep(cache), Denoiser::Unet(unet)) => {
                let DeepCache { interval, branch_id } = cache;
                if !(1..=MAX_INTERVAL).contains(&interval) {
                    return Err(Error::invalid(format!(
                        "cache_interval is {interval}: 1 to {MAX_INTERVAL} is allowed"
                    )));
                }
                let branches = BRANCHES_A_BLOCK * unet.config().block_out_channels.len();
                if branch_id >= branches {
                    return Err(Error::invalid(format!(
                        "cache_branch_id is {branch_id}: this UNet has branches 0 to {}",
                        branches.saturating_sub(1)
                    )));
                }
                Ok((interval > 1).then(|| Features::Deep(DeepFeatures { cache, kept: None, reused: 0 })))
            }
            (Self::FirstBlock { .. }, Denoiser::Unet(_)) => {
                Err(Error::invalid("first_block_cache is for FLUX: this model has cache_interval"))
            }
            (Self::Deep(_), Denoiser::Flux(_)) => {
                Err(Error::invalid("cache_interval is for UNets: FLUX has first_block_cache"))
            }
        }
    }
}

/// What one picture keeps between its steps.
#[derive(Debug)]
pub enum Features {
    /// Of FLUX.
    FirstBlock(FirstBlockFeatures),
    /// Of a UNet.
    Deep(DeepFeatures),
}

impl Features {
    /// How often a sample of a step was not computed whole.
    pub fn reused(&self) -> usize {
        match self {
            Self::FirstBlock(features) => features.reused,
            Self::Deep(features) => features.reused,
        }
    }

    /// Drops what is kept, for its memory.
    pub(crate) fn clear(&mut self) {
        match self {
            Self::FirstBlock(features) => features.samples.clear(),
            Self::Deep(features) => features.kept = None,
        }
    }
}

/// See [`StepCache::FirstBlock`].
#[derive(Debug)]
pub struct FirstBlockFeatures {
    pub(super) threshold: f64,
    /// One a sample, once there was a step.
    pub(super) samples: Vec<SampleFeatures>,
    reused: usize,
}

/// Of the last step of a sample that was computed whole.
#[derive(Debug)]
pub(super) struct SampleFeatures {
    /// What the first block added to the picture's tokens.
    pub(super) first: Tensor,
    /// What all others added.
    pub(super) others: Tensor,
}

impl FirstBlockFeatures {
    /// What the others add to a sample's tokens, where its first block adds about what it did.
    pub(super) fn reuse(&mut self, sample: usize, first: &Tensor) -> Result<Option<Tensor>> {
        let Some(kept) = self.samples.get(sample) else { return Ok(None) };
        let mean = |t: &Tensor| t.to_dtype(candle_core::DType::F32)?.abs()?.mean_all()?.to_scalar::<f32>();
        let change = mean(&(first - &kept.first)?)? / mean(&kept.first)?;
        // What is no number is not little.
        if f64::from(change) <= self.threshold {
            self.reused += 1;
            return Ok(Some(kept.others.clone()));
        }
        Ok(None)
    }

    /// Keeps a sample's step.
    pub(super) fn keep(&mut self, sample: usize, features: SampleFeatures) {
        match self.samples.get_mut(sample) {
            Some(kept) => *kept = features,
            None => self.samples.push(features),
        }
    }
}

/// See [`StepCache::Deep`].
#[derive(Debug)]
pub struct DeepFeatures {
    pub(super) cache: DeepCache,
    /// What goes into the first layer of the way up that every step computes.
    pub(super) kept: Option<Tensor>,
    /// See [`Features::reused`].
    pub(super) reused: usize,
}

impl DeepFeatures {
    /// Whether the `index`th timestep of a schedule reuses features.
    pub(super) fn reuses(&self, index: usize) -> bool {
        self.kept.is_some() && !index.is_multiple_of(self.cache.interval)
    }
}
