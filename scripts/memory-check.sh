#!/usr/bin/env bash
# One step of SDXL's full-width UNet (2.6 B parameters, random f16 weights, 5.1 GB on disk) on 1024x1024 pictures must
# keep the whole process below 1.3 times the file. Needs .ref, 6 GB of disk and 8 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${AQUATINT_PEERS:-target/peers}
[ -f "$out/sdxl-unet/diffusion_pytorch_model.safetensors" ] || .ref/bin/python benches/peers/models.py "$out" sdxl-unet
cargo build --release --quiet --example component
target/release/examples/component unet "$out/sdxl-unet" "${SIDE:-128}" 1 1 | python3 -c '
import json, sys
r = json.load(sys.stdin)
ratio = r["peak_bytes"] / r["weights_bytes"]
peak, file, seconds = r["peak_bytes"] / 1e9, r["weights_bytes"] / 1e9, r["milliseconds"][0] / 1e3
print(f"peak {peak:.2f} GB, file {file:.2f} GB, ratio {ratio:.3f} (at most 1.3), step {seconds:.1f} s")
sys.exit(ratio > 1.3)'
