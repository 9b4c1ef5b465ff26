//! How full-length reliability tests tell their figures: `scripts/scoreboard.py` makes `tests/SCOREBOARD.md` of them.

/// Prints one row of the table. Whether the target was reached is whether the test passes.
pub(crate) fn record(row: usize, test: &str, measured: &str, target: &str) {
    if std::env::var_os("AQUATINT_SCOREBOARD").is_some() {
        println!("SCOREBOARD|{row}|{test}|{target}|{measured}|test");
    } else {
        println!("row {row}: {test}: {measured} (target: {target})");
    }
}
