#!/usr/bin/env bash
# All quick tests: formatting, lints, documentation, unit, parity and behaviour tests, and real clients of the APIs.
# Needs Rust and a C compiler; nats-server, or apt to fetch it with; for the clients Node 20, Python 3.10, and PyPI and npm the first time.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

step formatting
cargo fmt --all --check
step lints
cargo clippy --workspace --all-targets --quiet -- -D warnings
step documentation
RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --quiet
step 'a NATS server'
scripts/nats-server.sh
step tests
cargo test --workspace --no-fail-fast
step real clients
scripts/clients.sh
step deploy
scripts/check-deploy.sh
