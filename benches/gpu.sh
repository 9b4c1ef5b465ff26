#!/usr/bin/env bash
# Checks and timings on a machine with an NVIDIA GPU, which needs no Rust: programs are built elsewhere and brought.
#
#   benches/gpu.sh bundle          where Rust is: builds the programs into target/gpu, and says how large they are
#   benches/gpu.sh dry-run         anywhere: each part up to its first call of the device
#   benches/gpu.sh [part ...]      on the GPU: all parts, or some; a part that is done for this commit is left out
#
# Parts, in their order, each below 8 minutes: kernels, older, sanitizer, pictures, components. Each writes its rows to
# target/gpu/results as it goes, and `report` puts what is there into benches/RESULTS.md.
# The GPU machine needs the driver (R580 or newer) and CUDA 13's libraries: those of PyTorch's wheels are found. For
# `components` also PyTorch and diffusers.
set -euo pipefail
cd "$(dirname "$0")/.."

bundle=target/gpu
results=$bundle/results
commit=$(cat "$bundle/commit" 2>/dev/null || git rev-parse --short HEAD)
python=${PYTHON:-python3}
# PyTorch's wheels bring the libraries, in folders that the system does not look into.
libraries=$("$python" -c 'import glob, site
print(":".join(p for s in site.getsitepackages() for p in glob.glob(s + "/nvidia/*/lib")))' 2>/dev/null || true)
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
dry=

say() { printf '== %s\n' "$*"; }

# Runs a command, or in a dry run only checks that its program is there.
on_gpu() {
    local program=$1
    [ "$program" = env ] && program=$(printf '%s\n' "$@" | sed -n '2,$p' | grep -v = | head -1)
    command -v "$program" >/dev/null || { echo "$program is not there" >&2; return 1; }
    if [ -n "$dry" ]; then echo "would run: $*"; else "$@"; fi
}

build() {
    local toolkit name
    toolkit=$(scripts/cuda-home.sh)
    eval "$toolkit"
    export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
    mkdir -p "$results"
    cargo build --release --no-default-features --features cuda --bin aquatint --example component
    for name in kernels kernels-75 kernels-80; do
        # The older ones' code as PTX, which any newer GPU runs.
        [ $name = kernels ] || export AQUATINT_KERNELS_AS=${name#*-}
        cargo test --release --no-run --package aquatint-kernels --features cuda --message-format=json |
            sed -n 's/.*"executable":"\([^"]*aquatint_kernels[^"]*\)".*/\1/p' | xargs -I{} cp {} "$bundle/$name"
    done
    cp target/release/aquatint target/release/examples/component "$bundle"
    for name in aquatint component kernels kernels-75 kernels-80; do strip "$bundle/$name"; done
    git rev-parse --short HEAD >"$bundle/commit"
    du -ch "$bundle"/{aquatint,component,kernels,kernels-75,kernels-80} | tail -1
}

device() { nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1; }

# Every op, type and shape against its definition on the CPU: the tests that an emulator runs elsewhere.
part_kernels() {
    on_gpu env AQUATINT_NEEDS_GPU=1 "$bundle/kernels" cuda_arm --test-threads 1
}

# The same through the code of the T4 and of the A10G.
part_older() {
    local of
    for of in 75 80; do
        on_gpu env AQUATINT_NEEDS_GPU=1 "$bundle/kernels-$of" cuda_arm --test-threads 1
    done
}

part_sanitizer() {
    on_gpu compute-sanitizer --error-exitcode 1 env AQUATINT_NEEDS_GPU=1 "$bundle/kernels" cuda_arm --test-threads 1
}

# The built-in model's pictures on the GPU in each type beside those of the CPU.
part_pictures() {
    local type
    on_gpu "$bundle/aquatint" generate 'a red apple' --seed 1 --device cpu --out "$results/cpu.png"
    for type in fp32 fp16 bf16; do
        on_gpu "$bundle/aquatint" generate 'a red apple' --seed 1 --device cuda --dtype $type \
            --out "$results/$type.png"
        on_gpu "$python" - "$results/cpu.png" "$results/$type.png" <<'PY'
import sys
import numpy as np
from PIL import Image
a, b = (np.asarray(Image.open(p).convert("RGB"), dtype=float) for p in sys.argv[1:])
error = np.mean((a - b) ** 2)
ratio = 10 * np.log10(255**2 / error) if error else float("inf")
print(f"{sys.argv[2]}: PSNR {ratio:.1f} dB against the CPU")
sys.exit(ratio < 25)
PY
    done
}

# Components at full width beside diffusers, eager and compiled, on the same random weights.
part_components() {
    local model work row
    for model in sdxl sd15; do
        [ -d "$bundle/$model" ] || on_gpu "$python" benches/peers/full_width.py "$bundle/$model" $model
    done
    for work in "unet sdxl/unet 128 2 10" "vae sdxl/vae 128 1 5" "unet sd15/unet 64 2 20" "vae sd15/vae 64 1 10"; do
        set -- $work
        row="$1 $bundle/$2 $3 $4 $5"
        for who in "ours $bundle/component" "diffusers $python benches/peers/component.py" \
            "compiled env AQUATINT_COMPILE=1 $python benches/peers/component.py"; do
            if [ -n "$dry" ]; then
                on_gpu env AQUATINT_DEVICE=cuda ${who#* } $row
            elif ! grep -q "^$commit|${who%% *}|$work|" "$results/rows" 2>/dev/null; then
                echo "$commit|${who%% *}|$work|$(AQUATINT_DEVICE=cuda ${who#* } $row)" >>"$results/rows"
            fi
        done
    done
}

report() {
    "$python" - "$results/rows" "$(device)" "$commit" >benches/RESULTS.md <<'PY'
import collections, json, statistics, sys
path, device, commit = sys.argv[1:]
times = collections.defaultdict(dict)
for line in open(path):
    of, who, work, result = line.rstrip("\n").split("|", 3)
    if of == commit:
        result = json.loads(result)
        times[work][who] = statistics.median(result["milliseconds"][2:]), result["magnitude"]
print(f"# Measured on a GPU\n\n{device}, commit {commit}, f16, medians in milliseconds; written by benches/gpu.sh.\n")
print("| work | ours | diffusers | ratio | compiled | ratio | same output |\n|---|---|---|---|---|---|---|")
for work, by in times.items():
    ours = by.get("ours")
    cells = [work, f"{ours[0]:.1f}" if ours else "-"]
    for peer in ("diffusers", "compiled"):
        there = by.get(peer)
        cells += [f"{there[0]:.1f}", f"{there[0] / ours[0]:.2f}"] if there and ours else ["-", "-"]
    eager = by.get("diffusers")
    same = ours and eager and abs(ours[1] - eager[1]) < 0.02 * eager[1]
    print("| " + " | ".join(cells + ["yes" if same else "NO"]) + " |")
PY
    cat benches/RESULTS.md
}

# What the programs say where there is no GPU: with it, the parts above begin.
first_call() {
    local said
    said=$("$bundle/aquatint" generate x --device cuda 2>&1) && { echo 'there is a GPU: leave out dry-run'; return; }
    grep -q 'device cuda' <<<"$said" || { echo "aquatint --device cuda said: $said" >&2; return 1; }
    echo "aquatint --device cuda: $said"
}

parts='kernels older sanitizer pictures components'
case "${1:-all}" in
    bundle) build; exit ;;
    report) report; exit ;;
    dry-run)
        dry=1
        for part in $parts; do
            say "$part"
            "part_$part" || echo "$part cannot be run here"
        done
        first_call
        exit
        ;;
    all) ;;
    *) parts=$* ;;
esac
mkdir -p "$results"
for part in $parts; do
    [ -e "$results/$part-$commit" ] && { say "$part: done before"; continue; }
    say "$part"
    "part_$part" 2>&1 | tee "$results/$part.log"
    touch "$results/$part-$commit"
done
report
