#!/usr/bin/env bash
# Trains everything, in order:  models/demo/training/run.sh EMOJI_FOLDER RUN_FOLDER
# Minutes are about those of the model in the tree, on two CPU cores; more is better, a GPU needs fewer. The longest
# part goes on from its last checkpoint: call denoiser.py with --resume.
set -euo pipefail
data=$1 run=$2
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../../../.ref/bin/python}
mkdir -p "$run"
step() { "$python" -u "$here/$1.py" --data "$data" --run "$run" "${@:2}"; }

step tokenizer
step vae --minutes 35
step denoiser --minutes 75
step distill --minutes 14
step style --minutes 5
"$python" "$here/export.py" --run "$run" --out "$here/.."
"$python" "$here/probe.py" train --data "$data" --run "$run"
"$python" "$here/probe.py" check --data "$data" --run "$run" --model "$here/.."
"$python" "$here/probe.py" check --data "$data" --run "$run" --model "$here/.." --lora "$here/../lora/lcm-lora.safetensors" --steps 4 --guidance 1
"$python" "$here/sheet.py" --model "$here/.." --png "$here/../contact-sheet.png"
