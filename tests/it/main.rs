//! Behaviour of the server and the command line, through their public interfaces.

#![allow(clippy::unwrap_used, clippy::panic)]

mod board;
mod caption;
mod cli;
mod cors;
mod dependencies;
mod edge;
mod fake;
mod fastapi;
mod generate;
mod harness;
mod health;
mod load;
mod operations;
mod refine;
mod running;
