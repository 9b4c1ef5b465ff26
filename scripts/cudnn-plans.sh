#!/usr/bin/env bash
# cuDNN's plans for every convolution and attention of the published models, for a T4, an A10G and an H100, on machines
# with none of them: cudnn-plans.sh [quick]. `quick` leaves out convolutions fused with what follows them, most of whose
# kernels are compiled here: minutes.
#
# cuDNN and NVRTC come from PyPI, 370 and 45 MB, into target/cudnn. The driver and cublasLt, which cuDNN opens, are
# stand-ins: a plan asks the driver only to load the kernels that were compiled. Nothing is run. Needs Python 3.9 or newer
# with pip, and gcc.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-all}
folder=${CARGO_TARGET_DIR:-$PWD/target}/cudnn
fetch() { # a wheel, where it is not there yet
    [ "$(cat "$folder/$1/version" 2>/dev/null)" = "$2" ] && return
    rm -rf "${folder:?}/$1"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
        --target "$folder/$1" "$1==$2"
    echo "$2" >"$folder/$1/version"
}
fetch nvidia-cudnn-cu13 9.19.0.56
fetch nvidia-cuda-nvrtc 13.0.88

# Functions that are only looked up answer with an error: 100 is the driver's CUDA_ERROR_NO_DEVICE.
mkdir -p "$folder/stand-ins"
returning() { sed "s/.*/int &(void) { return $1; }/"; }
answered=' cuDriverGetVersion cuLibraryLoadData cuLibraryGetKernel cuLibraryUnload cuKernelGetFunction cuFuncSetAttribute
    cuKernelSetAttribute cublasLtGetVersion '
{
    printf '%s\n' $answered >"$folder/answered"
    # Names without a version, which newer programs no longer use.
    printf '%s\n' cuCtxPopCurrent cuCtxPushCurrent cuLinkCreate cuLinkAddData |
        sort -u - cuda-loader/names/driver.txt | grep -vxFf "$folder/answered" | returning 100
    cat <<'DRIVER'
static char kernel[4096];
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuLibraryLoadData(void **library) { *library = kernel; return 0; }
int cuLibraryGetKernel(void **of) { *of = kernel; return 0; }
int cuLibraryUnload(void) { return 0; }
int cuKernelGetFunction(void **function) { *function = kernel; return 0; }
int cuFuncSetAttribute(void) { return 0; }
int cuKernelSetAttribute(void) { return 0; }
DRIVER
} | gcc -shared -fPIC -w -x c - -o "$folder/stand-ins/libcuda.so.1"
{
    grep -vxFf "$folder/answered" cuda-loader/names/cublaslt.txt | returning 1
    echo 'unsigned long cublasLtGetVersion(void) { return 130100; }'
} | gcc -shared -fPIC -w -x c - -o "$folder/stand-ins/libcublasLt.so.13"

libraries=$folder/stand-ins:$folder/nvidia-cudnn-cu13/nvidia/cudnn/lib:$folder/nvidia-cuda-nvrtc/nvidia/cu13/lib
cargo test --workspace --quiet --test cudnn --no-run
AQUATINT_NEEDS_CUDNN=$what LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} \
    cargo test --workspace --quiet --test cudnn -- --nocapture
