//! cuDNN has a plan for every convolution and attention of the published models, on GPUs that are not there.
//!
//! `shapes.rs` lists them by walking our model definitions; the list is compared with what diffusers runs. The plans need
//! cuDNN's library, and NVRTC for kernels that it has compiled; `scripts/cudnn-plans.sh` brings both, and sets
//! `AQUATINT_NEEDS_CUDNN` to `quick` or `all`. Without it nothing is said of plans.
#![cfg(target_os = "linux")]
// clippy.toml allows both in test functions; what they share is test code too.
#![allow(clippy::unwrap_used, clippy::panic)]

mod plans;
mod shapes;
