#!/usr/bin/env python3
"""Makes an archive with vigdet's programs and the libraries of libtorch that they need, for machines without Python:
`make_dist.py FOLDER_OF_PROGRAMS [OUT]`.

`bin/` has the programs, `lib/` their libraries, found by following what each is linked against. Libraries of the system
(glibc, libstdc++) stay out. Uses the standard library alone.
"""
import os
import sys
import tarfile
import tempfile

from elf import Elf
from shipping import ROOT, SYSTEM, Failure, dotted, glibc, programs, third_party_licences, torch_release, version

RUNPATH = "$ORIGIN/../lib"

README = """\
vigdet {version}: object detection with Vision GNN backbones, for Linux on {machine}.

    bin/vigdet --help
    bin/vigdet detect --weights best.safetensors photo.jpg --out seen
    bin/vigdet train-det retinanet --data my_data --config retinanet_pvig_n_small --out runs/mine

Keep bin/ and lib/ beside each other; a link to bin/vigdet from a folder of your PATH works.

Needs glibc {glibc} or newer and libstdc++ with GLIBCXX_{libstdcxx} or newer (the package libstdc++6 or libstdc++), and
nothing else: no Python, no compiler, no GPU. lib/ is libtorch {torch} for CPUs. For a GPU take the Python wheel.

More speed on few cores: GOMP_SPINCOUNT=10000 in the environment lets libtorch's threads sleep sooner between their
jobs, and vigdet's own kernels have the cores meanwhile.

Licences: vigdet is MIT or Apache 2.0, as you like; licenses/ has these, those of the crates inside (THIRD-PARTY.txt),
and those of libtorch and of NVIDIA's two libraries that it is linked against (libtorch/).
"""


def libraries(program):
    """The libraries that a program brings in beside the system's, by name."""
    folder = program.runpath[0] if program.runpath else ""
    found, open_ = {}, [program]
    while open_:
        for name in open_.pop().needed:
            if SYSTEM.fullmatch(name) or name in found:
                continue
            path = os.path.join(folder, name)
            if not os.path.isfile(path):
                raise Failure(f"there is no {name} in {folder}, libtorch's folder: build against the libtorch of "
                              "`make libtorch` without CUDA.")
            found[name] = Elf(path)
            open_.append(found[name])
    return found


def licences(folder):
    """The licences of libtorch, beside its libraries."""
    path = os.path.join(os.path.dirname(folder), "licenses")
    if not os.path.isdir(path):
        raise Failure(f"there is no {path} with libtorch's licences, and without them it may not be passed on: remove "
                      f"{os.path.dirname(folder)} and run `make libtorch` again.")
    return path


def fill(work, found, shared):
    """Lays out the archive's folder."""
    program = found["vigdet"]
    for name, elf in found.items():
        path = os.path.join(work, "bin", name)
        with open(path, "wb") as file:
            file.write(elf.with_runpath([RUNPATH]) if elf.runpath else elf.data)
        os.chmod(path, 0o755)
    elves = [*found.values(), *shared.values()]
    newest = max(elf.newest("GLIBCXX") for elf in elves)
    with open(os.path.join(work, "README.txt"), "w", encoding="utf-8") as file:
        file.write(README.format(version=version(), machine=program.machine, torch=torch_release(),
                                 glibc=dotted(glibc(elves)), libstdcxx=dotted(newest)))
    with open(os.path.join(work, "licenses", "THIRD-PARTY.txt"), "w", encoding="utf-8") as file:
        file.write(third_party_licences(program.machine))


def make(folder, out):
    found = programs(folder)
    shared = libraries(found["vigdet"])
    torch_licences = licences(found["vigdet"].runpath[0])
    name = f"vigdet-{version()}-linux-{found['vigdet'].machine}"
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, name + ".tar.gz")
    with tempfile.TemporaryDirectory(prefix=".dist-", dir=out) as work:
        for part in ("bin", "licenses"):
            os.mkdir(os.path.join(work, part))
        fill(work, found, shared)
        part = os.path.join(work, "archive")
        with tarfile.open(part, "w:gz", compresslevel=6) as archive:
            def add(source, target):
                archive.add(source, f"{name}/{target}", filter=owned_by_root)
            for inside in ("README.txt", "bin", "licenses"):
                add(os.path.join(work, inside), inside)
            for library, elf in sorted(shared.items()):
                add(os.path.realpath(elf.path), f"lib/{library}")
            for licence in ("LICENSE-MIT", "LICENSE-APACHE"):
                add(os.path.join(ROOT, licence), f"licenses/{licence}")
            add(torch_licences, "licenses/libtorch")
        os.replace(part, path)
    return path, [*found.values(), *shared.values()]


def owned_by_root(entry):
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    return entry


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: make_dist.py FOLDER_OF_PROGRAMS [OUT]")
    try:
        path, elves = make(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else os.path.join(ROOT, "dist"))
    except (Failure, OSError, ValueError) as error:
        sys.exit(f"dist: {error}")
    for elf in elves:
        needs = dotted(elf.newest("GLIBC"))
        print(f"dist: {len(elf.data) / 1e6:6.1f} MB  glibc {needs:5} {os.path.basename(elf.path)}")
    unpacked = sum(len(elf.data) for elf in elves) / 1e6
    print(f"dist: {path}: {os.path.getsize(path) / 1e6:.0f} MB, {unpacked:.0f} MB unpacked, needs glibc "
          f"{dotted(glibc(elves))}")


if __name__ == "__main__":
    main()
