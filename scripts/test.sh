#!/usr/bin/env bash
# All quick tests: formatting, lints, documentation, unit, parity and behaviour tests. Needs Rust and a C compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

step formatting
cargo fmt --all --check
step lints
cargo clippy --workspace --all-targets --quiet -- -D warnings
step documentation
RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --quiet
step tests
cargo test --workspace --no-fail-fast
