//! Weights and configs as they lie on disk: the diffusers folder layout, files of weights in several kinds and under
//! several names, and the layers made of them.

pub mod builtin;
mod bytes;
pub mod file;
pub mod flux_keys;
pub mod flux_shape;
pub mod folder;
pub mod gguf_file;
pub(crate) mod ldm_unet;
pub(crate) mod ldm_vae;
mod meter;
pub(crate) mod open_clip;
pub mod original;
pub mod published;
mod row_scales;
pub mod safetensors_file;
mod safetensors_header;
pub mod single_file;
pub mod stored;
pub(crate) mod stream;
pub mod synthetic;
pub mod t5_gguf_names;
mod tokenizers;
pub mod view;
pub mod weights;

pub use bytes::map_files;
pub use file::CheckpointFile;
pub use folder::{ModelFolder, RANDOM_WEIGHTS};
pub use meter::bytes_read;
pub use original::Component;
pub use single_file::SingleFile;
pub use weights::{Layer, Weights};
