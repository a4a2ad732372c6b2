"""Whether memory stays flat: the resident set of a program early and at its end.

    memory_flat.py train VIGDET DATA OUT    2,000 steps of mixed sizes with every augmentation
    memory_flat.py detect VIGDET WEIGHTS IMAGES OUT    20,000 images (links to those in IMAGES)

Prints megabytes after step 200 (image 2,000) and at the end, each the mean of the samples around, and fails above 5%.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

STEPS, IMAGES = 2000, 20000
CONFIG = {
    "model": {
        "backbone": {"name": "pvig_ti", "channels": [8, 8, 16, 16], "blocks": [1, 1, 1, 1], "drop_path": 0.3},
        "fpn": {"channels": 16}, "head": {"convs": 1, "channels": 16, "prior": 0.1}, "anchors": {"base": 2.0},
    },
    "data": {
        "size": [64, 128], "scale": [0.6, 1.6], "flip": 0.5, "flip_vertical": 0.5, "rotate": 0.5, "color": 0.2,
        "hue": 0.05, "crop": {"probability": 0.5}, "mosaic": 0.3, "mixup": 0.3, "workers": 1,
        "affine": {"probability": 0.5, "scale": [0.7, 1.4], "degrees": 10.0, "shear": 3.0},
    },
    "train": {"batch_size": 2, "micro_batch": 2, "epochs": 1000, "max_iters": STEPS, "lr": 0.001, "clip_norm": 1.0,
              "ema": 0.99, "threads": 1, "eval_every": 0},
    "checkpoint": {"every_iters": 100, "every_epochs": 0, "keep": 2},
}


def resident(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return None


def watch(command, done, early, end):
    """Samples the resident set around `early` and the `end` of what `done` counts."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    samples = []
    while process.poll() is None:
        try:
            samples.append((done(), resident(process.pid)))
        except (FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.2)
    assert process.returncode == 0, process.returncode
    samples = [(count, megabytes) for count, megabytes in samples if megabytes]
    width = 0.05 * end
    with open("memory.csv", "w") as file:
        file.writelines(f"{count},{megabytes:.1f}\n" for count, megabytes in samples)
    first = [megabytes for count, megabytes in samples if early <= count <= early + width]
    last = [megabytes for count, megabytes in samples if end - width <= count]
    first, last = sum(first) / len(first), sum(last) / len(last)
    print(f"after {early}: {first:.1f} MB, at the end: {last:.1f} MB, {100 * (last / first - 1):+.1f}%")
    return 0 if last <= 1.05 * first else 1


def train(vigdet, data, out):
    folder = pathlib.Path(out)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    log = folder / "run/log.jsonl"
    command = [vigdet, "train_det", "retinanet", "--config", str(folder / "config.json"), "--data", data,
               "--out", str(folder / "run"), "--device", "cpu"]
    return watch(command, lambda: log.read_text().count("\n") if log.exists() else 0, 200, STEPS)


def detect(vigdet, weights, images, out):
    folder = pathlib.Path(out)
    (folder / "images").mkdir(parents=True)
    found = sorted(pathlib.Path(images).resolve().iterdir())
    for i in range(IMAGES):
        os.symlink(found[i % len(found)], folder / "images" / f"{i:06}{found[i % len(found)].suffix}")
    command = [vigdet, "detect", str(folder / "images"), "--weights", weights, "--out", str(folder / "drawn"),
               "--device", "cpu"]
    drawn, removed = folder / "drawn", 0

    def done():
        nonlocal removed
        # They would fill the disk.
        for picture in drawn.glob("[0-9]*"):
            picture.unlink()
            removed += 1
        return removed

    return watch(command, done, 2000, IMAGES)


if __name__ == "__main__":
    sys.exit({"train": train, "detect": detect}[sys.argv[1]](*sys.argv[2:]))
