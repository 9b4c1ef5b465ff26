//! Launches on the emulator: the kernels as C++, a block at a time, on tensors of the CPU.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use candle_core::{CpuStorage, Device, Result, Storage, Tensor, bail};

use super::{Argument, Grid, Launch};

type Emulate = unsafe extern "C" fn(*const c_char, *const c_uint, c_uint, c_uint, *mut *mut c_void) -> c_int;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// Compiles the emulator with all kernels, once a process, and opens it.
fn emulate() -> Emulate {
    static EMULATE: OnceLock<Emulate> = OnceLock::new();
    *EMULATE.get_or_init(|| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let library = std::env::temp_dir().join(format!("aquatint-emulator-{}.so", std::process::id()));
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let status = Command::new(&compiler)
            .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-DEMULATED", "-w"])
            .args(["-fno-strict-aliasing", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-I"])
            .arg(&sources)
            .arg(sources.join("gpu/emulator.cpp"))
            .arg("-o")
            .arg(&library)
            .status();
        assert!(status.as_ref().is_ok_and(|s| s.success()), "{compiler}, which these tests need: {status:?}");
        let path = CString::new(library.to_str().unwrap()).unwrap();
        // SAFETY: the library is the one that has just been built, and `emulate` in it has this type.
        let function = unsafe {
            let library = dlopen(path.as_ptr(), 2);
            assert!(!library.is_null(), "{path:?} cannot be opened");
            let function = dlsym(library, c"emulate".as_ptr());
            assert!(!function.is_null(), "{path:?} has no emulate");
            std::mem::transmute::<*mut c_void, Emulate>(function)
        };
        std::fs::remove_file(&library).unwrap();
        function
    })
}

/// Where a contiguous tensor's elements begin.
fn address(x: &Tensor) -> Result<*const u8> {
    let (storage, layout) = x.storage_and_layout();
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("a tensor of shape {:?} is not contiguous", x.dims());
    };
    let Storage::Cpu(storage) = &*storage else {
        bail!("a tensor of shape {:?} is not on the CPU", x.dims())
    };
    let first: *const u8 = match storage {
        CpuStorage::F32(s) => s.as_ptr().cast(),
        CpuStorage::F16(s) => s.as_ptr().cast(),
        CpuStorage::BF16(s) => s.as_ptr().cast(),
        CpuStorage::U8(s) => s.as_ptr(),
        CpuStorage::I32(s) => s.as_ptr().cast(),
        _ => bail!("kernels take no tensors of {:?}", x.dtype()),
    };
    Ok(first.wrapping_add(start * x.dtype().size_in_bytes()))
}

/// Bytes around an output, which a kernel must leave alone.
const GUARD: usize = 64;
const GUARDED: u8 = 0xa5;

/// Room for an output, all ones at first, which are NaNs: what a kernel leaves out is seen.
struct Room(Vec<u64>);

impl Room {
    fn new(bytes: usize) -> Self {
        let mut room = Self(vec![u64::MAX; (bytes + 2 * GUARD).div_ceil(8)]);
        let all = room.bytes();
        all[..GUARD].fill(GUARDED);
        all[GUARD + bytes..].fill(GUARDED);
        room
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: any bytes are bytes; the length is that of the words.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 8) }
    }

    fn into_tensor(mut self, bytes: usize, launch: &Launch<'_>, output: usize) -> Result<Tensor> {
        let all = self.bytes();
        let around = all[..GUARD].iter().chain(&all[GUARD + bytes..]);
        assert!(
            around.copied().all(|b| b == GUARDED),
            "{} writes beside its output {output}",
            launch.function
        );
        let (shape, dtype) = &launch.outputs[output];
        Tensor::from_raw_buffer(&all[GUARD..GUARD + bytes], *dtype, shape.dims(), &Device::Cpu)
    }
}

union Value {
    address: *const u8,
    i32: i32,
    i64: i64,
    f32: f32,
}

pub(super) fn run(launch: &Launch<'_>, grid: &Grid) -> Result<Vec<Tensor>> {
    assert!(launch.shared_bytes <= 48 << 10, "{}: too much shared memory", launch.function);
    let sizes: Vec<usize> = launch.outputs.iter().map(|(s, d)| s.elem_count() * d.size_in_bytes()).collect();
    let mut outputs: Vec<Room> = sizes.iter().map(|bytes| Room::new(*bytes)).collect();
    let values = launch.arguments.iter().map(|argument| {
        Ok(match argument {
            Argument::Input(x) => Value { address: address(x)? },
            Argument::Absent => Value { address: std::ptr::null() },
            Argument::Output(i) => Value { address: outputs[*i].bytes()[GUARD..].as_ptr() },
            Argument::I32(v) => Value { i32: *v },
            Argument::I64(v) => Value { i64: *v },
            Argument::F32(v) => Value { f32: *v },
        })
    });
    let mut values = values.collect::<Result<Vec<_>>>()?;
    let mut arguments: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
    let blocks = grid.blocks.map(|n| n as c_uint);
    let name = CString::new(launch.function.clone()).unwrap();
    // SAFETY: the arguments are those of the kernel's parameters, in their order; what it writes beside its outputs is
    // noticed below.
    let status = unsafe {
        let (threads, shared_bytes) = (grid.threads as c_uint, launch.shared_bytes as c_uint);
        emulate()(name.as_ptr(), blocks.as_ptr(), threads, shared_bytes, arguments.as_mut_ptr())
    };
    assert_eq!(status, 0, "there is no kernel {}", launch.function);
    let rooms = outputs.into_iter().zip(sizes).enumerate();
    rooms.map(|(i, (room, bytes))| room.into_tensor(bytes, launch, i)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{f64s, random};

    #[test]
    fn a_missing_barrier_is_noticed() -> Result<()> {
        let x = random(64, 1)?;
        let reverse = |barrier| {
            let launch = Launch::new("emulator", "reverse_64").input(&x).output(64, candle_core::DType::F32);
            f64s(&launch.int(barrier).blocks([1, 1, 1], 64)?)
        };
        let expected: Vec<f64> = f64s(&x)?.into_iter().rev().collect();
        assert!(reverse(0)? != expected);
        assert_eq!(reverse(1)?, expected);
        Ok(())
    }

    #[test]
    #[should_panic(expected = "writes beside its output 0")]
    fn a_write_beside_the_output_is_noticed() {
        let x = random(32, 1).unwrap();
        let launch = Launch::new("emulator", "write_beside").input(&x).output(32, candle_core::DType::F32);
        let _ = launch.blocks([1, 1, 1], 32);
    }
}
