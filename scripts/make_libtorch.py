#!/usr/bin/env python3
"""Makes .libtorch/, the libtorch that vigdet is built against, from the PyTorch wheel.

For Linux (x86-64 and ARM) the wheel is a CUDA build; without CUDA=1 its CUDA libraries are left out and libtorch.so is
replaced by an empty library that needs only the CPU ones. For macOS (ARM) it has the CPU and Metal and is taken as it
is. Uses pip to download, the standard library to unpack and the C++ compiler to link.

Everything is made in a folder .libtorch-partial-PID-* beside it and renamed at the end, so that .libtorch is whole or
absent. That folder goes away on errors, Ctrl-C and SIGTERM; what a killed process left is removed by the next one.
"""
import glob
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile

VERSION = "2.13.0"
TORCH = f"torch=={VERSION}"
# libtorch_cpu.so of the CUDA wheel is linked against these two, and looks for them beside itself.
CUDA_RUNTIME = ["nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"]
# Headers that CUDA's own include, and that the wheel of PyTorch does without: vigdet compiles against NCCL.
CUDA_HEADERS = ["nvidia-cuda-crt==13.0.88", "nvidia-cuda-cccl==13.0.85"]
LEFT_OUT = ("libtorch_cuda", "libtorch_python", "libtorch_nvshmem", "libc10_cuda", "libcaffe2_nvrtc", "libtorch.so")
PARTIAL = ".libtorch-partial-"


def linux(machine):
    # pip takes a tag as it is written, not all that are older than it; each of NVIDIA's wheels has another one.
    return [f"manylinux_2_{n}_{machine}" for n in range(28, 4, -1)] + [f"manylinux2014_{machine}"]


# By system and processor, as Python names them: the tags of the wheels that fit, for pip.
PLATFORMS = {
    ("Linux", "x86_64"): linux("x86_64"),
    ("Linux", "aarch64"): linux("aarch64"),
    ("Darwin", "arm64"): [f"macosx_{n}_0_arm64" for n in (14, 13, 12, 11)],
}
OWN = ("Or bring your own libtorch 2.13: set LIBTORCH to its folder, or LIBTORCH_USE_PYTORCH=1 to use the PyTorch 2.13\n"
       "of the active Python environment.")
RETRY = ("Check that Python has pip (PYTHON=... chooses another Python) and reaches its package index (PIP_INDEX_URL or\n"
         "PIP_FIND_LINKS name a mirror or a folder of wheels), and that the disk has 4 GB free (12 GB with CUDA=1); then\n"
         "run `make libtorch` again.")


class Failure(Exception):
    """What went wrong and what to do about it, in words for the person at the terminal."""


class Stopped(BaseException):
    """A signal asked the process to end."""


def run(command, what):
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise Failure(f"{what} failed (exit status {error.returncode}, its own message is above).\n{RETRY}") from error
    except OSError as error:
        raise Failure(f"{what} failed ({error}).\n{RETRY}") from error


def compiler():
    """The C++ compiler's command, tried before anything is downloaded: torch-sys needs one as well."""
    command = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(command[0]) is None:
        raise Failure(f"there is no C++ compiler `{command[0]}`. Install one (Debian and Ubuntu: apt install g++; Fedora:\n"
                      "dnf install gcc-c++), or name yours with CXX=..., and run `make libtorch` again.")
    return command


def here():
    """System and processor."""
    return platform.system(), platform.machine()


def is_mac():
    return here()[0] == "Darwin"


def pip_download(packages, folder, dependencies=False):
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--only-binary=:all:",
               "--python-version", "3.11"]
    if not sys.stderr.isatty():
        command.append("--quiet")
    for tag in PLATFORMS[here()]:
        command += ["--platform", tag]
    if not dependencies:
        command.append("--no-deps")
    run(command + ["--dest", folder] + packages, f"downloading {' '.join(packages)} with pip")


