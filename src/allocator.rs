//! How the process holds on to memory.

/// Keeps freed memory in the process instead of giving it back to the system after each tensor.
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
    }
}

/// Convolutions that oneDNN keeps ready, where it is not told otherwise.
const PRIMITIVES: &str = "256";

/// Bounds what libtorch's oneDNN keeps of the sizes that it has seen.
///
/// It compiles each convolution for the shape at hand, and keeps 1024 of them: some 40 MB, which images of mixed sizes
/// fill within some hundred steps. A detector's step takes about a hundred (RetinaNet with ResNet-50: 113, made anew in
/// 15 ms), so those of the last sizes are at hand. Programs call this once, before any tensor;
/// `ONEDNN_PRIMITIVE_CACHE_CAPACITY` in the environment wins.
pub fn keep_few_primitives() {
    let names = ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"];
    if names.iter().all(|name| std::env::var_os(name).is_none()) {
        std::env::set_var(names[0], PRIMITIVES);
    }
}
