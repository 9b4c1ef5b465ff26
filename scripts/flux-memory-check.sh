#!/usr/bin/env bash
# What the memory planner says a picture of FLUX takes, beside what the process took: two models of full width and little
# depth (random bf16 weights, 2.7 and 3.2 GB on disk), from everything in memory to blocks read at every step. Fails
# where an estimate is more than 15 % off. Needs .ref, 6 GB of disk and 6 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${AQUATINT_PEERS:-target/peers}
[ -d "$out/flux-a/scheduler" ] || .ref/bin/python benches/peers/flux_folder.py "$out/flux-a" 1 2 2 dev
[ -d "$out/flux-b/scheduler" ] || .ref/bin/python benches/peers/flux_folder.py "$out/flux-b" 2 3 1 schnell
cargo build --release --quiet --example flux_memory
target=${CARGO_TARGET_DIR:-target}
failed=0
for model in flux-a flux-b; do
    for gigabytes in 100 4.9 3.9 3.3; do
        "$target/release/examples/flux_memory" "$out/$model" "$gigabytes" 256 256 2>/dev/null | python3 -c '
import json, sys
r = json.load(sys.stdin)
plan = ", ".join(r["plan"]) or "everything resident"
print(f"{sys.argv[1]}, {sys.argv[2]} GB: {plan}: estimated {r['"'"'estimated'"'"'] / 1e9:.2f} GB, measured {r['"'"'measured'"'"'] / 1e9:.2f} GB, ratio {r['"'"'ratio'"'"']:.2f}")
sys.exit(abs(r["ratio"] - 1) > 0.15)' "$model" "$gigabytes" || failed=1
    done
done
exit "$failed"
