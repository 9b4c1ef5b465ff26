#!/usr/bin/env bash
# Checks the loader by itself: check.sh <folder with jumps.s and libraries.rs>. A program with its functions starts
# without any library of CUDA, gets their errors, and reaches their functions where there are some, here stand-ins.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

cat >program.rs <<'RUST'
use std::ffi::{CStr, c_char, c_int, c_uint};
unsafe extern "C" {
    fn cuInit(flags: c_uint) -> c_int;
    fn cublasLtGetStatusString(status: c_int) -> *const c_char;
}
fn main() {
    // SAFETY: functions of the loader or of the stand-ins, which take anything.
    let call = || unsafe { (cuInit(0), CStr::from_ptr(cublasLtGetStatusString(3)).to_string_lossy().into_owned()) };
    let before = call();
    println!("{before:?} {:?} {:?}", aquatint_cuda_loader::open(), call());
}
RUST
OUT_DIR=$1 rustc --edition 2024 --crate-type rlib --crate-name aquatint_cuda_loader --cfg 'feature="cuda"' \
    "$here/src/lib.rs"
# With a library to link against, as candle asks for it: the loader's functions must come first.
echo 'int cuInit(unsigned flags) { return 7; }' >cuda.c
echo 'const char *cublasLtGetStatusString(int status) { return "there"; }' >cublasLt.c
gcc -shared -fPIC cuda.c -o libcuda.so -Wl,-soname,libcuda.so.1
rustc --edition 2024 program.rs --extern aquatint_cuda_loader=libaquatint_cuda_loader.rlib -L . -l cuda

expect() {
    [ "$1" = "$2" ] || { printf 'the loader: expected %s\n                 got %s\n' "$2" "$1" >&2; exit 1; }
}
absent='(100, "a library of CUDA is not there")'
expect "$(./program)" "$absent Err(\"libcuda.so.1 is not there\") $absent"
mkdir there
mv libcuda.so there/libcuda.so.1
expect "$(LD_LIBRARY_PATH=there ./program)" \
    "$absent Err(\"libcublas.so.13 or libcublas.so.12 is not there\") (7, \"a library of CUDA is not there\")"
gcc -shared -fPIC cublasLt.c -o there/libcublasLt.so.13
for name in libcublas.so.13 libcurand.so.10 libnvrtc.so.12; do
    gcc -shared -fPIC -x c /dev/null -o "there/$name"
done
expect "$(LD_LIBRARY_PATH=there ./program)" "$absent Ok(()) (7, \"there\")"
