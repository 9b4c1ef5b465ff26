//! Lets a program that was built for CUDA start on machines without a driver.
//!
//! candle links CUDA's libraries, and the system does not start a program whose libraries are missing. Here every
//! function of them that cudarc names is defined, as a jump to an address in a table; so the program needs none of the
//! libraries to start. The table at first leads to functions that return the library's own error for a missing device;
//! `open` opens the libraries and puts their functions in place.
//!
//! The names in `names/` are those that cudarc declares in its `sys` modules, `fn cu...` and `fn nvrtc...`. One that is
//! missing there is an undefined symbol when the program is linked.

#[cfg(all(feature = "cuda", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod loader {
    use std::ffi::{CStr, c_char, c_int, c_void};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicPtr, Ordering};

    struct Library {
        /// Names it may have, the best first.
        files: &'static [&'static CStr],
        /// Its functions, in the order of their slots.
        names: &'static [&'static CStr],
    }

    include!(concat!(env!("OUT_DIR"), "/libraries.rs"));

    #[cfg(target_arch = "x86_64")]
    std::arch::global_asm!(include_str!(concat!(env!("OUT_DIR"), "/jumps.s")), options(att_syntax));
    #[cfg(target_arch = "aarch64")]
    std::arch::global_asm!(include_str!(concat!(env!("OUT_DIR"), "/jumps.s")));

    unsafe extern "C" {
        static aquatint_cuda_slots: [AtomicPtr<c_void>; SLOTS];
        fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }

    /// Opens the driver and the libraries, once a process.
    ///
    /// # Errors
    /// Names the library that is not there.
    pub fn open() -> Result<(), String> {
        static OPENED: OnceLock<Result<(), String>> = OnceLock::new();
        OPENED.get_or_init(open_all).clone()
    }

    fn open_all() -> Result<(), String> {
        const RTLD_NOW: c_int = 2;
        // SAFETY: the assembly defines it with as many slots.
        let mut slots = unsafe { &aquatint_cuda_slots }.iter();
        for library in LIBRARIES {
            let handle = library.files.iter().find_map(|file| {
                // SAFETY: a path that ends with 0. The libraries are NVIDIA's, whose initialisers may run.
                let handle = unsafe { dlopen(file.as_ptr(), RTLD_NOW) };
                (!handle.is_null()).then_some(handle)
            });
            let Some(handle) = handle else {
                let names: Vec<_> = library.files.iter().map(|f| f.to_string_lossy()).collect();
                return Err(format!("{} is not there", names.join(" or ")));
            };
            for (name, slot) in library.names.iter().zip(&mut slots) {
                // SAFETY: an open library, and a name that ends with 0.
                let function = unsafe { dlsym(handle, name.as_ptr()) };
                // What an older library lacks keeps returning an error.
                if !function.is_null() {
                    slot.store(function, Ordering::Release);
                }
            }
        }
        Ok(())
    }
}

#[cfg(all(feature = "cuda", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub use loader::open;
