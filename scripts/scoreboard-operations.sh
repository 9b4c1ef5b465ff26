#!/usr/bin/env bash
# The rows of tests/SCOREBOARD.md that are about connections, ends, bad input, names, CORS, downloads, logs and /health,
# at full length: about ten minutes. Uses the release build unless PROFILE says otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."

# 500 connections, both of whose ends are in the test.
ulimit -n "$(ulimit -Hn)"
AQUATINT_SCOREBOARD=1 cargo test --profile "${PROFILE:-release}" --package aquatint --test it -- --nocapture --test-threads 1 \
    board:: hub::faults hub::killed |
    python3 scripts/scoreboard.py 5 6 7 11 15 17 18 22 23 health
cargo bench --profile "${PROFILE:-release}" --package aquatint --bench http |
    python3 scripts/scoreboard.py overhead png jpeg webp
