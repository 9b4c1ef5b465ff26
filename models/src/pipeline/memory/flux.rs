//! Which parts of FLUX stay in memory, decided before anything is loaded.
//!
//! FLUX.1 has 11.9 B parameters in its transformer and 4.7 B in T5: 24 and 9.5 GB in 16 bits. What does not fit is read
//! from the checkpoint when it is needed, the least often needed first:
//!
//! 1. T5, once a prompt that is not known yet, layer by layer;
//! 2. the modulation's layers, once a picture: all its steps' vectors come from one product;
//! 3. the precision: 16-bit weights are held in 8 bits (Q8_0), where the precision was left open;
//! 4. the blocks, once a step.
//!
//! Before each of the last two, the VAE is made to work in tiles, which blends seams.

use std::fmt;

use super::{Extent, TILE_PIXELS, gigabytes};
use crate::denoiser::StepCache;
use crate::{Error, Result};

/// Bytes of a model's weights in the types they would be held in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightSizes {
    /// Attention and feed-forward layers of the transformer's blocks.
    pub blocks: u64,
    /// The modulation's layers.
    pub modulation: u64,
    /// What else the transformer has.
    pub embedders: u64,
    /// The most of blocks or modulation that is in memory at a time while they are streamed.
    pub transient: u64,
    /// T5.
    pub t5: u64,
    /// The most of T5 that is in memory at a time while it is streamed.
    pub t5_transient: u64,
    /// The other text encoder and the VAE.
    pub rest: u64,
    /// Whether they are held in 16 bits or more, and so can be held in 8.
    pub can_shrink: bool,
}

/// Widths that decide what a picture takes beside the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    /// Channels of the transformer's tokens.
    pub hidden: u64,
    /// Channels of T5's tokens within its feed-forward layers.
    pub t5_inner: u64,
    /// Channels of the VAE's features at full size.
    pub vae: u64,
    /// Bytes of an activation.
    pub activation: u64,
}

/// Where a part of the model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory.
    Resident,
    /// In the checkpoint, from which it is read piece by piece.
    Streamed,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// T5.
    pub t5: Place,
    /// The modulation's layers.
    pub modulation: Place,
    /// The transformer's blocks.
    pub blocks: Place,
    /// Whether blocks, modulation and T5 are held in 8 bits.
    pub eight_bits: bool,
    /// Whether the VAE works in tiles.
    pub vae_tiling: bool,
    /// The most that is in memory at a time, in bytes.
    pub peak_bytes: u64,
}

/// Q8_0 holds 32 weights in 34 bytes.
const Q8_0_OF_16_BITS: (u64, u64) = (17, 32);

/// What decides about memory: of a model, and of the device it is on.
#[derive(Clone, Copy, Debug)]
pub struct FluxNeeds {
    /// Of its weights.
    pub sizes: WeightSizes,
    /// Of its activations.
    pub widths: Widths,
    /// What is taken beside tensors.
    pub overhead: u64,
}

impl MemoryPlan {
    /// The plan that keeps most in memory and fits into `room` bytes.
    ///
    /// # Errors
    /// [`Error::NoRoom`] where none does; it says what the least would be.
    pub fn new(needs: &FluxNeeds, room: u64, extent: &Extent) -> Result<Self> {
        let mut least = u64::MAX;
        for plan in Self::choices(&needs.sizes) {
            let peak_bytes = plan.peak(needs, extent);
            if peak_bytes <= room {
                return Ok(Self { peak_bytes, ..plan });
            }
            least = least.min(peak_bytes);
        }
        Err(Error::NoRoom(format!(
            "this model needs at least {} of memory, {} are free: take a quantised checkpoint (GGUF Q4_K), a smaller \
             picture, or free memory",
            gigabytes(least),
            gigabytes(room)
        )))
    }

