//! Which libtorch the process runs: the one that the loader found, not the one that vigdet was built against.

use std::ffi::{c_void, CStr};
use std::fs;
use std::path::{Path, PathBuf};

use super::cuda::Cuda;

/// Its version, as in `2.13.0+cpu`, or `unknown`: tch does not tell, so it is read from the file beside it.
pub fn version() -> String {
    folder().and_then(|lib| version_beside(&lib)).unwrap_or_else(|| "unknown".into())
}

/// The CUDA version that it is built for; `None`: it has no CUDA.
pub fn cuda() -> Option<Cuda> {
    tch::utils::has_cudart().then(|| Cuda::of_number(tch::utils::version_cudart() as i32))
}

/// The folder that its libraries were loaded from.
fn folder() -> Option<PathBuf> {
    let mut found = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // A function of libtorch_cpu.so.
    let address = super::precision::function_of_libtorch() as *const c_void;
    // SAFETY: `dladdr` takes any address and fills the record, whose names live as long as the library is loaded.
    let file = unsafe {
        let known = libc::dladdr(address, &mut found) != 0 && !found.dli_fname.is_null();
        known.then(|| CStr::from_ptr(found.dli_fname))?
    };
    let file = fs::canonicalize(file.to_str().ok()?).ok()?;
    file.parent().map(Path::to_path_buf)
}

/// The version that a file near a folder of libraries names: `build-version` of libtorch's archives and of `make
/// libtorch` (there one folder higher, with CUDA), `version.py` of Python's torch.
fn version_beside(lib: &Path) -> Option<String> {
    let root = lib.parent()?;
    let archive = |folder: &Path| {
        let text = fs::read_to_string(folder.join("build-version")).ok()?;
        Some(text.trim().to_string()).filter(|version| !version.is_empty())
    };
    let python = || {
        let text = fs::read_to_string(root.join("version.py")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(line.trim_matches(['\'', '"']).to_string())
    };
    archive(root).or_else(python).or_else(|| archive(root.parent()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_libraries_that_run() {
        let lib = folder().expect("libtorch was loaded from a file");
        assert!(lib.join("libtorch_cpu.so").is_file(), "{}", lib.display());
        let version = version();
        assert!(version.split('.').count() >= 3 && version.starts_with("2."), "{version}");
    }

    #[test]
    fn every_layout_of_libtorch_names_its_version() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join("torch/lib");
        fs::create_dir_all(&lib).unwrap();
        assert_eq!(version_beside(&lib), None);
        // `CUDA=1 make libtorch`: the wheel's layout, with the file above it.
        fs::write(root.path().join("build-version"), "2.13.0+cuda\n").unwrap();
        assert_eq!(version_beside(&lib).unwrap(), "2.13.0+cuda");
        // Python's torch.
        fs::write(root.path().join("torch/version.py"), "debug = False\n__version__ = '2.11.0+cu130'\n").unwrap();
        assert_eq!(version_beside(&lib).unwrap(), "2.11.0+cu130");
        // An archive of libtorch, and `make libtorch` without CUDA.
        fs::write(root.path().join("torch/build-version"), "2.12.1+cpu").unwrap();
        assert_eq!(version_beside(&lib).unwrap(), "2.12.1+cpu");
    }
}
