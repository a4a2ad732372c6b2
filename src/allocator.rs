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

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn a_tensor_takes_the_place_of_one_of_its_size_whatever_small_has_settled_beside_it() {
        keep_freed();
        let tensor = |values: i64| Tensor::ones([values], (Kind::Float, Device::Cpu));
        for values in [1_234_567, 2_345_678] {
            let (first, _behind) = (tensor(values), tensor(values));
            // They would fill what is cut off around a tensor.
            let small: Vec<Vec<u8>> = (0..1000).map(|i| vec![0; 16 + i % 80]).collect();
            let place = first.data_ptr() as usize;
            assert_eq!(place % 64, 0);
            drop(first);
            let second = tensor(values);
            assert_eq!(second.data_ptr() as usize, place);
            assert_eq!(second.sum(Kind::Double).double_value(&[]), values as f64);
            drop(small);
        }
    }
}

/// Convolutions that are kept ready, where the environment says nothing else.
const PRIMITIVES: &str = "256";

/// What bounds them: oneDNN's variable, of either name, for those of the process; and libtorch's for the descriptions
/// of each thread's, which hold compiled code too, forward and backward ones apart.
const KEEPERS: [&[&str]; 2] =
    [&["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"], &["LRU_CACHE_CAPACITY"]];

/// Bounds what libtorch keeps of the sizes that it has seen.
///
/// It compiles each convolution for the shape at hand. By default it keeps 1024, and 1024 descriptions: tens of
/// megabytes, which images of mixed sizes fill within some thousand steps. A detector's step takes about a hundred
/// (RetinaNet with ResNet-50: 113, made anew in 15 ms), so those of the last sizes are at hand. Programs call this
/// once, before any tensor; what is in the environment wins.
pub fn keep_few_primitives() {
    for names in KEEPERS {
        if names.iter().all(|name| std::env::var_os(name).is_none()) {
            std::env::set_var(names[0], PRIMITIVES);
        }
    }
}
