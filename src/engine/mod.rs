//! The thread that owns the device, and what it does with a job.

pub mod backend;
pub mod error;
pub mod job;
pub mod pipeline;
pub mod recipe;
mod thread;

pub use backend::{Backend, Denoising, LoraChoice, ModelInfo};
pub use error::EngineError;
pub use job::{Job, JobSource, Picture, Reply, Work, make};
pub use thread::{Engine, Phase, Running, Status};
