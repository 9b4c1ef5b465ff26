//! Behaviour of the server and the command line, through their public interfaces.

#![allow(clippy::unwrap_used, clippy::panic)]

mod caption;
mod cli;
mod cors;
mod dependencies;
mod determinism;
mod engine;
mod fake;
mod fastapi;
mod faults;
mod generate;
mod harness;
mod health;
mod load;
mod overload;
mod refine;
mod rig;
mod scoreboard;
