//! Writes libtorch's folder into every binary's run path, so that they start without LD_LIBRARY_PATH.

/// Where libtorch lies when a program is shipped, relative to the program's folder: in a Python wheel beside the
/// package `torch`, in an archive in `lib` beside `bin`. `scripts/make_wheel.py` and `scripts/make_dist.py` keep one of
/// the two and remove the builder's own folder.
const SHIPPED: [&str; 2] = ["../../torch/lib", "../lib"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // torch-sys hands this to its direct dependents.
    let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") else { return };
    // The CUDA build's `lib` is a link: its libraries look for NVIDIA's relative to where they really are.
    let folder = std::fs::canonicalize(&folder).map_or(folder, |real| real.display().to_string());
    let macos = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "macos");
    let origin = if macos { "@loader_path" } else { "$ORIGIN" };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    for place in SHIPPED {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{origin}/{place}");
    }
    // libtorch.so registers its kernels by being loaded: keep it even where no symbol of it is named. The linker of
    // macOS keeps every library that is named.
    if !macos {
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
    }
    println!("cargo:rustc-link-arg=-L{folder}");
    println!("cargo:rustc-link-arg=-ltorch");
}
