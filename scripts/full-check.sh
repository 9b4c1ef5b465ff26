#!/usr/bin/env bash
# Everything that does not fit a quick run: more of schemathesis's requests, the page in a browser, the fixtures recorded
# again, the reliability tests at full length (which write tests/SCOREBOARD.md), the fuzz targets, the scheduler's
# gain, the timings against PyTorch, and the memory of a full-width SDXL step. Needs Node 20, Chromium, Python 3.11 or
# newer, gcc, Rust's nightly toolchain, 2 GB for the reference environment, 20 GB of disk and 16 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/test.sh
echo '== real clients, at length'
AQUATINT_SCOREBOARD=1 PHASES=coverage,fuzzing EXAMPLES=20 scripts/clients.sh | python3 scripts/scoreboard.py 14
echo '== the page in a browser'
cargo build --release --quiet
scripts/page-check.mjs
echo '== what the image is built from'
scripts/check-deploy.sh --build
scripts/reference-env.sh
echo '== fixtures, recorded again'
export HF_HUB_OFFLINE=1
for script in models/tests/reference/*.py; do
    case "$script" in */synthetic.py | */pipeline_parts.py) continue ;; esac
    .ref/bin/python "$script" >/dev/null
done
cargo test --workspace --quiet --test parity
git diff --stat -- models/tests/fixtures
echo '== reliability, at full length'
scripts/scoreboard.sh
echo '== scheduling'
cargo bench --quiet --bench scheduling
echo '== scoreboard: connections, ends, bad input, names, CORS, logs'
scripts/scoreboard-operations.sh
echo '== the shared queue, every failure five times'
scripts/nats-failures.sh
echo '== fuzz targets'
scripts/fuzz.sh | python3 scripts/scoreboard.py 13
echo '== side by side with PyTorch'
benches/peers/side-by-side.sh
echo '== loading, beside dd and diffusers, and the cold start'
for model in sd15 sdxl; do
    benches/peers/load.sh "$model"
    scripts/cold-start.sh "$model"
done
echo '== memory of a full-width SDXL step'
scripts/memory-check.sh
echo '== memory of FLUX, planned and measured'
scripts/flux-memory-check.sh
echo '== memory of Stable Diffusion and SDXL, planned and measured'
scripts/unet-memory-check.sh
echo '== plans of cuDNN, for GPUs that are not there'
scripts/cudnn-plans.sh
echo '== benches/gpu.sh, up to the first call of a GPU'
cargo build --workspace --quiet --bin aquatint --example component
cargo test --workspace --quiet --no-run --lib --benches
PYTHON=$PWD/.ref/bin/python benches/gpu.sh dry-run
echo '== CUDA, for the three generations of GPUs: linked, and started without one'
scripts/cuda-builds.sh
