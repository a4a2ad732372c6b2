//! Writes libtorch's folder into every binary's run path, so that they start without LD_LIBRARY_PATH, and compiles the
//! few functions that reach libtorch's c10d, where this libtorch has it: then `cfg(vigdet_ranks)` is set. Two more
//! files in C++ hold the nodes of the gradient and the memory of tensors.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "src/ranks/c10d.cpp";
/// Declarations in place of Gloo's headers, which the wheel leaves out.
const GLOO: &str = "src/ranks/gloo";
const LIBRARY: &str = "vigdet_c10d";
/// Nodes of the gradient, and the memory of tensors.
const ALWAYS: [&str; 2] = ["src/nn/node.cpp", "src/allocator.cpp"];

/// Where libtorch lies when a program is shipped, relative to the program's folder: in a Python wheel beside the
/// package `torch`, in an archive in `lib` beside `bin`. `scripts/make_wheel.py` and `scripts/make_dist.py` keep one of
/// the two and remove the builder's own folder.
const SHIPPED: [&str; 2] = ["../../torch/lib", "../lib"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for path in [SOURCE, GLOO].iter().chain(&ALWAYS) {
        println!("cargo:rerun-if-changed={path}");
    }
    for variable in ["LIBTORCH_INCLUDE", "LIBTORCH_CXX11_ABI"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rustc-check-cfg=cfg(vigdet_ranks)");
    // torch-sys hands this to its direct dependents.
    let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") else { return };
    // The CUDA build's `lib` is a link: its libraries look for NVIDIA's relative to where they really are.
    let folder = std::fs::canonicalize(&folder).unwrap_or_else(|_| folder.into());
    cpp(&include(&folder)).files(ALWAYS).compile("vigdet_node");
    match compile_ranks(&folder) {
        Ok(()) => println!("cargo:rustc-cfg=vigdet_ranks"),
        Err(reason) => println!("cargo:warning=without training in several processes: {reason}"),
    }
    let folder = folder.display();
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

/// The folder of libtorch's headers.
fn include(lib: &Path) -> PathBuf {
    let root = std::env::var_os("LIBTORCH_INCLUDE").map_or_else(|| lib.join(".."), PathBuf::from);
    root.join("include")
}

/// Compiles C++ against libtorch's headers, as torch-sys compiles its own.
fn cpp(include: &Path) -> cc::Build {
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    let mut build = cc::Build::new();
    build.cpp(true).pic(true).warnings(false).opt_level(1).debug(false).std("c++20");
    build.define("_GLIBCXX_USE_CXX11_ABI", abi.as_str());
    build.include(include).include(include.join("torch/csrc/api/include"));
    build
}

/// Compiles the functions, with NCCL where this libtorch and its neighbours have it.
fn compile_ranks(lib: &Path) -> Result<(), String> {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return Err("it is made for Linux".into());
    }
    let include = include(lib);
    if !include.join("torch/csrc/distributed/c10d/ProcessGroupGloo.hpp").exists() {
        return Err(format!("{} has no headers of c10d", include.display()));
    }
    if lib.join("libtorch_cuda.so").exists() {
        match nccl_headers(lib, &include) {
            Some(folders) => match compile(lib, &include, &folders) {
                Ok(()) => return Ok(()),
                Err(reason) => println!("cargo:warning=gradients of GPUs go by way of the CPU: {reason}"),
            },
            None => {
                println!("cargo:warning=gradients of GPUs go by way of the CPU: headers of NCCL or CUDA are missing")
            }
        }
    }
    compile(lib, &include, &[])
}

/// The folders of NCCL's headers and CUDA's: of NVIDIA's wheels beside PyTorch's, or of the system.
fn nccl_headers(lib: &Path, include: &Path) -> Option<Vec<PathBuf>> {
    let mut folders = vec![include.to_path_buf()];
    // In a Python environment and in the folder of `make libtorch` alike.
    let wheels = std::fs::read_dir(lib.join("../../nvidia")).into_iter().flatten().flatten();
    folders.extend(wheels.map(|wheel| wheel.path().join("include")));
    let toolkit = std::env::var_os("CUDA_HOME").unwrap_or_else(|| "/usr/local/cuda".into());
    let toolkit = PathBuf::from(toolkit).join("include");
    folders.extend([toolkit.join("cccl"), toolkit, "/usr/include".into()]);
    let with = |name: &str| folders.iter().find(|folder| folder.join(name).exists()).cloned();
    ["nccl.h", "cuda_runtime.h", "crt/host_config.h", "nv/target"].map(with).into_iter().collect()
}

/// Compiles and links, to see that libtorch has every symbol.
fn compile(lib: &Path, include: &Path, nccl: &[PathBuf]) -> Result<(), String> {
    let one_line = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let mut build = cpp(include);
    build.cargo_metadata(false).define("USE_C10D_GLOO", None).include(Path::new(GLOO).join(".."));
    if !nccl.is_empty() {
        build.define("USE_C10D_NCCL", None).includes(nccl);
    }
    build.file(SOURCE).try_compile(LIBRARY).map_err(|error| one_line(error.to_string()))?;

    let mut link: Command = build.get_compiler().to_command();
    link.args(["-shared", "-Wl,-z,defs", "-Wl,--allow-shlib-undefined", "-o"]).arg(out.join("c10d_links.so"));
    link.args(["-Wl,--whole-archive"]).arg(out.join(format!("lib{LIBRARY}.a"))).arg("-Wl,--no-whole-archive");
    link.arg("-L").arg(lib).args(["-ltorch_cpu", "-lc10"]);
    let of_gpus: &[&str] = if nccl.is_empty() { &[] } else { &["torch_cuda", "c10_cuda"] };
    link.args(of_gpus.iter().map(|name| format!("-l{name}")));
    let linked = link.output().map_err(|error| error.to_string())?;
    if !linked.status.success() {
        let said = one_line(String::from_utf8_lossy(&linked.stderr).into_owned());
        return Err(format!("this libtorch lacks symbols of c10d: {}", said.chars().take(300).collect::<String>()));
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static={LIBRARY}");
    of_gpus.iter().for_each(|name| println!("cargo:rustc-link-lib=dylib={name}"));
    Ok(())
}
