//! Parity with the reference implementation: our numbers against those that `tests/reference/*.py` recorded from
//! diffusers and transformers (pinned in `tests/reference/requirements.txt`).

mod caption;
mod clip;
mod common;
mod lora;
mod noise;
mod pipeline;
mod sampler;
mod unet;
mod vae;
