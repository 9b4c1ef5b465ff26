//! The thread that owns the device, and what it does with jobs: `scheduler` is its loop, `order` says whose turn it is,
//! `task` what a job needs next, `registry` which model and LoRAs are loaded for it.

pub mod backend;
pub mod error;
mod estimate;
mod fault;
mod handle;
pub mod job;
pub mod meter;
mod order;
pub mod pipeline;
pub mod progress;
pub mod recipe;
mod registry;
mod scheduler;
mod task;
mod watchdog;

pub use aquatint_models::pipeline::{
    DeepCache, DeviceMemory, Family, GenerationRequest, Interpolation, LoraChoice, MaskedContent, Mode,
    ModelInfo, Preset, StepCache, Variation,
};
pub use backend::{Backend, Denoising};
pub use error::EngineError;
pub use handle::{Engine, EngineSettings, Hearsay, Loading, ModelStatus, Phase, Running, Status};
pub use job::{Choose, Job, JobSource, Picture, Reply, Seat, Waited, Work, make};
pub use meter::Meter;
pub use progress::{JobPhase, Observer, Progress};
pub use registry::ModelEntry;
