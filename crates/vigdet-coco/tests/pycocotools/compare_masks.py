#!/usr/bin/env python3
"""Compares the mask code with pycocotools' C code, bit for bit.

Compared are drawing, text form, union, intersection, area, box and overlap.

    python compare_masks.py --bin ../../../../target/debug/examples/masks [--cases 3000]
    python compare_masks.py --fixtures    (writes ../fixtures/masks.jsonl)

Needs pycocotools 2.0.11.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys

import numpy as np
from pycocotools import mask as mask_utils


# Polygons that frPyObjects raises at: it takes a first one of four numbers for a box, and then wants an array.
LONG = [1, 1, 9, 1, 9, 9]
REFUSED = [[], [[]], [[2.0]], [[2.0, 3.0]], [[2.0, 3.0]] * 4, [[2.0, 3.0]] * 5]
REFUSED += [[[2.0, 3.0, 10.0]], [[2.0, 3.0, 10.0, 8.0]]]
REFUSED += [[short, LONG] for short in ([], [2.0, 3.0], [2.0, 3.0, 10.0], [2.0, 3.0, 10.0, 8.0])]


def coordinate(rng, size, style):
    if style == "whole":
        return float(rng.randint(-3, size + 3))
    if style == "half":
        return rng.randint(-6, 2 * size + 6) / 2
    if style == "fifth":
        return rng.randint(-12, 5 * size + 12) / 5
    if style == "far":
        return rng.uniform(-20 * size, 20 * size)
    if style == "inside":
        return rng.uniform(0, size)
    return rng.uniform(-4, size + 4)


def polygon(rng, h, w):
    style = rng.choice(["whole", "half", "fifth", "far", "inside", "near", "near"])
    n = rng.choice([1, 2, 3, 3, 4, 5, 8, 30]) if rng.random() < 0.5 else rng.randint(3, 6)
    points = [[coordinate(rng, w, style), coordinate(rng, h, style)] for _ in range(n)]
    if n < 3:
        points = points * 3
    for _ in range(rng.choice([0, 0, 0, 1, 3])):  # repeated points, upright and level sides
        i = rng.randrange(len(points))
        j = rng.randrange(len(points))
        points[i] = rng.choice([list(points[j]), [points[j][0], points[i][1]], [points[i][0], points[j][1]]])
    return [v for p in points for v in p]


def pixels(rng, h, w):
    p = np.zeros((h, w), np.uint8)
    kind = rng.random()
    if kind < 0.3:
        p[:] = np.array([rng.random() < 0.5 for _ in range(h * w)]).reshape(h, w)
    elif kind < 0.9:
        y0, y1 = sorted(rng.choices(range(h + 1), k=2))
        x0, x1 = sorted(rng.choices(range(w + 1), k=2))
        p[y0:y1, x0:x1] = 1
    elif kind < 0.95:
        p[:] = 1
    return p


def uncompressed(rle):
    flat = mask_utils.decode(rle).flatten(order="F").tolist()
    runs, value, length = [], 0, 0
    for pixel in flat:
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    return runs + [length]


def make(seed):
    """A line of input, and what pycocotools makes of it."""
    rng = random.Random(seed)
    h, w = rng.choice([(rng.randint(1, 9), rng.randint(1, 9)), (rng.randint(1, 80), rng.randint(1, 80)), (480, 640)])
    if h == 480 and rng.random() < 0.8:
        h, w = 31, 47
    given, rles = [], []
    for _ in range(rng.randint(1, 4)):
        kind = rng.choice(["polygon", "polygon", "polygon", "compressed", "runs"])
        if kind == "polygon":
            polygons = [polygon(rng, h, w) for _ in range(rng.choice([1, 1, 2, 3]))]
            if seed % 3 == 0:  # only the first has to be long
                more = random.Random(seed)
                counts = more.choices(range(6), k=2)
                polygons += [[coordinate(more, min(h, w), "inside") for _ in range(n)] for n in counts]
            rles.append(mask_utils.merge(mask_utils.frPyObjects(polygons, h, w)))
            given.append(polygons)
            continue
        rle = mask_utils.encode(np.asfortranarray(pixels(rng, h, w)))
        runs = uncompressed(rle)
        if rng.random() < 0.2 and len(runs) > 1:  # a run of nothing in the middle
            i = rng.randrange(1, len(runs))
            cut = rng.randint(0, runs[i])
            runs = runs[:i] + [cut, 0, runs[i] - cut] + runs[i + 1 :]
            rle = mask_utils.frPyObjects({"size": [h, w], "counts": runs}, h, w)
        rles.append(rle)
        counts = runs if kind == "runs" else rle["counts"].decode()
        given.append({"size": [h, w], "counts": counts})

    def text(rle):
        return {"size": list(rle["size"]), "counts": rle["counts"].decode()}

    expected = {
        "masks": [text(r) for r in rles],
        "area": [int(a) for a in mask_utils.area(rles)],
        "bbox": mask_utils.toBbox(rles).tolist(),
        "union": text(mask_utils.merge(rles)),
        "intersection": text(mask_utils.merge(rles, 1)),
        "iou": mask_utils.iou(rles[:1], rles, [0] * len(rles))[0].tolist(),
        "iou_crowd": mask_utils.iou(rles[:1], rles, [1] * len(rles))[0].tolist(),
        "recoded": [text(mask_utils.encode(np.asfortranarray(mask_utils.decode(r)))) for r in rles],
    }
    return {"size": [h, w], "masks": given}, expected


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin")
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fixtures", action="store_true")
    a = parser.parse_args()
    if a.fixtures:
        lines = []
        for seed in range(10**6, 10**6 + 2000):
            given, expected = make(seed)
            line = json.dumps([given, expected], separators=(",", ":"))
            if len(line) < 1500:
                lines.append(line)
        path = pathlib.Path(__file__).parent.parent / "fixtures" / "masks.jsonl"
        path.write_text("\n".join(lines[:300]) + "\n")
        return
    made = [make(seed) for seed in range(a.seed, a.seed + a.cases)]
    text = "".join(json.dumps(given) + "\n" for given, _ in made)
    done = subprocess.run([a.bin], input=text, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    outputs = done.stdout.splitlines()
    assert len(outputs) == len(made)
    for seed, (output, (given, expected)) in enumerate(zip(outputs, made), a.seed):
        ours = json.loads(output)
        for key, value in expected.items():
            # NaN, which is not equal to itself, is null in JSON.
            value = json.loads(json.dumps(value), parse_constant=lambda _: None)
            if ours[key] != value:
                shown = [str(v)[:2000] for v in (json.dumps(given), ours[key], value)]
                sys.exit("case {}: {}\n{}\nours        {}\npycocotools {}".format(seed, key, *shown))
    for segmentation in REFUSED:
        try:
            mask_utils.frPyObjects(segmentation, 20, 30)
            sys.exit(f"pycocotools accepts {segmentation}")
        except Exception:  # of several kinds
            pass
        line = json.dumps({"size": [20, 30], "masks": [segmentation]})
        if not subprocess.run([a.bin], input=line, capture_output=True, text=True).returncode:
            sys.exit(f"{segmentation} is not refused")
    print(f"{len(made)} cases agree bit for bit ({sum(len(g['masks']) for g, _ in made)} masks)")


if __name__ == "__main__":
    main()
