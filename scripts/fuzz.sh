#!/usr/bin/env bash
# Row 13 of the scoreboard: every fuzz target under libFuzzer with AddressSanitizer, SECONDS_EACH (60) seconds each.
# Needs the nightly toolchain and cargo-fuzz, which it installs into target/tools where it is missing. What is found
# stays in fuzz/artifacts. Targets may be named as arguments.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${SECONDS_EACH:-60}
tools=$PWD/target/tools
export PATH="$tools/bin:$PATH"
rustup run nightly rustc --version ||
    { echo "scripts/fuzz.sh: the nightly toolchain is needed: rustup toolchain install nightly" >&2; exit 1; }
command -v cargo-fuzz >/dev/null || cargo install --quiet --locked --root "$tools" cargo-fuzz@0.13.2

targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(ls fuzz/targets | sed 's/\.rs$//')
AQUATINT_FUZZ_CORPUS="$PWD/fuzz/corpus" cargo test --quiet --test it fuzz::the_corpus_is_written
crashed=()
runs=0
for target in "${targets[@]}"; do
    log=$(mktemp)
    if ! cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -max_len=16384 -timeout=10 \
        -rss_limit_mb=4096 >"$log" 2>&1; then
        crashed+=("$target")
        tail -n 40 "$log" >&2
    fi
    of_this=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$log" | tail -n 1)
    echo "$target: ${of_this:-?} runs"
    runs=$((runs + ${of_this:-0}))
    rm -f "$log"
done
verdict=yes
[ ${#crashed[@]} = 0 ] || verdict=NO
echo "SCOREBOARD|13|${#targets[@]} fuzz targets, $seconds s each|0 crashes|${#crashed[@]} crashes in $runs runs ${crashed[*]}|$verdict"
[ "$verdict" = yes ]
