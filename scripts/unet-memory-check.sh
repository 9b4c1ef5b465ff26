#!/usr/bin/env bash
# What the memory planner says a step and a decoding of Stable Diffusion and SDXL take beside the weights, and what the
# process took for them: full width, random weights. Needs 12 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --quiet --example unet_memory
target=${CARGO_TARGET_DIR:-target}
# What is freed goes back at once: else it would be there already when the next is measured.
export MALLOC_MMAP_THRESHOLD_=65536
"$target/release/examples/unet_memory" sd15 256 512
"$target/release/examples/unet_memory" sdxl 256 512
