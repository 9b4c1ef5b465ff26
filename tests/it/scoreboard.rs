//! Where full-length reliability tests leave their figures: `scripts/full-check.sh` makes `tests/SCOREBOARD.md` of
//! them.

/// Writes one row of the table, where a folder for them is named in the environment.
pub(crate) fn record(row: usize, test: &str, measured: &str, target: &str) {
    println!("row {row}: {test}: {measured} (target: {target})");
    let Some(folder) = std::env::var_os("AQUATINT_SCOREBOARD") else { return };
    let line = format!("| {row} | {test} | {measured} | {target} |\n");
    std::fs::write(std::path::Path::new(&folder).join(format!("{row:02}.md")), line).unwrap();
}
