//! The thread that owns the device, and what it does with a job.

pub mod backend;
pub mod error;
pub mod job;
pub mod meter;
pub mod pipeline;
pub mod progress;
pub mod recipe;
mod thread;

pub use aquatint_models::pipeline::{
    GenerationRequest, Interpolation, LoraChoice, MaskedContent, Mode, ModelInfo, Variation,
};
pub use backend::{Backend, Denoising};
pub use error::EngineError;
pub use job::{Job, JobSource, Picture, Reply, Work, make};
pub use meter::Meter;
pub use progress::{JobPhase, Observer, Progress};
pub use thread::{Engine, ModelStatus, Phase, Running, Status};
