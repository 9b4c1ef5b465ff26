//! Reliability, measured: each test is short, or as long as its target says when `AQUATINT_SCOREBOARD` is set, and then
//! prints its row for `tests/SCOREBOARD.md`.

use std::fmt::Display;
use std::time::Duration;

mod bad_input;
mod cors;
mod drain;
mod dribble;
mod health;
mod log_lines;
mod terminate;
mod traversal;

/// Whether the long versions are asked for.
pub(crate) fn full() -> bool {
    std::env::var_os("AQUATINT_SCOREBOARD").is_some()
}

/// A row for `scripts/scoreboard.py`: what was tested, the target, what was measured. Fails the test where the target
/// was missed, after the row is written.
pub(crate) fn row(key: &str, test: &str, target: &str, measured: impl Display, reached: bool) {
    if full() {
        println!("SCOREBOARD|{key}|{test}|{target}|{measured}|{}", if reached { "yes" } else { "NO" });
    }
    assert!(reached, "row {key}, {test}: the target is {target}, measured was {measured}");
}

/// The value that `part` (0 to 1) of the others do not exceed.
pub(crate) fn quantile(times: &[Duration], part: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

/// Milliseconds for a row.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// A field of `/proc/self/status` in KiB.
pub(crate) fn memory_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

/// The same sequence in every run.
pub(crate) struct Lcg(pub(crate) u64);

impl Lcg {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }
}
