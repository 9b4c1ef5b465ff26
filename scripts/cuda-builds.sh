#!/usr/bin/env bash
# Builds the program for the generations of GPUs, all three or those given: scripts/cuda-builds.sh [75] [80] [90].
# Each is linked for real and started here: without a GPU it must say so in one line and end with 2 where a GPU was asked
# for, and compute on the CPU where none was. Prints the minutes and the bytes of each.
#
# nvcc takes 10 minutes a generation on two cores, most of them for candle's kernels for GGUF files, which
# NVCC=$PWD/scripts/nvcc-without-gguf.sh leaves out; it needs a CARGO_TARGET_DIR of its own. All are built in one folder,
# so that only what depends on the generation is compiled again: candle and what is built on it.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || set -- 75 80 90
target=${CARGO_TARGET_DIR:-target}/cuda
toolkit=$(scripts/cuda-home.sh)
eval "$toolkit"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for generation in "$@"; do
    began=$SECONDS
    CUDA_COMPUTE_CAP=$generation cargo build --release --quiet --features cuda --bin aquatint --target-dir "$target"
    took=$((SECONDS - began))
    program=$target/aquatint-$generation
    cp "$target/release/aquatint" "$program"
    # What is left of another generation in the folder must not be in it.
    of=$(grep -ao '\.target sm_[0-9]*' "$program" | sort -u)
    [ "$of" = ".target sm_$generation" ] || { echo "generation $generation has kernels of $of" >&2; exit 1; }

    code=0
    "$program" generate x --device cuda --steps 1 --out "$work/cuda.png" 2>"$work/said" || code=$?
    # On a machine with a GPU it draws a picture.
    if [ $code -ne 0 ]; then
        [ $code -eq 2 ] && [ "$(wc -l <"$work/said")" -eq 1 ] && grep -q 'no usable GPU' "$work/said" || {
            echo "generation $generation, --device cuda: $code" >&2
            cat "$work/said" >&2
            exit 1
        }
    fi
    "$program" generate x --device auto --steps 1 --out "$work/auto.png" >/dev/null
    echo "$generation: $((took / 60)) min $((took % 60)) s, $(stat -c %s "$program") bytes, $(cat "$work/said")"
done
