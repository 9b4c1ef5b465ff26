#!/usr/bin/env bash
# Checks and timings on a machine with an NVIDIA GPU, which needs no Rust: programs are built elsewhere and brought.
#
#   benches/gpu.sh bundle          where Rust is: builds target/gpu/bundle.tar.xz, programs and wheels, below 64 MiB
#   benches/gpu.sh dry-run [part]  anywhere: every part up to its first call of the device
#   benches/gpu.sh [part ...]      on the GPU: all parts, or those whose names begin so; what was done is left out, and
#                                  what failed twice: a second try finds what the first one compiled
#   benches/gpu.sh report          writes benches/RESULTS.md from what there is
#
# A part takes less than 8 minutes. With BUDGET_S=SECONDS no part is begun that could end later. The script ends with 75
# where parts are left: call it again until it does not. Then 0 says that all went well, 1 that a part failed; deleting
# target/gpu/results/*.failed has those tried again. Every row is in benches/RESULTS.md at once.
#
# The GPU machine needs the driver (R580 or newer), Python with PyTorch for CUDA 13, whose wheels bring CUDA's libraries,
# and this repository with target/gpu. Nothing is downloaded there. Its C library may not be older than what the bundle
# asks for: glibc 2.35, built on Debian 12.
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
    said=$("$@" 2>&1) || code=$?
    if [ $code -eq 0 ] || ! grep -qiE "$NO_GPU" <<<"$said"; then
        printf 'does not come as far as asking for a GPU (%s): %s\n%s\n' "$code" "$*" "$said" >&2
        return 1
    fi
    echo "asks for a GPU: $*"
}
# What our programs, PyTorch and the memory checker say where there is none, and a program that was built without CUDA.
NO_GPU="no cuda gpus|no usable gpu|without cuda|has no such device|no nvidia driver|not compiled with cuda|no gpu\
|cuda is not available|libcuda|process didn't terminate successfully"

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
        rm -rf "$bin" "$out/wheels"
        # There may be no xz.
        "$python" -m tarfile -e "$out/bundle.tar.xz" "$out"
        touch "$bin/commit"
    fi
    export PYTHONPATH="$PWD/$out/wheels${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
    # The last line of what a program says is to be its error.
    export TORCHINDUCTOR_CACHE_DIR="$PWD/$out/inductor" RUST_BACKTRACE=0
}

# Runs the parts that are asked for and not over.
run() {
    local part state began limit commit left=0 failed=0
    commit=$(commit)
    for part in $(all_parts); do
        is_wanted "$part" "$@" || continue
        state=$results/$commit-$part
        if [ -z "$dry" ] && [ -e "$state.done" ]; then
            say "$part: $(cat "$state.done")"
            continue
        elif [ -z "$dry" ] && failed_twice "$state"; then
            say "$part: $(tail -1 "$state.failed")"
            failed=$((failed + 1))
            continue
        fi
        limit=$(limit_of "$part")
        if [ -n "${BUDGET_S:-}" ] && [ $((SECONDS - started + limit)) -gt "$BUDGET_S" ]; then
            left=$((left + 1))
            continue
        fi
        say "$part"
        began=$SECONDS
        # In a process of its own, so that it can be ended as a whole.
        if part=$part timeout -k 5 "$limit" bash -euo pipefail -c "$(declare -f); $(settings); run_part $part" 2>&1 |
            tee "$results/$part.log"; then
            ended "$state.done" "took $((SECONDS - began)) s" value=$((SECONDS - began))
        else
            say "$part: FAILED"
            failed=$((failed + 1))
            ended "$state.failed" "failed after $((SECONDS - began)) s of $limit: $(tail -1 "$results/$part.log" | cut -c1-200)"
            [ -n "$dry" ] || failed_twice "$state" || left=$((left + 1))
        fi
    done
    [ $left -eq 0 ] || { say "$left parts are left"; exit 75; }
    [ $failed -eq 0 ] || { say "$failed parts failed"; exit 1; }
}

# Whether a part's name begins as one of the others does; without others every part is wanted.
is_wanted() {
    local part=$1 prefix
    shift
    [ $# -gt 0 ] || return 0
    for prefix in "$@"; do [[ $part != "$prefix"* ]] || return 0; done
    return 1
}

failed_twice() { [ "$(cat "$1.failed" 2>/dev/null | wc -l)" -ge 2 ]; }

# Notes how a part ended: a line in its file, and a row. A dry run is not noted.
ended() {
    local file=$1 how=$2
    shift 2
    [ -z "$dry" ] || return 0
    echo "$how" >>"$file"
    rows add part="$part" who=ours work=part note="$how" "$@"
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
