#!/usr/bin/env bash
# The rows of tests/SCOREBOARD.md about the shared queue: a real nats-server, real processes, each failure provoked
# AQUATINT_NATS_RUNS (5) times. A quarter of an hour.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/nats-server.sh >/dev/null
AQUATINT_SCOREBOARD=1 cargo test --workspace --test it nats:: -- --test-threads 1 --nocapture |
    python3 scripts/scoreboard.py nats-kill-worker nats-kill-server nats-stop nats-full nats-twice nats-cancel nats-poison \
        nats-partition nats-watch nats-rolling nats-throughput nats-scaling nats-overhead
