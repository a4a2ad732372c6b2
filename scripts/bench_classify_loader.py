"""Measures the loader of classifiers beside torchvision's pipeline: images per second of a training epoch.

    pip install torch==2.13.0 torchvision==0.28.0 pillow
    python scripts/bench_classify_loader.py ../shared/datasets/coco-mini/train2017

takes the JPEGs of a folder, lays them out as class folders by links (in a temporary folder), and reads them in batches with two workers on
both sides: random resized crop to 224 pixels (bicubic), flip, RandAugment (two operations, magnitude 9), normalisation, random erasing.
torchvision's operations are those of its classification references (`RandAugment`, `RandomErasing(0.25)`); it carries out every operation that it
draws, timm's recipe, which vigdet follows, every second one. So vigdet is measured that way and with all of them (`all`); torchvision
with images from Pillow (`pil`) and with tensors from torchvision.io (`tensor`). Rounds of all variants alternate; the best of each counts.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time

import torch
import torchvision
from torchvision import transforms
from torchvision.transforms import InterpolationMode

CLASSES = 8


def lay_out(photographs, root):
    files = sorted(p for p in photographs.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))
    for number, file in enumerate(files):
        folder = root / "train" / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).symlink_to(file.resolve())
    return len(files)


def read_tensor(path):
    return torchvision.io.decode_image(torchvision.io.read_file(path), torchvision.io.ImageReadMode.RGB)


def dataset(root, size, kind):
    bicubic = InterpolationMode.BICUBIC
    as_tensor = [transforms.PILToTensor()] if kind == "pil" else []
    steps = [
        transforms.RandomResizedCrop(size, interpolation=bicubic, antialias=True),
        transforms.RandomHorizontalFlip(),
        # Affine maps of tensors are nearest or bilinear only.
        transforms.RandAugment(2, 9, interpolation=bicubic if kind == "pil" else InterpolationMode.BILINEAR, fill=[128.0] * 3),
        *as_tensor,
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
        transforms.RandomErasing(0.25, value="random"),
    ]
    loader = {} if kind == "pil" else {"loader": read_tensor}
    return torchvision.datasets.ImageFolder(root / "train", transforms.Compose(steps), **loader)


def torchvision_epoch(images, batch_size, workers):
    loader = torch.utils.data.DataLoader(images, batch_size, shuffle=True, num_workers=workers, persistent_workers=True)
    # The first pass starts the workers, which vigdet's figure leaves out too.
    for _ in range(2):
        count, start = 0, time.perf_counter()
        for batch, _ in loader:
            count += len(batch)
        seconds = time.perf_counter() - start
    return count / seconds


def bench_program():
    built = subprocess.run(
        ["cargo", "bench", "--bench", "loader", "--no-run", "--message-format=json"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    messages = (json.loads(line) for line in built.stdout.splitlines())
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "loader")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("photographs", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--program", help="the loader bench, if it is built already")
    options = parser.parse_args()
    program = options.program or bench_program()

    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        print(f"{lay_out(options.photographs, root)} photographs")

        def vigdet(kind):
            arguments = [str(root), str(options.size), str(options.batch_size), str(options.workers), kind]
            out = subprocess.run([program, "--classify", *arguments], check=True, stdout=subprocess.PIPE, text=True)
            result = json.loads(out.stdout)
            return result["images"] / result["seconds"]

        sets = {kind: dataset(root, options.size, kind) for kind in ("pil", "tensor")}

        def theirs(kind):
            return lambda: torchvision_epoch(sets[kind], options.batch_size, options.workers)

        variants = {
            "vigdet, timm's recipe": lambda: vigdet("plain"),
            "vigdet, with Mixup and CutMix": lambda: vigdet("mix"),
            "vigdet, all operations": lambda: vigdet("all"),
            "torchvision, pil": theirs("pil"),
            "torchvision, tensor": theirs("tensor"),
        }
        best = dict.fromkeys(variants, 0.0)
        for _ in range(options.rounds):
            for name, measure in variants.items():
                best[name] = max(best[name], measure())
    for name, value in best.items():
        print(f"{name:32} {value:7.1f} images/s")


if __name__ == "__main__":
    main()
