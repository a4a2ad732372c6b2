#!/usr/bin/env python3
"""Makes a Python wheel with vigdet's programs inside: `make_wheel.py FOLDER_OF_PROGRAMS [OUT]`.

The wheel has no Python code to speak of: a launcher that starts the programs. It depends on PyTorch of the release that
they were linked against, CPU or CUDA, and takes libtorch from there. Uses the standard library alone.

The platform tag says how old a Linux may be (PEP 600): it is the newest symbol version of glibc and of libstdc++ that
the programs need.
"""
import base64
import hashlib
import os
import sys
import zipfile

from shipping import ROOT, Failure, dotted, glibc, programs, third_party_licences, torch_release, version

# Linux distributions with this glibc (minor version) have at least this libstdc++: PEP 600's practice, as auditwheel's
# policies record it.
LIBSTDCXX = {17: (3, 4, 19), 24: (3, 4, 22), 27: (3, 4, 24), 28: (3, 4, 24), 31: (3, 4, 28), 34: (3, 4, 29),
             35: (3, 4, 30), 36: (3, 4, 30), 37: (3, 4, 30), 38: (3, 4, 30), 39: (3, 4, 33)}
# PyTorch's own wheels need this much.
TORCH_GLIBC = 28
RUNPATH = "$ORIGIN/../../torch/lib"
# Files of the checkout beside the programs, by their name in the package.
BESIDE = {"get_pretrained.py": "scripts/get_pretrained.py", "catalogue.json": "src/weights/catalogue.json"}
EPOCH = (1980, 1, 1, 0, 0, 0)

METADATA = """\
Metadata-Version: 2.1
Name: vigdet
Version: {version}
Summary: Object detection with Vision GNN backbones, in Rust
License: MIT OR Apache-2.0
Requires-Python: >=3.10
Requires-Dist: torch=={torch}.*
Description-Content-Type: text/markdown

{readme}"""

WHEEL = """\
Wheel-Version: 1.0
Generator: make_wheel.py
Root-Is-Purelib: false
Tag: py3-none-{platform}
"""

ENTRY_POINTS = """\
[console_scripts]
vigdet = vigdet.__main__:main
coco_eval = vigdet.__main__:coco_eval
"""


def platform(elves):
    """The platform tag: the oldest distributions that have all that the programs need."""
    major, minor = glibc(elves)[:2]
    if major != 2:
        raise Failure(f"glibc {major} is not known here.")
    minor, needed = max(minor, TORCH_GLIBC), max(elf.newest("GLIBCXX") for elf in elves)
    while max((have for old, have in LIBSTDCXX.items() if old <= minor), default=()) < needed:
        minor += 1
        if minor > max(LIBSTDCXX):
            raise Failure(f"no distribution known here has GLIBCXX_{dotted(needed)}.")
    return f"manylinux_2_{minor}_{elves[0].machine}"


class Wheel:
    """A wheel being written; its RECORD comes last."""

    def __init__(self, path, name):
        self.archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        self.info = name + ".dist-info"
        self.record = []

    def add(self, name, data, executable=False):
        entry = zipfile.ZipInfo(name, EPOCH)
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = (0o100755 if executable else 0o100644) << 16
        data = data.encode() if isinstance(data, str) else data
        self.archive.writestr(entry, data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        self.record.append(f"{name},sha256={digest},{len(data)}")

    def close(self):
        name = f"{self.info}/RECORD"
        self.record.append(f"{name},,")
        self.archive.writestr(zipfile.ZipInfo(name, EPOCH), "\n".join(self.record) + "\n")
        self.archive.close()


def read(*parts):
    with open(os.path.join(ROOT, *parts), encoding="utf-8") as file:
        return file.read()


def make(folder, out):
    found = programs(folder)
    tag, number, torch = platform(list(found.values())), version(), torch_release()
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, f"vigdet-{number}-py3-none-{tag}.whl")
    part = path + ".part"
    wheel = Wheel(part, f"vigdet-{number}")
    wheel.add("vigdet/__init__.py", read("python", "vigdet", "__init__.py"))
    wheel.add("vigdet/__main__.py", read("python", "vigdet", "__main__.py").replace("TORCH_RELEASE", torch))
    for name, source in BESIDE.items():
        wheel.add(f"vigdet/{name}", read(source))
    for name, elf in found.items():
        data = elf.with_runpath([RUNPATH]) if elf.runpath else elf.data
        wheel.add(f"vigdet/bin/{name}", data, executable=True)
    for name in ("LICENSE-MIT", "LICENSE-APACHE"):
        wheel.add(f"{wheel.info}/licenses/{name}", read(name))
    wheel.add(f"{wheel.info}/licenses/THIRD-PARTY.txt", third_party_licences(found["vigdet"].machine))
    readme = read("docs", "install.md")
    wheel.add(f"{wheel.info}/METADATA", METADATA.format(version=number, torch=torch, readme=readme))
    wheel.add(f"{wheel.info}/WHEEL", WHEEL.format(platform=tag))
    wheel.add(f"{wheel.info}/entry_points.txt", ENTRY_POINTS)
    wheel.close()
    os.replace(part, path)
    return path


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: make_wheel.py FOLDER_OF_PROGRAMS [OUT]")
    try:
        path = make(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else os.path.join(ROOT, "dist"))
    except (Failure, OSError, ValueError) as error:
        sys.exit(f"wheel: {error}")
    print(f"wheel: {path} ({os.path.getsize(path) / 1e6:.0f} MB); pip install {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
