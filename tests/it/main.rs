//! Behaviour of the server and the command line, through their public interfaces.

#![allow(clippy::unwrap_used, clippy::panic)]

mod caption;
mod cli;
mod cors;
mod dependencies;
mod fake;
mod fastapi;
mod generate;
mod harness;
mod health;
mod huggingface;
mod load;
mod openai;
mod refine;
mod runpod;
mod webui;
