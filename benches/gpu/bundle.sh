# What travels to a machine without Rust: programs without the built-in model and without candle's kernels for GGUF files,
# diffusers and what it needs, and NVIDIA's memory checker.

# PyTorch, numpy and Pillow are there. Of the memory checker's wheels this is the first with all that it needs to start.
WHEELS='diffusers==0.35.2 transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2 safetensors==0.8.0 regex
    importlib_metadata zipp requests urllib3 idna certifi charset-normalizer tqdm packaging pyyaml filelock fsspec
    nvidia-cuda-sanitizer-api==13.5.25'
# Which Python is there, nobody knows here. What is compiled in wheels has the version in its name.
PYTHONS='3.10 3.11 3.12 3.13'
MAX_MIB=64

bundle() {
    local toolkit older commit
    commit=$(git describe --always --dirty)
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
    echo "$commit" >"$bin/commit"
    wheels
    tar -C "$out" -c bin wheels | xz -T0 -9 >"$out/bundle.tar.xz"
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
    local version packed checker=$out/wheels/nvidia/cu13/compute-sanitizer
    packed=$(mktemp -d)
    for version in $PYTHONS; do
        "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$packed" --only-binary :all: \
            --python-version "$version" --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 \
            --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 $WHEELS
    done
    for wheel in "$packed"/*.whl; do "$python" -m zipfile -e "$wheel" "$out/wheels"; done
    rm -rf "$packed" "$checker/docs" "$checker/x86"
    # Nothing that is unpacked so is executable.
    chmod +x "$checker"/*
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
    bin=$(mktemp -d)
    newest() { ls -t "$built/deps/$1"-* 2>/dev/null | grep -v '\.' | head -1; }
    link() {
        [ -x "$1" ] || fail "no $2 in $built: see what scripts/full-check.sh builds"
        ln -s "$(realpath "$1")" "$bin/$2"
    }
    say "no bundle: programs of $built stand in"
    link "$built/aquatint" aquatint
    link "$built/examples/component" component
    for name in kernels components pictures; do link "$(newest $name)" bench-$name; done
    for name in kernels kernels-75 kernels-80; do link "$(newest aquatint_kernels)" $name; done
}
