//! From a prompt to what the denoiser is conditioned on: tokens, emphasis, the CLIP text encoders and T5.

mod added_token;
pub mod cache;
pub mod clip;
pub mod encoder;
pub mod prompt;
pub mod t5;
pub mod textual_inversion;
pub mod tokenizer;
mod vocabulary;

pub use clip::ClipTextModel;
pub use encoder::{Encoded, HiddenStates, Prompt, TextEncoder};
pub use t5::{T5Config, T5Encoder};
pub use tokenizer::Tokenizer;
