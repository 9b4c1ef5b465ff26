//! Aquatint: an image-generation server and command line on candle.
//!
//! # One request, in reading order
//! 1. [`api`] reads the body, checks every field and shapes the reply; all routes stand on one screen there.
//! 2. [`queue`] admits the job or says when to come back. The admission travels in the job, so a caller who leaves
//!    frees its place.
//! 3. [`engine`] is the one thread that owns the device. Between any two denoising steps it may begin a shorter job,
//!    put a longer one off, or drop one whose caller has left.
//! 4. `aquatint_models::pipeline` does the arithmetic.
//! 5. [`picture`] writes the file, with the [`engine::recipe`] it was made by in its text chunks.
//!
//! [`cli`] holds the commands, which [`settings`] reads from flags and environment. Dependencies point one way:
//! kernels, models, engine, queue, api, cli, main.

pub mod api;
pub mod cli;
pub mod downloads;
pub mod engine;
pub mod picture;
pub mod queue;
pub mod settings;
pub mod weights;
