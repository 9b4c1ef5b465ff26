#!/usr/bin/env bash
# Loading a model of full width and random f16 weights from the page cache, in turn: `dd` of its files, ours, and diffusers'
# from_pretrained. Prints medians; fails where ours is below half of dd's rate, less than twice as fast as diffusers, or
# takes more than 1.1 times what it holds and 300 MiB.
#
#     benches/peers/load.sh [sd15|sdxl]
#
# Needs .ref (scripts/reference-env.sh), and for sdxl 7 GB of disk and 16 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/../.."

model=${1:-sd15}
folder=${AQUATINT_PEERS:-target/peers}/full-width/$model
export HF_HUB_OFFLINE=1
[ -f "$folder/model_index.json" ] || .ref/bin/python benches/peers/full_width.py "$folder" "$model"
cargo build --release --quiet --example load
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
mapfile -t files < <(find -L "$folder" -name '*.safetensors')
cat "${files[@]}" >/dev/null
for _ in $(seq "${ROUNDS:-5}"); do
    begun=$EPOCHREALTIME
    for file in "${files[@]}"; do dd if="$file" of=/dev/null bs=1M status=none; done
    echo "dd|{\"seconds\": $(python3 -c "print($EPOCHREALTIME - $begun)")}" >>"$rows"
    echo "ours|$(target/release/examples/load "$folder" fp16)" >>"$rows"
    echo "diffusers|$(.ref/bin/python benches/peers/load.py "$folder" 2>/dev/null)" >>"$rows"
done
python3 - "$rows" <<'PY'
import json, statistics, sys
reports = {}
for line in open(sys.argv[1]):
    who, report = line.split("|", 1)
    reports.setdefault(who, []).append(json.loads(report))
median = lambda who, key="seconds": statistics.median(r[key] for r in reports[who])
dd, ours, mapped, placed = median("dd"), median("ours"), median("diffusers"), median("diffusers", "placed_seconds")
run, peer = reports["ours"][0], reports["diffusers"][0]
gb = run["bytes_read"] / 1e9
print(f"{gb:.2f} GB            seconds   GB/s   times ours")
for name, s in [("dd", dd), ("ours", ours), ("diffusers, mapped", mapped), ("diffusers, in memory", placed)]:
    print(f"{name:20} {s:8.2f} {gb / s:6.2f} {s / ours:8.2f}")
most = 1.1 * run["held_bytes"] + 300 * 2**20
print(f"peak {median('ours', 'peak_bytes') / 1e9:.2f} GB, held {run['held_bytes'] / 1e9:.2f} GB, at most {most / 1e9:.2f} GB")
checks = {
    "every byte was read": run["bytes_read"] == peer["bytes"] and run["sum"] == peer["sum"],
    "at least half of dd's rate": ours <= 2 * dd,
    "at least twice diffusers' rate": placed >= 2 * ours,
    "peak memory": median("ours", "peak_bytes") <= most,
}
for what, holds in checks.items():
    print(f"{what}: {'yes' if holds else 'NO'}")
sys.exit(not all(checks.values()))
PY
