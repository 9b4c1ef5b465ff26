#!/usr/bin/env bash
# An nvcc for builds that need none of candle's kernels for GGUF files, which are ten minutes of a build and 33 MB of the
# program: NVCC=$PWD/scripts/nvcc-without-gguf.sh cargo build --features cuda. Everything else the nvcc on the PATH does.
#
# They, and those for mixtures of experts, are all that candle-kernels compiles to objects. Each object here holds, under
# the names that its src/ffi.rs declares, functions that say what is missing and end the program.
set -euo pipefail

case " $* " in *' -c '*) ;; *) exec nvcc "$@" ;; esac
while [ $# -gt 0 ]; do
    [ "$1" = -o ] && object=$2
    shift
done
{
    echo '#include <stdio.h>'
    echo '#include <stdlib.h>'
    # In every object the same; the linker takes the first.
    sed -n 's/^ *pub fn \([a-z0-9_A-Z]*\)(.*/\1/p' src/ffi.rs | while read -r name; do
        echo "__attribute__((weak)) void $name(void) { fputs(\"$name: built without kernels for GGUF\\n\", stderr); abort(); }"
    done
} | gcc -x c -fPIC -Os -c - -o "$object"
