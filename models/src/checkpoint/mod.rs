//! Weights and configs as they lie on disk: the diffusers folder layout, files of weights in several kinds and under
//! several names, and the layers made of them.

pub mod builtin;
mod bytes;
pub mod file;
pub mod flux_keys;
pub mod folder;
pub mod safetensors_file;
pub mod stored;
pub mod synthetic;
pub mod view;
pub mod weights;

pub use file::CheckpointFile;
pub use folder::ModelFolder;
pub use weights::{Layer, Weights};
