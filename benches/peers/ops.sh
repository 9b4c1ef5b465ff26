#!/usr/bin/env bash
# Every op of benches/kernels.rs beside eager PyTorch, f32 on two threads, in turn: the smallest times of ROUNDS rounds
# (3) and their ratio. Arguments are name filters: ops.sh conv attention. Needs .ref (scripts/reference-env.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${REFERENCE_PYTHON:-.ref/bin/python}
ours=$(mktemp) peer=$(mktemp) names=$(mktemp)
trap 'rm -f "$ours" "$peer" "$names"' EXIT
cargo build --release --quiet --bench kernels
for _ in $(seq "${ROUNDS:-3}"); do
    for filter in "${@:-}"; do
        RAYON_NUM_THREADS=2 cargo bench --quiet --bench kernels -- $filter >"$names"
        # "kernels/name    time: [low median high]": the low end of the confidence interval, in whichever unit.
        awk '/^kernels\// { name = substr($1, 9) } /time: *\[/ { sub(/.*\[/, ""); print name, $1, $2 }' "$names" >>"$ours"
        awk '{ print $1 }' "$ours" | sort -u | "$python" benches/peers/ops.py >>"$peer"
    done
done
"$python" - "$ours" "$peer" <<'PY'
import sys
NANOSECONDS = {"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
ours, peer = {}, {}
for line in open(sys.argv[1]):
    name, value, unit = line.split()
    ours[name] = min(ours.get(name, 1e99), float(value) * NANOSECONDS[unit])
for line in open(sys.argv[2]):
    name, value = line.split()
    peer[name] = min(peer.get(name, 1e99), float(value))
print(f"{'op':36} {'ours us':>10} {'PyTorch us':>11} {'ratio':>6}")
for name, ns in ours.items():
    beside = f"{peer[name] / 1e3:11.1f} {ns / peer[name]:6.2f}" if name in peer else f"{'not timed':>11}"
    print(f"{name:36} {ns / 1e3:10.1f} {beside}")
PY
