#!/usr/bin/env bash
# One UNet step, one VAE decode, one step of two FLUX blocks and one layer of its T5, ours and diffusers' eager PyTorch on
# the same weights and two threads, in turn.
# Needs .ref (scripts/reference-env.sh). Prints the medians over all runs and their ratio.
set -euo pipefail
cd "$(dirname "$0")/../.."

out=${AQUATINT_PEERS:-target/peers}
for model in unet-35m vae flux-2 t5-layer; do
    [ -d "$out/$model" ] || .ref/bin/python benches/peers/models.py "$out" "$model"
done
cargo build --release --quiet --example component
rounds=${ROUNDS:-5}
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
for _ in $(seq "$rounds"); do
    for work in "unet $out/unet-35m 32 1 6" "unet $out/unet-35m 32 2 6" "vae $out/vae 32 1 2" "flux $out/flux-2 32 1 3" "t5 $out/t5-layer 256 1 4"; do
        echo "ours|$work|$(RAYON_NUM_THREADS=2 target/release/examples/component $work)" >>"$rows"
        echo "diffusers|$work|$(.ref/bin/python benches/peers/component.py $work 2>/dev/null)" >>"$rows"
    done
done
.ref/bin/python - "$rows" <<'PY'
import collections, json, statistics, sys
times, magnitudes = collections.defaultdict(list), {}
for line in open(sys.argv[1]):
    who, work, report = line.split("|", 2)
    report = json.loads(report)
    # The first run of a process pays for its pages and, in PyTorch, for choosing kernels.
    times[work, who] += report["milliseconds"][1:]
    magnitudes[work, who] = report["magnitude"]
print(f"{'work':40} {'ours ms':>9} {'diffusers':>10} {'ratio':>6}   same output")
for work in dict.fromkeys(w for w, _ in times):
    ours, peer = (statistics.median(times[work, who]) for who in ("ours", "diffusers"))
    a, b = magnitudes[work, "ours"], magnitudes[work, "diffusers"]
    kind, folder, side, batch, _ = work.split()
    size = f"{side} tokens" if kind == "t5" else f"{side}x{side} latents"
    name = f"{folder.split('/')[-1]}, {size}, batch {batch}"
    print(f"{name:40} {ours:9.1f} {peer:10.1f} {ours / peer:6.2f}   {'yes' if abs(a - b) < 1e-3 * b else f'NO: {a} {b}'}")
PY
