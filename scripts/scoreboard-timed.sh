#!/usr/bin/env bash
# The rows of tests/SCOREBOARD.md whose figures depend on what else the machine does, on the release build: overload (1),
# ends under load (7), the fuzz targets (13), log lines (18), /health, the overhead of a request and the codecs. For an
# idle machine; a quarter of an hour with everything built. SKIP_FUZZ=1 leaves row 13 out.
set -euo pipefail
cd "$(dirname "$0")/.."

ulimit -n "$(ulimit -Hn)"
AQUATINT_SCOREBOARD=1 cargo test --release --workspace --test it -- --include-ignored --nocapture \
    --test-threads 1 overload::row_1 board::terminate board::log_lines board::health |
    python3 scripts/scoreboard.py 1 7 18 health
cargo bench --workspace --bench http | python3 scripts/scoreboard.py overhead png jpeg webp
[ -n "${SKIP_FUZZ:-}" ] || scripts/fuzz.sh | python3 scripts/scoreboard.py 13
