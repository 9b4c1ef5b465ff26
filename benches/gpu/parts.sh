# The parts of gpu.sh: what each runs, and how long it may take.

# Work for whole pictures: name, model, type, side, steps, guidance, our scheduler, diffusers' scheduler.
PICTURES='
sdxl-30 sdxl f16 1024 30 5 Euler Euler
sdxl-lcm-4 sdxl f16 1024 4 1 LCM LCM
sd15-20 sd15 f16 512 20 7.5 Euler Euler
flux-schnell flux-schnell bf16 1024 4 0 Euler FlowMatch
flux-dev flux-dev bf16 1024 28 3.5 Euler FlowMatch
'
# Components: name, kind, shape, side or tokens, batch, runs.
COMPONENTS='
unet-sdxl unet dummy:sdxl/unet 128 2 12
unet-sd15 unet dummy:sd15/unet 64 2 20
vae-sdxl vae dummy:sdxl/vae 128 1 8
clip-l clip dummy:sdxl/text_encoder 77 2 20
clip-bigg clip dummy:sdxl/text_encoder_2 77 2 20
t5-512 t5 dummy:flux-dev/text_encoder_2 512 1 10
'
# What f16 and bf16 are compared with f32 on, small enough for f32 on the CPU: the same columns.
PARITY='
unet-sd15 unet dummy:sd15/unet 16 2 1
unet-sdxl unet dummy:sdxl/unet 16 1 1
vae-sdxl vae dummy:sdxl/vae 16 1 1
clip-l clip dummy:sdxl/text_encoder 77 1 1
clip-bigg clip dummy:sdxl/text_encoder_2 77 1 1
'
WHO='ours diffusers compiled'

names() { awk 'NF { print $1 }' <<<"$1"; }
row_of() { awk -v name="$2" '$1 == name { $1 = ""; print }' <<<"$1"; }

all_parts() {
    local work who
    echo kernels older-75 older-80 sanitizer pictures
    for work in $(names "$PARITY"); do echo "parity:$work"; done
    echo bench-kernels bench-components bench-pictures peer-ops
    for work in $(names "$COMPONENTS"); do for who in $WHO; do echo "component:$work:$who"; done; done
    for work in $(names "$PICTURES"); do for who in $WHO; do echo "picture:$work:$who"; done; done
    for work in sdxl-30 flux-dev; do echo "reuse:$work"; done
    echo cold-start:ours cold-start:diffusers
}

limit_of() {
    case $1 in
        # Compiling a denoiser may take as long as a part may at all.
        *:compiled | sanitizer | *flux*) echo 470 ;;
        *) echo 420 ;;
    esac
}

# In a process of its own: tables and settings are set anew.
run_part() {
    . benches/gpu/parts.sh
    local kind work who
    IFS=: read -r kind work who <<<"$1"
    "part_${kind//-/_}" "$work" "$who"
}

add() { [ -n "$dry" ] || rows add part="${part%%:*}" "$@"; }

# Every op, type and shape against its definition on the CPU: the tests that an emulator runs elsewhere.
arms() {
    local program=$1 log
    shift
    log=$(mktemp)
    on_gpu "$@" env AQUATINT_NEEDS_GPU=1 "$bin/$program" cuda_arm --test-threads 1 | tee "$log"
    add who=ours work="$program" value="$(grep -c '\.\.\. ok$' "$log" || true)" unit='arms as defined'
    rm -f "$log"
}
part_kernels() { arms kernels; }
part_older_75() { arms kernels-75; }
part_older_80() { arms kernels-80; }
part_sanitizer() {
    local checker
    checker=$(command -v compute-sanitizer || find "$out/wheels" -path '*/compute-sanitizer/compute-sanitizer' 2>/dev/null | head -1 || true)
    [ -n "$checker" ] || { echo 'no compute-sanitizer'; [ -n "$dry" ]; return; }
    chmod +x "$checker"
    arms kernels "$checker" --error-exitcode 1
    add who=ours work=memcheck note='compute-sanitizer found nothing'
}

# The demo model's pictures on the GPU in each type beside those of the CPU.
part_pictures() {
    local type of="--model models/demo --seed 1 --steps 8"
    [ -n "$dry" ] || "$bin/aquatint" generate 'a red apple' $of --device cpu --out "$results/cpu.png"
    for type in fp32 fp16 bf16; do
        on_gpu "$bin/aquatint" generate 'a red apple' $of --device cuda --dtype $type --out "$results/$type.png"
        [ -n "$dry" ] || add who=ours work="demo picture, $type" unit='dB PSNR against the CPU' \
            value="$("$python" benches/gpu/psnr.py "$results/$type.png" "$results/cpu.png" 25)"
    done
}

# A component in each type beside f32 on the CPU.
part_parity() {
    local type row expected=$results/$1.f32
    row=$(row_of "$PARITY" "$1")
    [ -n "$dry" ] || AQUATINT_DTYPE=f32 AQUATINT_OUTPUT=$expected "$bin/component" $row >/dev/null
    for type in f32 f16 bf16; do
        on_gpu env AQUATINT_DEVICE=cuda AQUATINT_DTYPE=$type AQUATINT_OUTPUT="$results/$1.out" "$bin/component" $row
        [ -n "$dry" ] || add who=ours work="$1, $type" unit='of the CPU'"'"'s root mean square' \
            json="$("$python" benches/peers/compare.py "$results/$1.out" "$expected")" key=relative
    done
}

