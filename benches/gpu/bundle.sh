# What travels to a machine without Rust: programs without the built-in model and without candle's kernels for GGUF files,
# diffusers and what it needs, and NVIDIA's memory checker.

# PyTorch, numpy and Pillow are there.
WHEELS='diffusers==0.35.2 transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2 safetensors==0.8.0 regex
    importlib_metadata zipp requests urllib3 idna certifi charset-normalizer tqdm packaging pyyaml filelock fsspec
    nvidia-cuda-sanitizer-api==13.0.85'
# Which Python is there, nobody knows here. What is compiled in wheels has the version in its name.
PYTHONS='3.10 3.11 3.12 3.13'
MAX_MIB=64

bundle() {
    local toolkit older
    toolkit=$(scripts/cuda-home.sh)
    eval "$toolkit"
    # PTX for the A100 runs on everything since; our own kernels are there for each generation.
    export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
    # A folder of its own: what lacks kernels must not be taken for what has them.
    export NVCC=$PWD/scripts/nvcc-without-gguf.sh AQUATINT_WITHOUT_GGUF=1
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/bundle
    rm -rf "$bin" "$out/wheels"
    mkdir -p "$bin"
    programs build --no-default-features --bin aquatint --example component \
        --bench kernels --bench components --bench pictures
    for older in '' 75 80; do
        # The older ones' code as PTX, which any newer GPU runs.
        [ -z "$older" ] || export AQUATINT_KERNELS_AS=$older
        programs test --no-run --package aquatint-kernels --lib
        mv "$bin/aquatint_kernels" "$bin/kernels${older:+-$older}"
    done
    git describe --always --dirty >"$bin/commit"
    wheels
    tar -C "$out" -c bin wheels | xz -T0 -9e >"$out/bundle.tar.xz"
    check_size
}

# Runs cargo and puts the programs that it says it built into the bundle.
programs() {
    local kind name path
    cargo "$@" --release --features cuda --message-format=json-render-diagnostics | "$python" -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable"):
        print(message["target"]["kind"][0], message["target"]["name"], message["executable"])' |
        while read -r kind name path; do
            [ "$kind" != bench ] || name=bench-$name
            cp "$path" "$bin/$name"
        done
}

# Unpacks the wheels of all versions of Python over one another.
wheels() {
    local version packed
    packed=$(mktemp -d)
    for version in $PYTHONS; do
        "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$packed" --only-binary :all: \
            --python-version "$version" --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 \
            --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 $WHEELS
    done
    for wheel in "$packed"/*.whl; do "$python" -m zipfile -e "$wheel" "$out/wheels"; done
    rm -rf "$packed"
    # zip files extracted so are not executable.
    find "$out/wheels" -path '*sanitizer*' -type f -exec chmod +x {} +
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
