#!/usr/bin/env bash
# The rows of tests/SCOREBOARD.md that are about load, faults and determinism, at full length: about ten minutes on an
# idle machine.
set -euo pipefail
cd "$(dirname "$0")/.."

AQUATINT_SCOREBOARD=1 cargo test --test it -- --include-ignored --test-threads 1 --nocapture \
    row_ every_fault_at_every_call one_seed_is_one_picture |
    python3 scripts/scoreboard.py 1 2 3 4 8 9 19