# Our benches; each prints its own figures.
bench() {
    on_gpu env AQUATINT_DEVICE=cuda "$bin/bench-$1" --bench "${@:2}" | tee "$results/bench-$1.txt"
    [ -n "$dry" ] || rows bench part="bench-$1" file="$results/bench-$1.txt"
}
part_bench_kernels() { bench kernels --output-format bencher; }
part_bench_components() { bench components --output-format bencher; }
part_bench_pictures() { bench pictures; }

# PyTorch's own operations on the shapes of bench-kernels.
part_peer_ops() {
    [ -n "$dry" ] && { on_gpu env AQUATINT_DEVICE=cuda "$python" benches/peers/ops.py <<<'linear_1024x640x640'; return; }
    sed -n 's/^test \(kernels\/\)\?\([^ ]*\) .*/\2/p' "$results/bench-kernels.txt" |
        AQUATINT_DEVICE=cuda "$python" benches/peers/ops.py | while read -r name ns; do
            add who=diffusers work="$name" value="$(awk -v n="$ns" 'BEGIN { print n / 1e6 }')" unit=ms
        done
}

timed() {
    local work=$1 who=$2 said
    shift 2
    [ -n "$dry" ] && { on_gpu "$@"; return; }
    said=$("$@" | tail -1)
    echo "$said"
    add work="$work" who="$who" json="$said" key=milliseconds unit=ms
}

part_component() {
    local row
    row=$(row_of "$COMPONENTS" "$1")
    case $2 in
        ours) timed "$1" $2 env AQUATINT_DEVICE=cuda "$bin/component" $row ;;
        diffusers) timed "$1" $2 env AQUATINT_DEVICE=cuda "$python" benches/peers/component.py $row ;;
        compiled) timed "$1" $2 env AQUATINT_DEVICE=cuda AQUATINT_COMPILE=1 "$python" benches/peers/component.py $row ;;
    esac
}

part_picture() {
    local model type side steps guidance ours theirs peer
    read -r model type side steps guidance ours theirs <<<"$(row_of "$PICTURES" "$1")"
    peer="$python benches/peers/picture.py $model $side $steps $guidance $theirs 4"
    case $2 in
        ours) our_picture "$1" ours ;;
        diffusers) timed "$1" $2 env AQUATINT_DEVICE=cuda AQUATINT_DTYPE=$type $peer ;;
        compiled) timed "$1" $2 env AQUATINT_DEVICE=cuda AQUATINT_DTYPE=$type AQUATINT_COMPILE=1 $peer ;;
    esac
}

# Four pictures of one prompt; the first pays for what is encoded, captured and tuned.
our_picture() {
    local name=$1 who=$2 model type side steps guidance ours theirs dtype said
    shift 2
    read -r model type side steps guidance ours theirs <<<"$(row_of "$PICTURES" "$name")"
    dtype=${type/f16/fp16}
    dtype=${dtype/bfp16/bf16}
    set -- "$bin/aquatint" generate 'a photo of a red cat' --dummy-weights "$model" --device cuda --dtype "$dtype" \
        --width "$side" --height "$side" --steps "$steps" --guidance-scale "$guidance" --scheduler "$ours" --seed 1 \
        --num-images 4 --json --out "$results/$name.png" "$@"
    [ -n "$dry" ] && { on_gpu "$@"; return; }
    said=$("$@" | "$python" -c 'import json, sys
print(json.dumps(dict(milliseconds=[i["elapsed_ms"] for i in json.load(sys.stdin)["images"]])))')
    add work="$name" who="$who" json="$said" key=milliseconds unit=ms
}

# What steps that reuse features save; the weights are random, so nothing is said of the pictures.
part_reuse() {
    case $1 in
        flux*) our_picture "$1" 'ours, --first-block-cache 0.1' --first-block-cache 0.1 ;;
        *) our_picture "$1" 'ours, --cache-interval 3' --cache-interval 3 ;;
    esac
}

# From the start of a process to its first picture of SDXL, files in the system's cache.
part_cold_start() {
    local began model=$out/sdxl
    if [ -z "$dry" ] && [ ! -f "$model/model_index.json" ]; then
        "$python" benches/peers/full_width.py "$model" sdxl
    fi
    [ -n "$dry" ] || cat "$model"/*/*.safetensors >/dev/null
    began=$(date +%s%N)
    case $1 in
        ours)
            on_gpu "$bin/aquatint" generate 'a red cat' --model "$([ -n "$dry" ] && echo models/demo || echo "$model")" \
                --device cuda --dtype fp16 --steps 4 --out "$results/cold.png"
            ;;
        diffusers) on_gpu "$python" benches/peers/cold_start.py "$model" 4 ;;
    esac
    add work='cold start, SDXL, 4 steps' who="$1" value=$((($(date +%s%N) - began) / 1000000)) unit=ms
}
