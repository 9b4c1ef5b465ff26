#!/bin/sh
# Starts the build of Aquatint that fits the GPU: /opt/aquatint/CAP/aquatint, CAP being 75, 80 or 90. Without a GPU any
# build will do: it computes on the CPU, as --device auto does. AQUATINT_BUILD=CAP chooses by hand.
set -eu
builds=${AQUATINT_BUILDS:-/opt/aquatint}

say() { echo "aquatint: $*" >&2; }

# The first GPU that the program may use, as `8.6`; nothing where there is none.
compute_capability() {
    device=${CUDA_VISIBLE_DEVICES:-0}
    command -v nvidia-smi >/dev/null || return 0
    nvidia-smi --id="${device%%,*}" --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
        sed -n '1s/^ *\([0-9][0-9]*\.[0-9]\) *$/\1/p'
}

# The newest build here that runs on a capability like 86. The build for 90 uses what Hopper alone has; newer GPUs
# take the one for 80, which the driver compiles for them.
build_for() {
    for cap in 90 80 75; do
        [ "$cap" = 90 ] && [ $(($1 / 10)) != 9 ] && continue
        [ "$cap" -le "$1" ] && [ -x "$builds/$cap/aquatint" ] && echo "$cap" && return
    done
    return 0
}

any_build() {
    for cap in 80 75 90; do
        [ -x "$builds/$cap/aquatint" ] && echo "$cap" && return
    done
    say "there is no build in $builds"
    exit 1
}

build=${AQUATINT_BUILD:-}
# What computes nothing need not ask for the GPU.
[ "${1:-}" = health ] && build=$(any_build)
if [ -z "$build" ]; then
    dotted=$(compute_capability)
    capability=$(echo "$dotted" | tr -d .)
    if [ -z "$capability" ]; then
        build=$(any_build)
        say "no NVIDIA GPU was found"
    else
        build=$(build_for "$capability")
        if [ -z "$build" ]; then
            build=$(any_build)
            export SD_DEVICE="${SD_DEVICE:-cpu}"
            say "no build runs on compute capability $dotted: 7.5 is the oldest; computing on the CPU"
        else
            case "$capability/$build" in
                75/75 | 8?/80 | 90/90) ;;
                *) say "compute capability $dotted has no build of its own: using the one for $build" ;;
            esac
        fi
    fi
fi
if [ ! -x "$builds/$build/aquatint" ]; then
    say "there is no build $build in $builds"
    exit 1
fi
exec "$builds/$build/aquatint" "$@"
