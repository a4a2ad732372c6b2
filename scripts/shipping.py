"""What the wheel and the archive have in common: programs, version, licences."""
import glob
import hashlib
import json
import os
import re
import subprocess

from elf import Elf, NotElf

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAMS = ("vigdet", "coco_eval")
# What every Linux with glibc has (PEP 600 counts on these too), and what of libtorch programs are linked against.
SYSTEM = re.compile(r"(lib(c|m|mvec|dl|rt|pthread|util|resolv|anl|z|gcc_s|stdc\+\+)|ld-linux-[\w-]+)\.so(\.\d+)*")
TORCH = re.compile(r"lib(torch|torch_cpu|c10)\.so")
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice|copyright|unlicense)", re.IGNORECASE)


class Failure(Exception):
    """What went wrong and what to do about it, in words for the person at the terminal."""


def version():
    """vigdet's version, from the workspace."""
    with open(os.path.join(ROOT, "Cargo.toml"), encoding="utf-8") as file:
        return re.search(r'\[workspace\.package\]\nversion = "([^"]+)"', file.read()).group(1)


def torch_release():
    """PyTorch's release without its last part, which does not change the interface: `2.13`."""
    with open(os.path.join(ROOT, "scripts", "make_libtorch.py"), encoding="utf-8") as file:
        return re.search(r'^VERSION = "(\d+\.\d+)\.', file.read(), re.MULTILINE).group(1)


def programs(folder):
    """The programs that cargo built into a folder, by name."""
    found = {}
    for name in PROGRAMS:
        path = os.path.join(folder, name)
        try:
            found[name] = Elf(path)
        except OSError as error:
            raise Failure(f"cannot read {path}: {error.strerror}; `make wheel` and `make dist` build it.") from error
        except NotElf as error:
            raise Failure(f"{error}; wheels and archives are made on Linux only.") from error
        for library in found[name].needed:
            if not SYSTEM.fullmatch(library) and not TORCH.fullmatch(library):
                raise Failure(f"{path} needs {library}, which not every machine has: build it against the libtorch of "
                              "`make libtorch` without CUDA. A GPU is used all the same where PyTorch brings one.")
    return found


def shipped_crates(machine):
    """The crates whose code is in the programs for a processor: name, version, licence and folder of each."""
    # As `make programs` builds them.
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--features", "vigdet/onnx",
               "--filter-platform", f"{machine}-unknown-linux-gnu"]
    try:
        said = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failure(f"cargo metadata failed ({error}): licences are collected with it.") from error
    metadata = json.loads(said)
    uses = {node["id"]: [dependency["pkg"] for dependency in node["deps"]
                         if any(kind["kind"] is None for kind in dependency["dep_kinds"])]
            for node in metadata["resolve"]["nodes"]}
    own = set(metadata["workspace_members"])
    found, open_ = set(), list(own)
    while open_:
        package = open_.pop()
        if package not in found:
            found.add(package)
            open_.extend(uses[package])
    crates = [package for package in metadata["packages"] if package["id"] in found - own]
    return sorted((crate["name"], crate["version"], crate["license"] or "its own licence",
                   os.path.dirname(crate["manifest_path"])) for crate in crates)


def third_party_licences(machine):
    """One text: every crate with its licence, then each licence's words once, with the crates that it is of."""
    lines, words = ["vigdet contains code of these crates.", ""], {}
    for name, number, licence, folder in shipped_crates(machine):
        lines.append(f"{name} {number}: {licence}")
        for path in sorted(glob.glob(os.path.join(folder, "*"))):
            if LICENCE_FILE.match(os.path.basename(path)) and os.path.isfile(path):
                with open(path, encoding="utf-8", errors="replace") as file:
                    text = file.read().strip()
                key = hashlib.sha256(" ".join(text.split()).encode()).digest()
                words.setdefault(key, (text, []))[1].append(f"{name} {number}")
    for text, crates in words.values():
        lines += ["", "-" * 100, "Of " + ", ".join(dict.fromkeys(crates)) + ":", "", text]
    return "\n".join(lines) + "\n"


def glibc(elves):
    """The oldest glibc that all programs and libraries run with, as numbers."""
    return max(elf.newest("GLIBC") for elf in elves)


def dotted(numbers):
    return ".".join(str(number) for number in numbers)
