"""Measures vigdet's loader beside torchvision's detection pipeline: images per second of a training epoch.

    pip install torch==2.13.0 torchvision==0.28.0 pycocotools==2.0.11 pillow
    python scripts/bench_loader.py ../shared/datasets/coco-mini

Both read the same JPEG files, flip at random, resize the shorter side to 800 (the longer at most 1333), normalise and pad, in batches of two,
with two workers. torchvision: the COCO set of its detection references (boxes only, no masks), its GeneralizedRCNNTransform, and
PyTorch's DataLoader; the transform runs in the workers (`workers`) or where it is in torchvision's models, in the main process
(`main`); images are read by Pillow as in the references, or by torchvision.io (`io`). Rounds of all variants alternate; the best of each counts.
"""

import argparse
import json
import pathlib
import subprocess
import time

import torch
import torchvision
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import functional as F

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Coco(torchvision.datasets.CocoDetection):
    """The references' CocoDetection with ConvertCocoPolysToMask and flip, without masks."""

    def __init__(self, root, reader):
        super().__init__(root / "train2017", root / "annotations/instances_train2017.json")
        self.reader = reader
        self.ids = [i for i in self.ids if self.coco.getAnnIds(imgIds=i, iscrowd=False)]

    def __getitem__(self, index):
        image_id = self.ids[index]
        path = f"{self.root}/{self.coco.loadImgs(image_id)[0]['file_name']}"
        if self.reader == "io":
            image = torchvision.io.decode_image(torchvision.io.read_file(path), torchvision.io.ImageReadMode.RGB)
        else:
            image = F.pil_to_tensor(Image.open(path).convert("RGB"))
        image = image.float() / 255
        height, width = image.shape[-2:]
        objects = [a for a in self.coco.loadAnns(self.coco.getAnnIds(image_id)) if a["iscrowd"] == 0]
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        labels = torch.tensor([a["category_id"] for a in objects])
        keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
        boxes, labels = boxes[keep], labels[keep]
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        return image, {"boxes": boxes, "labels": labels}


class Collate:
    def __init__(self, size, in_worker):
        self.transform = GeneralizedRCNNTransform(*size, MEAN, STD)
        self.in_worker = in_worker

    def __call__(self, items):
        images, targets = zip(*items)
        if self.in_worker:
            batch, targets = self.transform(images, targets)
            return batch.tensors, batch.image_sizes, targets
        return images, targets


def grouped_batches(dataset, batch_size):
    """Two groups by aspect, as both sides do it."""
    groups = {False: [], True: []}
    for index in torch.randperm(len(dataset)).tolist():
        info = dataset.coco.loadImgs(dataset.ids[index])[0]
        group = groups[info["height"] > info["width"]]
        group.append(index)
        if len(group) == batch_size:
            yield list(group)
            group.clear()
    left = groups[False] + groups[True]
    yield from (left[i : i + batch_size] for i in range(0, len(left), batch_size))


def torchvision_epoch(dataset, size, batch_size, workers, in_worker):
    collate = Collate(size, in_worker)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=list(grouped_batches(dataset, batch_size)),
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=True,
    )
    # The first pass starts the workers, which vigdet's figure leaves out too.
    for _ in range(2):
        images, start = 0, time.perf_counter()
        for batch in loader:
            if in_worker:
                images += len(batch[0])
            else:
                images += len(collate.transform(*batch)[0].tensors)
        seconds = time.perf_counter() - start
    return images / seconds


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
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1333])
    parser.add_argument("--program", help="the loader bench, if it is built already")
    options = parser.parse_args()
    program = options.program or bench_program()
    torch.set_num_threads(options.workers)

    def vigdet(kind):
        size = ",".join(map(str, options.size))
        arguments = [str(options.data), size, kind, str(options.batch_size), str(options.workers)]
        out = subprocess.run([program, "--epoch", *arguments], check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(out.stdout)
        return result["images"] / result["seconds"]

    sets = {reader: Coco(options.data, reader) for reader in ("pil", "io")}

    def theirs(reader, place):
        epoch = (sets[reader], options.size, options.batch_size, options.workers, place == "workers")
        return lambda: torchvision_epoch(*epoch)

    variants = {
        "vigdet, bilinear (torchvision's)": lambda: vigdet("bilinear"),
        "vigdet, antialias (default)": lambda: vigdet("antialias"),
        "torchvision, pil, workers": theirs("pil", "workers"),
        "torchvision, pil, main": theirs("pil", "main"),
        "torchvision, io, workers": theirs("io", "workers"),
        "torchvision, io, main": theirs("io", "main"),
    }
    best = dict.fromkeys(variants, 0.0)
    for _ in range(options.rounds):
        for name, measure in variants.items():
            best[name] = max(best[name], measure())
    for name, value in best.items():
        print(f"{name:34} {value:7.1f} images/s")


if __name__ == "__main__":
    main()
