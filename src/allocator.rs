//! How the process holds on to memory.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
extern "C" {
    /// See `allocator.cpp`.
    fn vigdet_take_whole_blocks();
}

/// Keeps freed memory in the process instead of giving it back to the system after each tensor, in blocks that fit
/// again.
///
/// A training step frees and takes hundreds of tensors of many megabytes. glibc maps and unmaps each of them by
/// default, so every step pays for fresh, zeroed pages. Programs call this once, before any tensor; it does nothing
/// where the C library is another, and nothing about settings that the user made by glibc's own variables
/// (`MALLOC_TRIM_THRESHOLD_`, …).
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let settings = [
            (libc::M_MMAP_MAX, 0, "MALLOC_MMAP_MAX_"),
            (libc::M_TRIM_THRESHOLD, i32::MAX, "MALLOC_TRIM_THRESHOLD_"),
            (libc::M_TOP_PAD, 64 << 20, "MALLOC_TOP_PAD_"),
        ];
        for (parameter, value, variable) in settings {
            if std::env::var_os(variable).is_none() {
                // SAFETY: mallopt takes two integers and may be called at any time; a refused value changes nothing.
                unsafe { libc::mallopt(parameter, value) };
            }
        }
        // SAFETY: it only names another allocator for tensors to come, and lives as long as the process.
        unsafe { vigdet_take_whole_blocks() }
    }
}
