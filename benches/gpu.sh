#!/usr/bin/env bash
# Checks and timings on a machine with an NVIDIA GPU, which needs no Rust: programs are built elsewhere and brought.
#
#   benches/gpu.sh bundle          where Rust is: builds target/gpu/bundle.tar.xz, programs and wheels, below 64 MiB
#   benches/gpu.sh dry-run [part]  anywhere: every part up to its first call of the device
#   benches/gpu.sh [part ...]      on the GPU: all parts, or those whose names begin so; what is done is left out
#   benches/gpu.sh report          writes benches/RESULTS.md from what there is
#
# A part takes less than 8 minutes. With BUDGET_S=SECONDS no part is begun that could end later, and the script ends
# with 75 where parts are left: call it again until it ends with 0. Every row is in benches/RESULTS.md at once.
#
# The GPU machine needs the driver (R580 or newer), Python with PyTorch for CUDA 13, whose wheels bring CUDA's libraries,
# and this repository with target/gpu. Nothing is downloaded there.
set -euo pipefail
cd "$(dirname "$0")/.."

out=target/gpu
bin=$out/bin
results=$out/results
python=${PYTHON:-python3}
started=$SECONDS
dry=

. benches/gpu/bundle.sh
. benches/gpu/parts.sh

say() { printf '== %s\n' "$*"; }
fail() { echo "gpu.sh: $*" >&2; exit 1; }
commit() { cat "$bin/commit" 2>/dev/null || git rev-parse --short HEAD; }
rows() { "$python" benches/gpu/rows.py "$results/rows.jsonl" "$@"; }

# Runs a command on the GPU. In a dry run it is run as well: it must come as far as asking for the GPU.
on_gpu() {
    local said code=0
    if [ -z "$dry" ]; then
        "$@"
        return
    fi
    said=$(timeout 300 "$@" 2>&1) || code=$?
    if [ $code -eq 0 ] || ! grep -qiE "$NO_GPU" <<<"$said"; then
        printf 'does not come as far as asking for a GPU (%s): %s\n%s\n' "$code" "$*" "$said" >&2
        return 1
    fi
    echo "asks for a GPU: $*"
}
# What our programs and PyTorch say where there is none, and a program that was built without CUDA.
NO_GPU='no cuda gpus|no usable gpu|without cuda|has no such device|no nvidia driver|not compiled with cuda|no gpu|cuda is not available|libcuda'

# PyTorch's wheels bring CUDA's libraries, in folders that the system does not look into.
find_libraries() {
    local found
    found=$("$python" -c 'import glob, site, sys
print(":".join(p for s in site.getsitepackages() + sys.path for p in glob.glob(s + "/nvidia/*/lib")))' || true)
    export LD_LIBRARY_PATH="$found${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
}

# The programs and wheels of the bundle, unpacked once.
unpack() {
    mkdir -p "$results"
    if [ -f "$out/bundle.tar.xz" ] && [ "$out/bundle.tar.xz" -nt "$bin/commit" ]; then
        tar -xJf "$out/bundle.tar.xz" -C "$out"
        touch "$bin/commit"
    fi
    export PYTHONPATH="$PWD/$out/wheels${PYTHONPATH:+:$PYTHONPATH}" PATH="$PWD/$out/wheels/bin:$PATH"
    export HF_HUB_OFFLINE=1 TORCHINDUCTOR_CACHE_DIR="$PWD/$out/inductor"
}

# Runs the parts that are asked for and not done.
run() {
    local part limit left=0 failed=0 done_file wanted
    [ $# -gt 0 ] || set -- ''
    for part in $(all_parts); do
        wanted=
        for prefix in "$@"; do [[ $part == "$prefix"* ]] && wanted=1; done
        [ -n "$wanted" ] || continue
        done_file=$results/done-$(commit)-$part
        [ -z "$dry" ] && [ -e "$done_file" ] && { say "$part: done before"; continue; }
        limit=$(limit_of "$part")
        if [ -n "${BUDGET_S:-}" ] && [ $((SECONDS - started + limit)) -gt "$BUDGET_S" ]; then
            left=$((left + 1))
            continue
        fi
        say "$part"
        # In a process of its own, so that it can be ended as a whole.
        if part=$part dry=$dry timeout "$limit" bash -euo pipefail -c "$(declare -f); $(settings); run_part $part" 2>&1 |
            tee "$results/$part.log"; then
            [ -n "$dry" ] || touch "$done_file"
        else
            failed=$((failed + 1))
            say "$part: FAILED"
            [ -n "$dry" ] || rows add part="$part" who=ours work="$part" note='failed, or took longer than its limit'
        fi
    done
    [ -n "$dry" ] || rows report >benches/RESULTS.md
    [ $failed -eq 0 ] || exit 1
    [ $left -eq 0 ] || { say "$left parts are left"; exit 75; }
}

# What run_part needs beside the functions.
settings() { declare -p out bin results python dry NO_GPU; }

case "${1:-all}" in
    bundle) bundle ;;
    report) rows report >benches/RESULTS.md && cat benches/RESULTS.md ;;
    dry-run)
        dry=1
        unpack
        [ -e "$bin/commit" ] || stand_in
        find_libraries
        run "${@:2}"
        ;;
    all) unpack; find_libraries; run ;;
    *) unpack; find_libraries; run "$@" ;;
esac