    /// What is done to save memory, in a few words each.
    pub fn savings(&self) -> Vec<&'static str> {
        let all = [
            (self.t5 == Place::Streamed, "text encoder streamed"),
            (self.modulation == Place::Streamed, "modulation streamed"),
            (self.blocks == Place::Streamed, "blocks streamed"),
            (self.eight_bits, "weights in 8 bits"),
            (self.vae_tiling, "VAE in tiles"),
        ];
        all.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect()
    }

    /// All plans, the fastest first.
    fn choices(sizes: &WeightSizes) -> Vec<Self> {
        use Place::{Resident, Streamed};
        const RESIDENT: [(Place, Place, Place); 3] =
            [(Resident, Resident, Resident), (Streamed, Resident, Resident), (Streamed, Streamed, Resident)];
        let shrinks = if sizes.can_shrink { &[false, true][..] } else { &[false] };
        let mut choices = Vec::new();
        let mut add = |places: &[(Place, Place, Place)], eight_bits| {
            for vae_tiling in [false, true] {
                choices.extend(places.iter().map(|&(t5, modulation, blocks)| Self {
                    t5,
                    modulation,
                    blocks,
                    eight_bits,
                    vae_tiling,
                    peak_bytes: 0,
                }));
            }
        };
        shrinks.iter().for_each(|&eight_bits| add(&RESIDENT, eight_bits));
        // Not in 8 bits: they would be rounded anew at every step.
        add(&[(Streamed, Streamed, Streamed)], false);
        choices
    }

    /// The most that is in memory at a time: while T5 runs, while the modulation is computed, in a step, or in the VAE.
    pub fn peak(&self, needs: &FluxNeeds, extent: &Extent) -> u64 {
        let FluxNeeds { sizes, widths, overhead } = needs;
        let held = |bytes: u64| {
            let (numerator, denominator) = if self.eight_bits { Q8_0_OF_16_BITS } else { (1, 1) };
            bytes / denominator * numerator
        };
        let when = |place: Place, bytes: u64| if place == Place::Resident { held(bytes) } else { 0 };
        let weights = sizes.rest
            + sizes.embedders
            + when(self.t5, sizes.t5)
            + when(self.modulation, sizes.modulation)
            + when(self.blocks, sizes.blocks);
        let streamed = |place: Place, bytes: u64| if place == Place::Streamed { held(bytes) } else { 0 };
        let t5 = streamed(self.t5, sizes.t5_transient)
            + extent.text_tokens * 4 * widths.t5_inner * widths.activation;
        let modulation = streamed(self.modulation, sizes.transient);
        let step =
            streamed(self.blocks, sizes.transient) + step_bytes(widths, extent) + kept_bytes(widths, extent);
        let decode =
            vae_bytes(widths, if self.vae_tiling { extent.pixels.min(TILE_PIXELS) } else { extent.pixels })
                + extent.pixels * 3 * 4;
        overhead + weights + t5.max(modulation).max(step).max(decode)
    }
}

/// What a first-block cache adds to a step: of every sample what its first block and its others added to the picture's
/// tokens; of the one that is computed also what its first block gave and added this time.
fn kept_bytes(widths: &Widths, extent: &Extent) -> u64 {
    let tensors = match extent.step_cache {
        Some(StepCache::FirstBlock { .. }) => 2 * extent.samples + 2,
        _ => 0,
    };
    tensors * extent.image_tokens * widths.hidden * widths.activation
}

/// Activations of one step at their most, within a single block: tokens in the residual stream and normalised, queries,
/// keys and values, the feed-forward layer's inside, and both halves side by side before the last product.
fn step_bytes(widths: &Widths, extent: &Extent) -> u64 {
    let tokens = extent.image_tokens + extent.text_tokens;
    // In units of the width: 2 + 3 + 4 + 5, and the output.
    extent.samples * tokens * 15 * widths.hidden * widths.activation
}

