//! Parity with the reference implementation: our numbers against those that `tests/reference/*.py` recorded from
//! diffusers and transformers (pinned in `tests/reference/requirements.txt`).

// clippy.toml allows both in test functions; what they share is test code too.
#![allow(clippy::unwrap_used, clippy::panic)]

mod caption;
mod clip;
mod common;
mod convert;
#[cfg(feature = "demo")]
mod demo;
mod eight_bits;
mod flow_match;
mod flux_files;
mod flux_lora;
mod flux_transformer;
mod lora;
mod memory;
mod noise;
mod pipeline;
mod pipeline_flux;
mod quantised;
mod sampler;
mod single_file;
mod step_cache;
mod t5;
mod unet;
mod vae;
