//! Writes libtorch's folder into every binary's run path, so that they start without LD_LIBRARY_PATH.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // torch-sys hands this to its direct dependents.
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        // The CUDA build's `lib` is a link: its libraries look for NVIDIA's relative to where they really are.
        let folder = std::fs::canonicalize(&folder).map_or(folder, |real| real.display().to_string());
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        // libtorch.so registers its kernels by being loaded: keep it even where no symbol of it is named.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
        println!("cargo:rustc-link-arg=-L{folder}");
        println!("cargo:rustc-link-arg=-ltorch");
    }
}
