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
        LIBRARY.get_or_init(|| Self::load(NAME)).as_ref().map_err(Clone::clone)
    }

    fn load(name: &CStr) -> Result<Self, String> {
        const RTLD_NOW: c_int = 2;
        // SAFETY: a name that ends with 0. The library is NVIDIA's, whose initialisers may run.
        let library = unsafe { dlopen(name.as_ptr(), RTLD_NOW) };
        if library.is_null() {
            return Err(format!("{} is not there", name.to_string_lossy()));
        }
        // Takes the type of the function from where it is put.
        macro_rules! function {
            ($name:literal) => {{
                // SAFETY: an open library, and a name that ends with 0.
                let function = unsafe { dlsym(library, $name.as_ptr()) };
                if function.is_null() {
                    return Err(format!("{} has no {}", name.to_string_lossy(), $name.to_string_lossy()));
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

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::process::Command;

    use super::*;

    const FUNCTIONS: [&str; 10] = [
        "cudnnGetVersion",
        "cudnnGetLastErrorString",
        "cudnnCreate",
        "cudnnSetStream",
        "cudnnBackendCreateDescriptor",
        "cudnnBackendDestroyDescriptor",
        "cudnnBackendFinalize",
        "cudnnBackendSetAttribute",
        "cudnnBackendGetAttribute",
        "cudnnBackendExecute",
    ];

    /// Opens a library with these functions, each of which returns `number`.
    fn stand_in(functions: &[&str], number: usize) -> Result<Library, String> {
        let path = std::env::temp_dir().join(format!("aquatint-cudnn-{}-{number}.so", std::process::id()));
        let source = path.with_extension("c");
        let text =
            functions.iter().map(|name| format!("unsigned long {name}(void) {{ return {number}; }}\n"));
        std::fs::write(&source, text.collect::<String>()).unwrap();
        let compiled =
            Command::new("cc").args(["-shared", "-fPIC", "-w"]).arg(&source).arg("-o").arg(&path).status();
        assert!(compiled.is_ok_and(|s| s.success()), "cc, which this test needs");
        let library = Library::load(&CString::new(path.to_str().unwrap()).unwrap());
        for file in [source, path] {
            std::fs::remove_file(file).unwrap();
        }
        library
    }

    #[test]
    fn what_is_missing_is_said() {
        let error = |result: Result<Library, String>| result.map(|_| ()).unwrap_err();
        assert_eq!(error(Library::load(c"libcudnn.so.0")), "libcudnn.so.0 is not there");
        assert!(error(stand_in(&FUNCTIONS[..5], 92_000)).ends_with(" has no cudnnBackendDestroyDescriptor"));
        assert_eq!(error(stand_in(&FUNCTIONS, 91_001)), "cuDNN 91001 is there, 91002 or newer is needed");
        let library = stand_in(&FUNCTIONS, 91_002).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(library.version(), 91_002);
        assert_eq!(library.check(0, || unreachable!()), Ok(()));
        assert_eq!(
            library.check(3000, || "a plan".to_owned()),
            Err("cuDNN: a plan: status 3000: ".to_owned())
        );
    }
}
