//! Writes libtorch's folder into every binary's run path, so that they start without LD_LIBRARY_PATH, and compiles the
//! one file in C++.

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
        compile_node(std::path::Path::new(&folder));
    }
}

/// Compiles `src/nn/node.cpp` against the headers of the libtorch in `lib`, as torch-sys compiles its own.
fn compile_node(lib: &std::path::Path) {
    println!("cargo:rerun-if-changed=src/nn/node.cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    let root = std::env::var_os("LIBTORCH_INCLUDE").map_or_else(|| lib.join(".."), Into::into);
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .opt_level(1)
        .debug(false)
        .warnings(false)
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", &*abi)
        .file("src/nn/node.cpp")
        .compile("vigdet_node");
}