/// Features of the VAE's decoder at their most, in its last blocks: four tensors at full size, one of them twice as
/// wide.
fn vae_bytes(widths: &Widths, pixels: u64) -> u64 {
    pixels * 5 * widths.vae * widths.activation
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |place| if place == Place::Resident { "resident" } else { "streamed" };
        let precision = if self.eight_bits { ", held in 8 bits" } else { "" };
        let tiles = if self.vae_tiling { ", VAE in tiles" } else { "" };
        write!(
            f,
            "T5 {}, modulation {}, blocks {}{precision}{tiles}; at most {}",
            place(self.t5),
            place(self.modulation),
            place(self.blocks),
            gigabytes(self.peak_bytes)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    /// FLUX.1 dev as published, its transformer and T5 stored in so many bits a weight.
    fn flux_dev(bits: f64, t5_bits: f64) -> FluxNeeds {
        let (blocks, modulation, embedders, t5) = (8.606e9, 3.25e9, 13e6, 4.762e9);
        let bytes = |parameters: f64, bits: f64| (parameters * bits / 8.0) as u64;
        FluxNeeds {
            sizes: WeightSizes {
                blocks: bytes(blocks, bits),
                modulation: bytes(modulation, bits),
                embedders: bytes(embedders, bits),
                // Two double blocks of 226 M.
                transient: bytes(453e6, bits),
                t5: bytes(t5, t5_bits),
                // Two layers of 193 M.
                t5_transient: bytes(386e6, t5_bits),
                rest: GB,
                can_shrink: bits >= 16.0,
            },
            widths: Widths { hidden: 3072, t5_inner: 10240, vae: 128, activation: 4 },
            overhead: 64 << 20,
        }
    }

    const SQUARE: Extent =
        Extent { pixels: 1 << 20, image_tokens: 4096, text_tokens: 512, samples: 1, step_cache: None };

    fn plan(needs: FluxNeeds, room: u64) -> Result<MemoryPlan> {
        MemoryPlan::new(&needs, room, &SQUARE)
    }

    #[test]
    fn what_is_needed_least_often_goes_first() {
        let bf16 = flux_dev(16.0, 16.0);
        let words = |gb: u64| plan(bf16, gb * GB).map(|p| p.savings());
        assert_eq!(words(80).unwrap(), [""; 0]);
        assert_eq!(words(32).unwrap(), ["text encoder streamed"]);
        assert_eq!(words(24).unwrap(), ["text encoder streamed", "modulation streamed"]);
        assert_eq!(
            words(16).unwrap(),
            ["text encoder streamed", "modulation streamed", "weights in 8 bits"],
            "8 bits go before reading all blocks at every step"
        );
        assert_eq!(words(8).unwrap(), ["text encoder streamed", "modulation streamed", "blocks streamed"]);
        let refused = words(2).unwrap_err().to_string();
        assert!(refused.contains("2.0 GB are free") && refused.contains("GGUF"), "{refused}");
    }

    /// FLUX.1 dev at 1024 x 1024 in f32: 4096 tokens of 3072 channels are 50 MB.
    #[test]
    fn what_a_first_block_cache_keeps_counts() {
        let needs = flux_dev(16.0, 16.0);
        // Without the VAE, which takes more than a step.
        let needs = FluxNeeds { widths: Widths { vae: 0, ..needs.widths }, ..needs };
        let plan = plan(needs, 80 * GB).unwrap();
        let cached = Extent { step_cache: Some(StepCache::FirstBlock { threshold: 0.05 }), ..SQUARE };
        let tokens = 4096 * 3072 * 4;
        assert_eq!(plan.peak(&needs, &cached) - plan.peak(&needs, &SQUARE), 4 * tokens);
        let two = |extent: Extent| plan.peak(&needs, &Extent { samples: 2, ..extent });
        assert_eq!(two(cached) - two(SQUARE), 6 * tokens, "each sample has its own");
    }

    #[test]
    fn less_room_never_makes_a_larger_plan() {
        for bits in [16.0, 8.0, 8.5, 4.5] {
            let needs = flux_dev(bits, 16.0);
            let mut last = u64::MAX;
            for room in (1..=100).rev() {
                let Ok(plan) = plan(needs, room * GB) else { continue };
                assert!(plan.peak_bytes <= room * GB && plan.peak_bytes <= last, "{bits} bits, {room} GB");
                assert!(!plan.eight_bits || bits == 16.0, "what is quantised already stays as it is");
                last = plan.peak_bytes;
            }
        }
    }

    /// `cargo test -p aquatint-models --lib memory -- --nocapture --ignored` prints the table of the documentation.
    #[test]
    #[ignore = "prints a table"]
    fn table() {
        println!("| free memory | checkpoint | T5 | modulation | blocks | held in | VAE | at most |");
        println!("|---|---|---|---|---|---|---|---|");
        for gb in [8, 12, 16, 24, 40, 80, 141] {
            for (name, bits, t5_bits) in
                [("bf16", 16.0, 16.0), ("fp8", 8.0, 8.0), ("Q8_0", 8.5, 8.5), ("Q4_K", 4.5, 4.5)]
            {
                let place = |place| if place == Place::Resident { "resident" } else { "streamed" };
                match plan(flux_dev(bits, t5_bits), gb * GB) {
                    Ok(p) => println!(
                        "| {gb} GB | {name} | {} | {} | {} | {} | {} | {} |",
                        place(p.t5),
                        place(p.modulation),
                        place(p.blocks),
                        if p.eight_bits { "Q8_0" } else { name },
                        if p.vae_tiling { "tiles" } else { "whole" },
                        gigabytes(p.peak_bytes)
                    ),
                    Err(error) => println!("| {gb} GB | {name} | refused: {error} |"),
                }
            }
        }
    }
}
