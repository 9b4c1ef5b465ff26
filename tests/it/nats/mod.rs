//! The shared queue, around a real NATS server, with real processes that are really killed.
//!
//! Each test is short, with leases of a second, or as long as its target says when `AQUATINT_SCOREBOARD` is set; it then
//! runs `AQUATINT_NATS_RUNS` (5) times.

mod cluster;
mod failures;
mod forwarder;
mod journal;
mod requests;
mod restarts;
mod server;
mod throughput;
mod watching;
mod worker;

use crate::board::full;

/// How often a failure is provoked.
fn runs() -> usize {
    let asked = std::env::var("AQUATINT_NATS_RUNS").ok().and_then(|runs| runs.parse().ok());
    asked.unwrap_or(if full() { 5 } else { 1 })
}
