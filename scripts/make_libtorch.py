#!/usr/bin/env python3
"""Makes .libtorch/, the libtorch that vigdet is built against, from the PyTorch wheel.

The wheel is a CUDA build; without CUDA=1 its CUDA libraries are left out and libtorch.so is replaced by an empty
library that needs only the CPU ones. Uses pip to download, the standard library to unpack and the C++ compiler to link.
"""
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

TORCH = "torch==2.13.0"
# libtorch_cpu.so of the CUDA wheel is linked against these two, and looks for them beside itself.
CUDA_RUNTIME = ["nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"]
LEFT_OUT = ("libtorch_cuda", "libtorch_python", "libtorch_nvshmem", "libc10_cuda", "libcaffe2_nvrtc", "libtorch.so")
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 25, 24, 17)] + ["manylinux2014_x86_64"]


class Failure(Exception):
    """What went wrong and what to do about it, in words for the person at the terminal."""


def run(command, what):
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failure(f"{what} failed ({error}).") from error


def pip_download(packages, folder, dependencies=False):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version", "3.11"]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    if not dependencies:
        command.append("--no-deps")
    run(command + ["--dest", folder] + packages,
        f"Downloading {' '.join(packages)} with pip")


def unpack_cpu(wheels, out):
    wheel, = glob.glob(os.path.join(wheels, "torch-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            base = os.path.basename(name)
            wanted = name.startswith(("torch/include/", "torch/share/")) or (
                name.startswith("torch/lib/") and not base.startswith(LEFT_OUT))
            if wanted and base:
                archive.extract(name, out)
    for part in ("include", "lib", "share"):
        os.rename(os.path.join(out, "torch", part), os.path.join(out, part))
    shutil.rmtree(os.path.join(out, "torch"))
    lib = os.path.join(out, "lib")
    for wheel in glob.glob(os.path.join(wheels, "nvidia_cuda_*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                base = os.path.basename(name)
                if base in ("libcudart.so.13", "libcupti.so.13"):
                    with archive.open(name) as source, open(os.path.join(lib, base), "wb") as target:
                        shutil.copyfileobj(source, target)
    link_empty_libtorch(lib)


def link_empty_libtorch(lib):
    """libtorch.so of the wheel needs libtorch_cuda.so; the name itself is all that is wanted from it."""
    source = os.path.join(lib, "empty.cpp")
    with open(source, "w", encoding="ascii") as file:
        file.write("// Nothing: libtorch.so only brings in libtorch_cpu and libc10.\n")
    run([os.environ.get("CXX", "c++"), "-shared", "-fPIC", "-o", os.path.join(lib, "libtorch.so"), source,
         "-Wl,-soname,libtorch.so", "-Wl,--no-as-needed", "-L" + lib, "-ltorch_cpu", "-lc10", "-Wl,-rpath,$ORIGIN",
         "-Wl,--allow-shlib-undefined"],
        "Linking libtorch.so with the C++ compiler (set CXX to choose another)")
    os.remove(source)


def unpack_cuda(wheels, out):
    """Everything, in the wheel's own layout: the libraries find nvidia/ by ../../ of their folder."""
    for wheel in glob.glob(os.path.join(wheels, "*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(("torch/include/", "torch/lib/", "torch/share/", "nvidia/")):
                    archive.extract(name, out)
    for part in ("include", "lib", "share"):
        os.symlink(os.path.join("torch", part), os.path.join(out, part))


def make(target, cuda):
    parent = os.path.dirname(os.path.abspath(target))
    with tempfile.TemporaryDirectory(prefix=".libtorch-partial-", dir=parent) as work:
        wheels, out = os.path.join(work, "wheels"), os.path.join(work, "out")
        os.makedirs(wheels)
        os.makedirs(out)
        print("libtorch: downloading " + ("PyTorch with CUDA (about 3 GB)" if cuda else "PyTorch (about 540 MB)"), flush=True)
        if cuda:
            pip_download([TORCH], wheels, dependencies=True)
        else:
            pip_download([TORCH], wheels)
            pip_download(CUDA_RUNTIME, wheels)
        print("libtorch: unpacking", flush=True)
        (unpack_cuda if cuda else unpack_cpu)(wheels, out)
        with open(os.path.join(out, "build-version"), "w", encoding="ascii") as file:
            file.write(TORCH.split("==")[1] + ("+cuda\n" if cuda else "+cpu\n"))
        os.rename(out, target)


def main():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    target = os.path.join(root, ".libtorch")
    cuda = os.environ.get("CUDA", "") not in ("", "0")
    if os.path.exists(target):
        print(f"libtorch: {target} is there already; remove it to make it anew")
        return
    try:
        make(target, cuda)
    except (Failure, OSError, ValueError, zipfile.BadZipFile) as error:
        sys.exit(f"libtorch: {error}\n"
                 "Nothing was installed. Check that Python has pip and can reach its package index (set PIP_INDEX_URL or\n"
                 "PIP_FIND_LINKS for a mirror or a folder of wheels), that the disk has 4 GB free (12 GB with CUDA=1), and run\n"
                 "`make libtorch` again. Or bring your own libtorch 2.13: set LIBTORCH to its folder, or\n"
                 "LIBTORCH_USE_PYTORCH=1 to use the PyTorch 2.13 of the active Python environment.")
    print(f"libtorch: {target} is ready")


if __name__ == "__main__":
    main()
