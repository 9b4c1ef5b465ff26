//! How the process keeps its memory.

/// Tells the allocator to keep freed memory instead of giving it back; to be called once, before any threads start.
///
/// Every op makes a tensor and frees one. glibc maps and unmaps large blocks each time, so that every page is cleared
/// anew: three quarters of the time of a group normalisation of 33 MB. Other allocators keep memory as they are.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::ffi::c_int;

        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        // From glibc's malloc.h: give back at the heap's end; map separately; number of heaps, which otherwise grows
        // with the threads, each with what it once held.
        const M_TRIM_THRESHOLD: c_int = -1;
        const M_MMAP_THRESHOLD: c_int = -3;
        const M_ARENA_MAX: c_int = -8;
        for (parameter, value) in
            [(M_TRIM_THRESHOLD, c_int::MAX), (M_MMAP_THRESHOLD, 1 << 30), (M_ARENA_MAX, 1)]
        {
            // SAFETY: glibc's function, which takes any values; an unknown one changes nothing.
            unsafe { mallopt(parameter, value) };
        }
    }
}
