//! The numbers of the diffusion process: which timesteps are visited, and how much noise a sample holds at each.
//!
//! In reading order: [`betas`] (the noise that training added at each of its timesteps), [`sigmas`] (the same as a
//! ratio of noise to signal, and other ways to space it), [`spacing`] (which timesteps a run of a few steps visits),
//! [`noise_level`] (what one of them means for a sample), [`config`] (the file that says all this of a model).
//!
//! The reference computes the tables in f32 and looks timesteps up in them, at places truncating to an integer. So
//! the tables are f32 here as well, rounded where the reference rounds; everything after them is f64.

pub mod beta_quantile;
pub mod betas;
pub mod config;
pub mod noise_level;
pub mod sigmas;
pub mod spacing;

pub use config::SchedulerConfig;
pub use noise_level::{NoiseLevel, Prediction};
pub use sigmas::{FinalSigma, SigmaKind};
pub use spacing::Spacing;
