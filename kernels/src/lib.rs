//! The operations Aquatint's models are written on, one file an op.
//!
//! Layouts: tokens are `(batch, tokens, channels)`; convolutional features are channels-last,
//! `(batch, height, width, channels)`. Activations on the CPU are f32 and contiguous; weights may be f32, f16, bf16,
//! numbers of eight bits or of a block format of GGUF files, and are widened as they are read: a checkpoint is held once, at
//! its own size.
//!
//! An op's file holds its definition, a formula in candle's operations, which runs on every device that has nothing
//! better; and its CPU arm, tested against the definition, on AVX-512, AVX2 or plain Rust as the machine allows. What
//! the CPU arms share is in `cpu`: the matrix kernel, packed weights, vectorised elementary functions. Its CUDA arm
//! launches the kernels of the `.cu` file beside it; what those arms share is in `gpu`.
//!
//! Work is split in pieces whose size does not depend on the number of threads, and each output element is summed in
//! one fixed order: the same inputs give the same bytes whatever the thread count, and a sample gives the same bytes
//! alone and in a batch.

pub mod activation;
pub mod attention;
pub mod conv2d;
mod cpu;
pub mod device_memory;
mod eight_bit_rows;
pub mod encoded;
mod float8;
mod floats;
pub mod gated_gelu;
pub mod gated_residual;
pub mod geglu;
mod ggml_block;
mod gpu;
pub mod group_norm;
mod in_place;
pub mod layer_norm;
pub mod linear;
pub mod low_rank;
#[cfg(any(feature = "cuda", test, target_os = "linux"))]
mod lru;
pub mod memory;
pub mod modulate;
pub mod quantise;
pub mod recorder;
#[cfg(any(feature = "cuda", test))]
mod recordings;
pub mod rgb8;
pub mod rms_norm;
pub mod rope;
mod stored_rows;
#[cfg(test)]
mod testing;
pub mod timestep_embedding;
pub mod tuning;
pub mod upsample;
mod weight;
pub mod weighted_sum;

pub use activation::Activation;
pub use attention::{attention, biased_attention};
pub use conv2d::{Conv2d, Padding};
pub use device_memory::{DeviceMemory, give_back_memory};
pub use encoded::{EncodedWeight, Format};
pub use gated_gelu::gated_gelu;
pub use gated_residual::gated_residual;
pub use geglu::geglu;
#[cfg(target_os = "linux")]
pub use gpu::cudnn;
#[cfg(feature = "cuda")]
pub use gpu::open as open_gpu;
pub use gpu::{computes_in_bf16, multiplies_codes};
pub use group_norm::group_norm;
pub use in_place::layer_moves;
pub use layer_norm::layer_norm;
pub use linear::Linear;
pub use low_rank::LowRank;
pub use memory::keep_freed_memory;
pub use modulate::modulated_layer_norm;
pub use quantise::{EightBits, quantise_rows};
pub use recorder::{NoRecording, Recorder, forget_recordings, keep_recordings};
pub use rgb8::rgb8;
pub use rms_norm::rms_norm;
pub use rope::{Rotation, rms_norm_rope};
pub use stored_rows::{RowBytes, StoredRows};
pub use timestep_embedding::timestep_embedding;
pub use upsample::upsample_nearest;
pub use weighted_sum::weighted_sum;
