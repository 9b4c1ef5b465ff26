#!/usr/bin/env bash
# Makes .ref, the virtual environment of the reference implementation (PyTorch and diffusers on the CPU, pinned in
# models/tests/reference/requirements.txt). The fixtures in the tree were recorded with it; only recording them anew
# and the side-by-side timings need it. About 2 GB; needs Python 3.11 or newer, gcc and readelf.
set -euo pipefail
cd "$(dirname "$0")/.."

pins=models/tests/reference/requirements.txt
if [ -f .ref/made-from ] && cmp -s "$pins" .ref/made-from; then
    exit 0
fi
python3 -m venv --clear .ref
pip() { .ref/bin/pip install --quiet --disable-pip-version-check "$@"; }
# The published torch wheel asks for gigabytes of CUDA libraries even on a machine without a GPU: stand-ins do.
pip --no-deps $(grep '^torch==' "$pins")
pip filelock typing-extensions 'setuptools>=77.0.3' sympy networkx jinja2 fsspec numpy
.ref/bin/python scripts/cuda_stubs.py "$(echo .ref/lib/python3*/site-packages/torch/lib)"
pip --no-deps $(grep -E '^(diffusers|transformers|peft|accelerate|torchsde|gguf|DeepCache)==' "$pins")
pip $(grep -E '^(huggingface_hub|tokenizers|safetensors|sentencepiece|protobuf)==' "$pins") \
    regex pillow tqdm packaging pyyaml psutil requests httpx importlib_metadata scipy trampoline ftfy
cp "$pins" .ref/made-from
.ref/bin/python -c 'import diffusers, torch; print("reference: torch", torch.__version__, "diffusers", diffusers.__version__)'