def unpack_cpu(wheels, out, cxx):
    wheel, = glob.glob(os.path.join(wheels, "torch-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            base = os.path.basename(name)
            wanted = name.startswith(("torch/include/", "torch/share/")) or (
                name.startswith("torch/lib/") and not base.startswith(LEFT_OUT))
            if wanted and base:
                archive.extract(name, out)
    unpack_licences(wheels, out)
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
    if not is_mac():
        link_empty_libtorch(lib, cxx)


def unpack_licences(wheels, out):
    """Whoever passes libtorch on passes its licences on, and those of NVIDIA's libraries beside it."""
    for wheel in glob.glob(os.path.join(wheels, "*.whl")):
        package = os.path.basename(wheel).split("-")[0]
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                info, found, inside = name.partition(".dist-info/licenses/")
                if not found or "/" in info or not os.path.basename(inside):
                    continue
                target = os.path.join(out, "licenses", package, *inside.split("/"))
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with archive.open(name) as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file)


def link_empty_libtorch(lib, cxx):
    """libtorch.so of the wheel needs libtorch_cuda.so; the name itself is all that is wanted from it."""
    source = os.path.join(lib, "empty.cpp")
    with open(source, "w", encoding="ascii") as file:
        file.write("// Nothing: libtorch.so only brings in libtorch_cpu and libc10.\n")
    run(cxx + ["-shared", "-fPIC", "-o", os.path.join(lib, "libtorch.so"), source,
               "-Wl,-soname,libtorch.so", "-Wl,--no-as-needed", "-L" + lib, "-ltorch_cpu", "-lc10", "-Wl,-rpath,$ORIGIN",
               "-Wl,--allow-shlib-undefined"],
        "linking libtorch.so with the C++ compiler (CXX=... chooses another)")
    os.remove(source)


def unpack_cuda(wheels, out):
    """Everything, in the wheel's own layout: the libraries find nvidia/ by ../../ of the folder that they are loaded from."""
    for wheel in glob.glob(os.path.join(wheels, "*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(("torch/include/", "torch/lib/", "torch/share/", "nvidia/")):
                    archive.extract(name, out)
    unpack_licences(wheels, out)
    for part in ("include", "lib", "share"):
        os.symlink(os.path.join("torch", part), os.path.join(out, part))


def remove_leftovers(parent):
    """Folders of processes that were killed before they could tidy up."""
    for folder in glob.glob(os.path.join(parent, PARTIAL + "*")):
        pid = re.match(r"(\d+)-", os.path.basename(folder)[len(PARTIAL):])
        if pid and not is_running(int(pid.group(1))):
            shutil.rmtree(folder, ignore_errors=True)


def is_running(pid):
    try:
        os.kill(pid, 0)  # Sends nothing.
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # Somebody else's.
        pass
    return True


def make(target, cuda):
    cxx = compiler()
    parent = os.path.dirname(target)
    remove_leftovers(parent)
    with tempfile.TemporaryDirectory(prefix=f"{PARTIAL}{os.getpid()}-", dir=parent) as work:
        wheels, out = os.path.join(work, "wheels"), os.path.join(work, "out")
        os.makedirs(wheels)
        os.makedirs(out)
        size = "110 MB" if is_mac() else "540 MB"
        print(f"libtorch: downloading PyTorch {VERSION} " + ("with CUDA (about 3 GB)" if cuda else f"(about {size})"),
              flush=True)
        if cuda:
            pip_download([TORCH], wheels, dependencies=True)
            pip_download(CUDA_HEADERS, wheels)
        else:
            pip_download([TORCH], wheels)
            if not is_mac():
                pip_download(CUDA_RUNTIME, wheels)
        print("libtorch: unpacking", flush=True)
        if cuda:
            unpack_cuda(wheels, out)
        else:
            unpack_cpu(wheels, out, cxx)
        with open(os.path.join(out, "build-version"), "w", encoding="ascii") as file:
            file.write(VERSION + ("+cuda\n" if cuda else "+cpu\n"))
        if os.path.exists(target):  # Another process was faster.
            return
        os.rename(out, target)


def check(target, cuda):
    """Whether .libtorch is there already and of the kind that is wanted."""
    if not os.path.exists(target):
        return False
    try:
        with open(os.path.join(target, "build-version"), encoding="ascii") as file:
            version, _, kind = file.read().strip().partition("+")
    except OSError:
        version, kind = "of unknown version", ""
    if version != VERSION:
        raise Failure(f"{target} is {version}, vigdet needs {VERSION}. Remove it and run `make libtorch` again.")
    if cuda and kind == "cpu":
        raise Failure(f"{target} is without CUDA. Remove it and run `CUDA=1 make libtorch` again.")
    return True


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop(number, _frame):
    for other in SIGNALS:  # A second one must not cut the tidying short.
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


def main():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    target = os.path.join(root, ".libtorch")
    cuda = os.environ.get("CUDA", "") not in ("", "0")
    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        if check(target, cuda):
            return
        if here() not in PLATFORMS:
            raise Failure(f"this script knows no PyTorch wheel for {' on '.join(here())}: only for Linux on x86-64 and\n"
                          "ARM (aarch64), and for macOS on ARM.")
        if cuda and is_mac():
            raise Failure("there is no CUDA for macOS: run `make libtorch` without CUDA=1.")
        make(target, cuda)
    except (Failure, OSError, ValueError, zipfile.BadZipFile) as error:
        sys.exit(f"libtorch: {error}\nNothing was installed. {OWN}")
    except Stopped as signalled:
        print("\nlibtorch: stopped; nothing was installed. Run `make libtorch` again to start over.", file=sys.stderr)
        sys.exit(128 + signalled.args[0])
    print(f"libtorch: {target} is ready")


if __name__ == "__main__":
    main()
