# The parts of gpu.sh: what each runs, and how long it may take. A part is KIND[:WORK[:WHO]], run by part_KIND.

# Work for whole pictures: name, model, type, side, steps, guidance, our scheduler, diffusers' scheduler.
PICTURES='
sdxl-30 sdxl f16 1024 30 5 Euler Euler
sdxl-lcm-4 sdxl f16 1024 4 1 LCM LCM
sd15-20 sd15 f16 512 20 7.5 Euler Euler
flux-schnell flux-schnell bf16 1024 4 0 Euler FlowMatch
flux-dev flux-dev bf16 1024 28 3.5 Euler FlowMatch
'
# Components: name, kind, shape, side or tokens, batch, runs, and the side or tokens at which they are compared with f32 on
# the CPU, 0 for none.
COMPONENTS='
unet-sdxl unet dummy:sdxl/unet 128 2 12 16
unet-sd15 unet dummy:sd15/unet 64 2 20 16
vae-sdxl vae dummy:sdxl/vae 128 1 8 16
clip-l clip dummy:sdxl/text_encoder 77 2 20 77
clip-bigg clip dummy:sdxl/text_encoder_2 77 2 20 77
t5-512 t5 dummy:flux-dev/text_encoder_2 512 1 10 0
'
PEERS='diffusers compiled'

names() { awk 'NF { print $1 }' <<<"$1"; }
row_of() { awk -v name="$2" '$1 == name { $1 = ""; print }' <<<"$1"; }

all_parts() {
    local work who
    echo kernels older:75 older:80 pictures
    for work in $(awk '$7 { print $1 }' <<<"$COMPONENTS"); do echo "parity:$work"; done
    echo sanitizer bench:kernels bench:components bench:pictures peer-ops
    for work in $(names "$COMPONENTS"); do for who in ours $PEERS; do echo "component:$work:$who"; done; done
    for work in $(names "$PICTURES"); do for who in ours graphs $PEERS; do echo "picture:$work:$who"; done; done
    echo picture:{sdxl-30,flux-dev}:{reuse,fp8,int8} cold-start::ours cold-start::diffusers
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

# A command that prints JSON with its milliseconds.
timed() {
    local work=$1 who=$2 said
    shift 2
    [ -z "$dry" ] || { on_gpu "$@"; return; }
    said=$("$@" | tail -1)
    echo "$said"
    add work="$work" who="$who" json="$said" key=milliseconds unit=ms
}

# Every op, type and shape against its definition on the CPU: the tests that an emulator runs elsewhere.
arms() {
    local program=$1 log=$results/$part.txt passed
    shift
    on_gpu env AQUATINT_NEEDS_GPU=1 "$@" "$bin/$program" cuda_arm --test-threads 1 | tee "$log"
    [ -z "$dry" ] || return 0
    passed=$(grep -c '\.\.\. ok$' "$log")
    add who=ours work="$program" value="$passed" unit='arms as defined'
}
part_kernels() { arms kernels; }
part_older() { arms "kernels-$1"; }
part_sanitizer() {
    local checker
    checker=$(command -v compute-sanitizer || find "$out/wheels" -path '*/compute-sanitizer/compute-sanitizer' 2>/dev/null || true)
    [ -n "$checker" ] || { echo 'no compute-sanitizer'; [ -n "$dry" ]; return; }
    arms kernels "$checker" --error-exitcode 1
    add who=ours work=memcheck note='compute-sanitizer found nothing'
}

# The demo model's pictures on the GPU in each type beside those of the CPU.
part_pictures() {
    local type of="--model models/demo --seed 1 --steps 8"
    [ -n "$dry" ] || "$bin/aquatint" generate 'a red apple' $of --device cpu --out "$results/cpu.png"
    for type in fp32 fp16 bf16 'bf16 --quantise fp8' 'fp16 --quantise int8'; do
        on_gpu "$bin/aquatint" generate 'a red apple' $of --device cuda --dtype $type --out "$results/gpu.png"
        [ -n "$dry" ] || add who=ours work="demo picture, $type" unit='dB PSNR against the CPU' \
            value="$("$python" benches/gpu/psnr.py "$results/gpu.png" "$results/cpu.png" 25)"
    done
}

# A component in each type beside f32 on the CPU.
part_parity() {
    local type kind shape batch small arguments expected=$results/$1.f32
    read -r kind shape _ batch _ small <<<"$(row_of "$COMPONENTS" "$1")"
    arguments="$kind $shape $small $batch 1"
    [ -n "$dry" ] || AQUATINT_DTYPE=f32 AQUATINT_OUTPUT=$expected "$bin/component" $arguments >/dev/null
    for type in f32 f16 bf16; do
        on_gpu env AQUATINT_DEVICE=cuda AQUATINT_DTYPE=$type AQUATINT_OUTPUT="$results/$1.out" "$bin/component" $arguments
        [ -n "$dry" ] || add who=ours work="$1, $type" unit="of the CPU's root mean square" \
            json="$("$python" benches/peers/compare.py "$results/$1.out" "$expected")" key=relative
    done
}

# Our benches; each prints its own figures.
part_bench() {
    local command="$bin/bench-$1 --bench"
    [ "$1" = pictures ] || command+=' --output-format bencher'
    export AQUATINT_DEVICE=cuda
    [ -z "$dry" ] || { on_gpu $command; return; }
    $command | tee "$results/bench-$1.txt" | rows bench part="bench-$1"
}

# PyTorch's own operations on the shapes of bench-kernels.
part_peer_ops() {
    local ops="$python benches/peers/ops.py" timed name ns
    export AQUATINT_DEVICE=cuda
    [ -z "$dry" ] || { on_gpu $ops <<<linear_1024x640x640; return; }
    timed=$(sed -n 's/^test \(kernels\/\)\?\([^ ]*\) .*/\2/p' "$results/bench-kernels.txt")
    [ -n "$timed" ] || { echo 'nothing was timed by bench:kernels'; return 1; }
    $ops <<<"$timed" | while read -r name ns; do
        add who=diffusers work="$name" value="$(awk -v n="$ns" 'BEGIN { print n / 1e6 }')" unit=ms
    done
}

part_component() {
    local kind shape side batch runs arguments
    read -r kind shape side batch runs _ <<<"$(row_of "$COMPONENTS" "$1")"
    arguments="$kind $shape $side $batch $runs"
    export AQUATINT_DEVICE=cuda
    case $2 in
        ours) timed "$1" ours "$bin/component" $arguments ;;
        diffusers) timed "$1" diffusers "$python" benches/peers/component.py $arguments ;;
        compiled) AQUATINT_COMPILE=1 timed "$1" compiled "$python" benches/peers/component.py $arguments ;;
    esac
}

