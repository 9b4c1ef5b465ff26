#!/usr/bin/env bash
# What can be said of the CUDA build without a GPU, in a few minutes: every kernel of ours compiles for the three
# generations of GPUs that are supported, the Rust side type-checks with the feature, what it makes starts without a
# driver, and cuDNN, 415 MB from PyPI, has a plan for every convolution and attention of the published models. What the
# kernels compute is tested by cargo test, which runs them emulated.
#
# candle's own kernels take ten minutes and more, and nothing here runs or links them: a stand-in for nvcc writes empty
# files in their place, into a target folder of its own. scripts/full-check.sh builds the real thing.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}/cuda-check
toolkit=$(scripts/cuda-home.sh "${target%/*}/cuda-home")
eval "$toolkit"
mkdir -p "$target/bin"
cat >"$target/bin/nvcc" <<STAND_IN
#!/usr/bin/env bash
# candle asks for PTX, objects and a library of them; whoever asks for something else gets it.
case " \$* " in *' --ptx '* | *' -c '* | *' --lib '*) ;; *) exec '$(command -v nvcc)' "\$@" ;; esac
while [ \$# -gt 0 ]; do
    case "\$1" in
        -o) out=\$2 ;;
        --output-directory) folder=\$2 ;;
        *.cu) source=\$(basename "\$1" .cu) ;;
    esac
    shift
done
: >"\${out:-\$folder/\$source.ptx}"
STAND_IN
chmod +x "$target/bin/nvcc"
CUDA_COMPUTE_CAP=80 NVCC="$target/bin/nvcc" PATH="$target/bin:$PATH" CARGO_TARGET_DIR=$target \
    cargo check --workspace --lib --bins --example component --features cuda --quiet
cuda-loader/check.sh "$(dirname "$(ls -t "$target"/debug/build/aquatint-cuda-loader-*/out/jumps.s | head -1)")"
scripts/cudnn-plans.sh quick
