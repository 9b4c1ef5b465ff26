# What travels to a machine without Rust: programs without the built-in model and without candle's kernels for GGUF files,
# diffusers and what it needs, and NVIDIA's memory checker.

# Pure Python but for tokenizers, safetensors and regex; PyTorch, numpy and Pillow are there.
WHEELS='diffusers==0.35.2 transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2 safetensors==0.8.0 regex
    importlib_metadata zipp requests urllib3 idna certifi charset-normalizer tqdm packaging pyyaml filelock fsspec psutil
    DeepCache==0.1.1 nvidia-cuda-sanitizer-api==13.0.85'
MAX_MIB=64

bundle() {
    local toolkit name wheels=$out/wheels
    toolkit=$(scripts/cuda-home.sh)
    eval "$toolkit"
    # PTX for the A100 runs on everything since; our own kernels are there for each generation.
    export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
    rm -rf "$bin" "$wheels"
    mkdir -p "$bin" "$wheels"
    local cuda='--release --no-default-features --features cuda'
    cargo build $cuda --bin aquatint --example component
    cp target/release/aquatint target/release/examples/component "$bin"
    for name in kernels components pictures; do
        built bench-$name cargo bench --no-run --no-default-features --features cuda --bench $name
    done
    for name in kernels kernels-75 kernels-80; do
        # The older ones' code as PTX, which any newer GPU runs.
        [ $name = kernels ] || export AQUATINT_KERNELS_AS=${name#*-}
        built $name cargo test --release --no-run --package aquatint-kernels --features cuda --lib
    done
    strip "$bin"/*
    git rev-parse --short HEAD >"$bin/commit"
    "$python" -m pip install --quiet --no-deps --target "$wheels" \
        --only-binary :all: --python-version "${GPU_PYTHON:-3.12}" --platform manylinux_2_28_x86_64 \
        --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 $WHEELS
    tar -C "$out" -c bin wheels | xz -T0 -9e >"$out/bundle.tar.xz"
    check_size
}

# Runs cargo and puts the one program that it says it built into the bundle.
built() {
    local name=$1 path
    shift
    path=$("$@" --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
    [ -n "$path" ] || fail "cargo built no $name"
    cp "$path" "$bin/$name"
}

check_size() {
    local bytes
    bytes=$(stat -c %s "$out/bundle.tar.xz")
    say "bundle.tar.xz: $((bytes >> 20)) MiB"
    [ $((bytes >> 20)) -lt $MAX_MIB ] || fail "the bundle is larger than $MAX_MIB MiB"
}

# Where there is no bundle, a dry run takes what cargo built for the CPU: it says as well that there is no GPU.
stand_in() {
    local built=${CARGO_TARGET_DIR:-target}/debug name
    newest() { ls -t "$built/deps/$1"-* 2>/dev/null | grep -v '\.' | head -1; }
    bin=$(mktemp -d)
    ln -s "$(realpath "$built/aquatint")" "$(realpath "$built/examples/component")" "$bin"
    for name in kernels components pictures; do ln -s "$(realpath "$(newest $name)")" "$bin/bench-$name"; done
    for name in kernels kernels-75 kernels-80; do ln -s "$(realpath "$(newest aquatint_kernels)")" "$bin/$name"; done
    say "no bundle: programs of $built stand in"
}
