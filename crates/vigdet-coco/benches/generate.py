#!/usr/bin/env python3
"""Writes a ground truth and results of COCO val2017's size: gt.json, bbox.json and segm.json.

    python generate.py FOLDER [--images 5000] [--objects 37000] [--detections 500000] [--no-masks]

Needs numpy and, for the masks, pycocotools. The same files for the same arguments.
"""

import argparse
import json
import pathlib

import numpy as np


def outline(rng, box):
    """A bumpy closed outline inside a box, 12 to 40 points."""
    x, y, w, h = box
    n = int(rng.integers(12, 41))
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    radius = 0.5 * (0.8 + 0.2 * rng.random(n))
    points = np.stack([x + w * (0.5 + radius * np.cos(angle)), y + h * (0.5 + radius * np.sin(angle))], 1)
    return [round(v, 2) for v in points.flatten().tolist()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=37000)
    parser.add_argument("--detections", type=int, default=500_000)
    parser.add_argument("--no-masks", action="store_true")
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)

    ids = np.sort(rng.choice(580_000, a.images, replace=False) + 1).tolist()
    images = [
        {"id": i, "file_name": f"{i:012}.jpg", "width": 640, "height": int(rng.choice([427, 480, 428]))} for i in ids
    ]
    # COCO's 80 ids have gaps; a few classes hold most objects.
    classes = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    share = 1 / np.arange(1, 81) ** 0.9
    share /= share.sum()

    annotations = []
    of_image = rng.integers(0, a.images, a.objects)
    for n in range(a.objects):
        image = images[of_image[n]]
        side = float(np.exp(rng.uniform(np.log(8), np.log(300))))
        w = min(side * float(rng.uniform(0.6, 1.6)), image["width"] * 0.9)
        h = min(side * side / w, image["height"] * 0.9)
        box = [rng.uniform(0, image["width"] - w), rng.uniform(0, image["height"] - h), w, h]
        box = [round(float(v), 2) for v in box]
        annotations.append(
            {
                "id": n + 1,
                "image_id": image["id"],
                "category_id": int(rng.choice(classes, p=share)),
                "bbox": box,
                "area": round(box[2] * box[3] * 0.7, 4),
                "iscrowd": int(rng.random() < 0.012),
                "segmentation": [outline(rng, box)],
            }
        )
    categories = [{"id": c, "name": f"class {c}"} for c in classes]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (a.folder / "gt.json").write_text(json.dumps(truth))

    # A fifth are near an object, the rest background, as in the low-scoring tail of a detector's results.
    boxes, masks = [], []
    if not a.no_masks:
        from pycocotools import mask as mask_utils
    for _ in range(a.detections):
        if rng.random() < 0.2:
            near = annotations[int(rng.integers(a.objects))]
            image = images[of_image[near["id"] - 1]]
            shift = rng.normal(0, 0.08, 4)
            x, y, w, h = near["bbox"]
            box = [x + shift[0] * w, y + shift[1] * h, w * np.exp(shift[2]), h * np.exp(shift[3])]
            category, score = near["category_id"], float(rng.beta(3, 2))
            if rng.random() < 0.1:
                category = int(rng.choice(classes, p=share))
        else:
            image = images[int(rng.integers(a.images))]
            w, h = np.exp(rng.uniform(np.log(8), np.log(300), 2))
            box = [rng.uniform(0, 600), rng.uniform(0, 400), w, h]
            category, score = int(rng.choice(classes, p=share)), float(rng.beta(1, 12))
        box = [round(float(v), 3) for v in box]
        result = {"image_id": image["id"], "category_id": category, "bbox": box, "score": round(score, 6)}
        boxes.append(result)
        if not a.no_masks:
            size = image["height"], image["width"]
            rle = mask_utils.frPyObjects([outline(rng, box)], *size)[0]
            mask = {k: v for k, v in result.items() if k != "bbox"}
            masks.append(mask | {"segmentation": {"size": list(size), "counts": rle["counts"].decode()}})
    (a.folder / "bbox.json").write_text(json.dumps(boxes))
    if masks:
        (a.folder / "segm.json").write_text(json.dumps(masks))


if __name__ == "__main__":
    main()
