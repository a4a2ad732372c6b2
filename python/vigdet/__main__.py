"""Starts the programs of this package, with PyTorch's libraries.

The programs lie in `bin/` and look for libtorch in `../../torch/lib`, where the package `torch` lies in the same
site-packages. Where it lies elsewhere, the loader is told.
"""
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# PyTorch's release that the programs were linked against; make_wheel.py writes it.
TORCH = "TORCH_RELEASE"
LOADER_PATH = "LD_LIBRARY_PATH"


def torch_libraries():
    """The folder of libtorch, found without importing torch, which takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"vigdet: this Python has no torch: pip install 'torch=={TORCH}.*'")
    version = importlib.metadata.version("torch")
    if not version.startswith(TORCH + "."):
        sys.exit(f"vigdet: this Python has torch {version}, vigdet needs {TORCH}: pip install 'torch=={TORCH}.*'")
    return Path(next(iter(spec.submodule_search_locations)), "lib").resolve()


def start(program):
    """Becomes the program: same process, same arguments, standard streams and exit code."""
    if program == "vigdet":
        libraries = torch_libraries()
        if libraries != HERE.parent / "torch" / "lib":
            folders = [str(libraries)] + os.environ.get(LOADER_PATH, "").split(os.pathsep)
            os.environ[LOADER_PATH] = os.pathsep.join(folder for folder in folders if folder)
        # How long libtorch's threads spin before they sleep: the default keeps the cores from vigdet's own kernels.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    path = HERE / "bin" / program
    try:
        os.execv(path, [program, *sys.argv[1:]])
    except OSError as error:
        sys.exit(f"{program}: cannot start {path}: {error.strerror}")


def main():
    """The command `vigdet`."""
    start("vigdet")


def coco_eval():
    """The command `coco_eval`, which needs no libtorch."""
    start("coco_eval")


if __name__ == "__main__":
    main()
