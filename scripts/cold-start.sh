#!/usr/bin/env bash
# From the start of the program to its first picture, with a model of full width and random f16 weights: everything but the
# denoising steps, against the time that reading the files takes. With the files in the page cache, and, where the caller
# may empty that (root), from the disk.
#
#     scripts/cold-start.sh [sd15|sdxl]
#
# Needs .ref (scripts/reference-env.sh), and for sdxl 7 GB of disk and 12 GB of memory. What one step takes is half the
# difference between runs of three steps and of one.
set -euo pipefail
cd "$(dirname "$0")/.."

model=${1:-sd15}
folder=${AQUATINT_PEERS:-target/peers}/full-width/$model
[ -f "$folder/model_index.json" ] || HF_HUB_OFFLINE=1 .ref/bin/python benches/peers/full_width.py "$folder" "$model"
cargo build --release --quiet --bin aquatint
mapfile -t files < <(find -L "$folder" -name '*.safetensors')
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# prepare CACHE: fills the page cache with the files, or empties it.
prepare() {
    if [ "$1" = warm ]; then cat "${files[@]}" >/dev/null; else sync && echo 1 >/proc/sys/vm/drop_caches; fi
}
seconds() {
    local begun=$EPOCHREALTIME
    "$@"
    python3 -c "print($EPOCHREALTIME - $begun)"
}
read_files() {
    for file in "${files[@]}"; do dd if="$file" of=/dev/null bs=1M status=none; done
}
paint() {
    target/release/aquatint generate "a lighthouse" --model "$folder" --device cpu --width "${SIDE:-64}" --height "${SIDE:-64}" \
        --steps "$1" --guidance-scale 1 --seed 0 --out "$out/picture.png" >/dev/null 2>&1
}

caches=(warm)
[ -w /proc/sys/vm/drop_caches ] && caches+=(cold)
for cache in ${CACHES:-"${caches[@]}"}; do
    reading=() one=() three=()
    for _ in $(seq "${ROUNDS:-3}"); do
        prepare "$cache"
        reading+=("$(seconds read_files)")
        prepare "$cache"
        one+=("$(seconds paint 1)")
        prepare "$cache"
        three+=("$(seconds paint 3)")
    done
    python3 - "$model" "$cache" "${reading[*]}" "${one[*]}" "${three[*]}" <<'PY'
import statistics, sys
name, cache, *runs = sys.argv[1:]
reading, one, three = (statistics.median(map(float, run.split())) for run in runs)
rest = one - max(three - one, 0) / 2
print(f"{name}, {cache} cache: reading {reading:.2f} s, to the first picture of one step {one:.2f} s, "
      f"all but the step {rest:.2f} s, {rest / reading:.2f} times the reading")
PY
done
