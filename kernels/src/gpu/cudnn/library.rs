//! cuDNN's functions, from the library that is opened where there is one: nothing is linked.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// `libcudnn.so.9` on the way that the system looks for libraries; it opens its parts itself.
const NAME: &CStr = c"libcudnn.so.9";

/// The oldest version whose attention is asked for: 9.10.0 and 9.10.1 computed it wrongly.
const OLDEST: usize = 91_002;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// A cuDNN handle or descriptor, which is cuDNN's own.
pub(super) type Opaque = *mut c_void;
type Status = c_int;

/// The functions that are used, with the types of `cudnn_graph.h`.
pub(super) struct Library {
    get_version: unsafe extern "C" fn() -> usize,
    get_last_error: unsafe extern "C" fn(*mut c_char, usize),
    pub(super) create: unsafe extern "C" fn(*mut Opaque) -> Status,
    pub(super) set_stream: unsafe extern "C" fn(Opaque, *mut c_void) -> Status,
    pub(super) create_descriptor: unsafe extern "C" fn(c_int, *mut Opaque) -> Status,
    pub(super) destroy_descriptor: unsafe extern "C" fn(Opaque) -> Status,
    pub(super) finalize: unsafe extern "C" fn(Opaque) -> Status,
    pub(super) set_attribute: unsafe extern "C" fn(Opaque, c_int, c_int, i64, *const c_void) -> Status,
    pub(super) get_attribute:
        unsafe extern "C" fn(Opaque, c_int, c_int, i64, *mut i64, *mut c_void) -> Status,
    pub(super) execute: unsafe extern "C" fn(Opaque, Opaque, Opaque) -> Status,
}

impl Library {
    /// Opens it, once a process.
    ///
    /// # Errors
    /// Says that the library is not there, lacks a function, or is too old.
    pub(super) fn open() -> Result<&'static Self, String> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        LIBRARY.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self, String> {
        const RTLD_NOW: c_int = 2;
        // SAFETY: a name that ends with 0. The library is NVIDIA's, whose initialisers may run.
        let library = unsafe { dlopen(NAME.as_ptr(), RTLD_NOW) };
        if library.is_null() {
            return Err(format!("{} is not there", NAME.to_string_lossy()));
        }
        // Takes the type of the function from where it is put.
        macro_rules! function {
            ($name:literal) => {{
                // SAFETY: an open library, and a name that ends with 0.
                let function = unsafe { dlsym(library, $name.as_ptr()) };
                if function.is_null() {
                    return Err(format!("{} has no {}", NAME.to_string_lossy(), $name.to_string_lossy()));
                }
                // SAFETY: cuDNN's function of this name has this type in all versions 9.
                unsafe { std::mem::transmute_copy(&function) }
            }};
        }
        let library = Self {
            get_version: function!(c"cudnnGetVersion"),
            get_last_error: function!(c"cudnnGetLastErrorString"),
            create: function!(c"cudnnCreate"),
            set_stream: function!(c"cudnnSetStream"),
            create_descriptor: function!(c"cudnnBackendCreateDescriptor"),
            destroy_descriptor: function!(c"cudnnBackendDestroyDescriptor"),
            finalize: function!(c"cudnnBackendFinalize"),
            set_attribute: function!(c"cudnnBackendSetAttribute"),
            get_attribute: function!(c"cudnnBackendGetAttribute"),
            execute: function!(c"cudnnBackendExecute"),
        };
        match library.version() {
            version if version < OLDEST => {
                Err(format!("cuDNN {version} is there, {OLDEST} or newer is needed"))
            }
            _ => Ok(library),
        }
    }

    /// As cuDNN counts: 9.19.0 is 91900.
    pub(super) fn version(&self) -> usize {
        // SAFETY: it takes nothing and only returns a number.
        unsafe { (self.get_version)() }
    }

    /// Turns a status into what cuDNN says of it.
    pub(super) fn check(&self, status: Status, what: impl FnOnce() -> String) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut text = [0u8; 512];
        // SAFETY: it writes at most as many bytes, of which the last is 0.
        unsafe { (self.get_last_error)(text.as_mut_ptr().cast(), text.len()) };
        let text = CStr::from_bytes_until_nul(&text).map(CStr::to_string_lossy).unwrap_or_default();
        Err(format!("cuDNN: {}: status {status}: {}", what(), text.trim()))
    }
}
