//! Behaviour of the server and the command line, through their public interfaces.

#![allow(clippy::unwrap_used, clippy::panic)]

mod board;
mod caption;
mod cli;
mod configuration;
mod connections;
mod cors;
mod dependencies;
mod determinism;
mod edge;
mod engine;
mod fake;
mod fastapi;
mod faults;
mod flux;
mod fuzz;
mod generate;
mod harness;
mod health;
mod hub;
mod huggingface;
mod jobs;
mod load;
#[cfg(feature = "nats")]
mod nats;
mod openai;
mod openapi;
mod operations;
mod overload;
mod presets;
mod refine;
mod rig;
mod running;
mod runpod;
mod scoreboard;
mod step_cache;
mod webui;
