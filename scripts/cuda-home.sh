#!/usr/bin/env bash
# A CUDA toolkit to build with, on machines that have none; what it prints is to be evaluated:
#   toolkit=$(scripts/cuda-home.sh) && eval "$toolkit" && cargo build --release --features cuda
#
# Where nvcc is on the PATH it is used, and nothing is done. Otherwise the compiler and the headers come from PyPI's
# wheels, 105 MB, and are laid out as a toolkit in a folder: cuda-home beside what cargo builds, or the one given. The
# libraries it links against are empty stand-ins: the program opens the real ones when it starts.
# Needs Python 3.9 or newer with pip, and gcc. CUDA 13.0 wants a driver of R580 or newer where the program runs.
set -euo pipefail
cd "$(dirname "$0")/.."

if nvcc=$(command -v nvcc); then
    echo "export CUDA_HOME='$(dirname "$(dirname "$(readlink -f "$nvcc")")")'"
    exit 0
fi
home=${1:-${CARGO_TARGET_DIR:-target}/cuda-home}
wheels='nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85'
if [ "$(cat "$home/made-from" 2>/dev/null)" != "$wheels" ] || [ ! -e "$home/bin/nvcc" ]; then
    rm -rf "$home"
    mkdir -p "$home/bin" "$home/lib64/stubs"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --target "$home/wheels" $wheels >&2
    # Links are relative, so that the folder may be moved and reached by any way. nvcc looks for its parts beside the
    # folder that its own file lies in, so bin is a folder and not a link.
    (
        cd "$home"
        from=wheels/nvidia/cu13
        for file in "$from"/bin/*; do ln -s "../$file" bin/; done
        for file in "$from"/lib/*.a; do ln -s "../$file" lib64/; done
        ln -s "$from/include" "$from/nvvm" .
        ln -s lib64 lib
    )
    for name in cuda cudart cublas cublasLt curand nvrtc; do
        gcc -shared -fPIC -x c /dev/null -o "$home/lib64/stubs/lib$name.so"
    done
    echo "$wheels" >"$home/made-from"
fi
home=$(cd "$home" && pwd)
echo "export CUDA_HOME='$home' PATH='$home/bin':\"\$PATH\" LIBRARY_PATH='$home/lib64/stubs':\"\${LIBRARY_PATH:-}\""