# Our milliseconds, as the peers print theirs.
paint() {
    "$bin/aquatint" generate 'a photo of a red cat' --device cuda --seed 1 --json "$@" | "$python" -c 'import json, sys
print(json.dumps(dict(milliseconds=[image["elapsed_ms"] for image in json.load(sys.stdin)["images"]])))'
}

# Four pictures of one prompt: the first ones pay for what is encoded, tuned, recorded and compiled. Steps that reuse
# features save time; the weights are random, so nothing is said of the pictures.
part_picture() {
    local model type side steps guidance ours theirs reuse='--cache-interval 3'
    read -r model type side steps guidance ours theirs <<<"$(row_of "$PICTURES" "$1")"
    ours="paint --dummy-weights $model --dtype ${type/#f16/fp16} --width $side --height $side --steps $steps
        --guidance-scale $guidance --scheduler $ours --num-images 4 --out $results/$1.png"
    theirs="$python benches/peers/picture.py $model $side $steps $guidance $theirs 4"
    [ $model != flux-dev ] || reuse='--first-block-cache 0.1'
    export AQUATINT_DEVICE=cuda AQUATINT_DTYPE=$type
    case $2 in
        ours) timed "$1" ours $ours ;;
        graphs) timed "$1" 'ours, --cuda-graphs 8' $ours --cuda-graphs 8 ;;
        reuse) timed "$1" "ours, $reuse" $ours $reuse ;;
        fp8 | int8) timed "$1" "ours, --quantise $2" $ours --quantise "$2" ;;
        diffusers) timed "$1" diffusers $theirs ;;
        compiled) AQUATINT_COMPILE=1 timed "$1" compiled $theirs ;;
    esac
}

# From the start of a process to its first picture of SDXL, files in the system's cache.
part_cold_start() {
    local began model=$out/sdxl
    if [ -n "$dry" ]; then
        model=models/demo
    else
        [ -f "$model/model_index.json" ] || "$python" benches/peers/full_width.py "$model" sdxl
        cat "$model"/*/*.safetensors >/dev/null
    fi
    began=$(date +%s%N)
    case $2 in
        ours)
            on_gpu "$bin/aquatint" generate 'a red cat' --model "$model" --device cuda --dtype fp16 --steps 4 \
                --out "$results/cold.png"
            ;;
        diffusers) on_gpu "$python" benches/peers/cold_start.py "$model" 4 ;;
    esac
    add work='SDXL, 4 steps' who="$2" value=$((($(date +%s%N) - began) / 1000000)) unit=ms
}
