#!/usr/bin/env bash
# Runs the reliability tests at full length, one after the other, and writes what they measured to
# tests/SCOREBOARD.md. About ten minutes on an idle machine.
set -euo pipefail
cd "$(dirname "$0")/.."

AQUATINT_SCOREBOARD=$(mktemp -d)
export AQUATINT_SCOREBOARD
failed=0
cargo test --test it --quiet -- --include-ignored --test-threads 1 --nocapture \
    row_ every_fault_at_every_call one_seed_is_one_picture || failed=1
{
    echo '# Reliability scoreboard'
    echo
    echo "Written by \`scripts/scoreboard.sh\` on $(date -u +%F), $(nproc) cores, commit $(git rev-parse --short HEAD)."
    echo
    echo '| row | test | measured | target |'
    echo '|---|---|---|---|'
    cat "$AQUATINT_SCOREBOARD"/*.md
} >tests/SCOREBOARD.md
rm -r "$AQUATINT_SCOREBOARD"
exit "$failed"
