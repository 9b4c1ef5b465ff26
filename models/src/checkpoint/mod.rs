//! Weights and configs as they lie on disk: the diffusers folder layout and safetensors files.

pub mod builtin;
pub mod folder;
pub mod safetensors_file;
pub mod synthetic;
pub mod weights;

pub use folder::ModelFolder;
pub use weights::{Layer, Weights};
