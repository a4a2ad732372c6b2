"""Small hard evaluation cases, and what pycocotools makes of them."""

import contextlib
import copy
import io
import random

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Areas on both sides of the ranges' borders, and on them.
SIDES = [1, 3, 7, 16, 31, 32, 33, 60, 95, 96, 97, 120]


def evaluate(
    truth, results, iou_type, max_dets=None, ious=None, use_cats=True, areas=None, image_ids=None, category_ids=None
):
    """The COCOeval object after summarize(), and its printed summary. Changes no argument."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(truth)
        gt.createIndex()
        dt = gt.loadRes(copy.deepcopy(results))
        ev = COCOeval(gt, dt, iou_type)
        if max_dets:
            ev.params.maxDets = list(max_dets)
        if ious:
            ev.params.iouThrs = np.array(ious)
        if areas:
            ev.params.areaRngLbl = [label for label, _, _ in areas]
            ev.params.areaRng = [[low, high] for _, low, high in areas]
        if image_ids is not None:
            ev.params.imgIds = list(image_ids)
        if category_ids is not None:
            ev.params.catIds = list(category_ids)
        ev.params.useCats = int(use_cats)
        ev.evaluate()
        ev.accumulate()
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        ev.summarize()
    return ev, text.getvalue()


def mean(values):
    """As summarize() takes it."""
    return float(np.mean(values[values > -1])) if (values > -1).any() else -1.0


def numbers(ev, text):
    """What a case is compared by. All but the twelve numbers are for the largest number of detections."""
    precision, recall = ev.eval["precision"][..., -1], ev.eval["recall"][..., -1]
    labels = ev.params.areaRngLbl
    # Without a range named all, its numbers are -1.
    everything = labels.index("all") if "all" in labels else len(labels)
    last = [(0, 0)] * 4
    p = np.pad(precision, last[:3] + [(0, 1)], constant_values=-1)[..., everything]
    r = np.pad(recall, last[:2] + [(0, 1)], constant_values=-1)[..., everything]
    classes = range(p.shape[2]) if ev.params.useCats else []
    return {
        "stats": [float(v) for v in ev.stats],
        "text": text.rstrip("\n"),
        "class_ap": [mean(p[:, :, k]) for k in classes],
        "class_ar": [mean(r[:, k]) for k in classes],
        "per_iou": [mean(t) for t in p],
        "area_ap": [mean(precision[..., a]) for a in range(len(labels))],
        "area_ar": [mean(recall[..., a]) for a in range(len(labels))],
    }


def box(rng, width, height, grid):
    w, h = rng.choice(SIDES), rng.choice(SIDES)
    if not grid:
        w, h = w + rng.uniform(-0.4, 0.4), h + rng.uniform(-0.4, 0.4)
    x, y = rng.uniform(-2, max(1, width - w)), rng.uniform(-2, max(1, height - h))
    if grid:
        x, y = float(int(x)), float(int(y))
    return [x, y, float(w), float(h)]


def polygon(rng, b):
    """A star-shaped polygon in a box, sometimes of several parts, sometimes beyond the image."""
    x, y, w, h = b
    parts = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        n = rng.randint(3, 9)
        cx, cy = x + w * rng.uniform(0.3, 0.7), y + h * rng.uniform(0.3, 0.7)
        angles = sorted(rng.uniform(0, 2 * np.pi) for _ in range(n))
        points = []
        for a in angles:
            r = rng.uniform(0.2, 0.6)
            points += [cx + w * r * float(np.cos(a)), cy + h * r * float(np.sin(a))]
        if rng.random() < 0.3:
            points = [float(round(v)) for v in points]
        parts.append(points)
    return parts


def segmentation(rng, b, image, kind):
    h, w = image["height"], image["width"]
    polygons = polygon(rng, b)
    if kind == "polygon":
        return polygons
    rle = mask_utils.merge(mask_utils.frPyObjects(polygons, h, w))
    if kind == "compressed":
        return {"size": [h, w], "counts": rle["counts"].decode()}
    flat = mask_utils.decode(rle).flatten(order="F")
    runs, value, length = [], 0, 0
    for pixel in flat:
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    return {"size": [h, w], "counts": [int(r) for r in runs + [length]]}


def jittered(rng, b):
    how = rng.random()
    if how < 0.25:
        return list(b)
    if how < 0.4:  # an overlap of exactly 1/2, 3/4, 0.6, ...
        return [b[0], b[1], b[2] * rng.choice([0.5, 0.55, 0.6, 0.75, 0.9, 2.0]), b[3]]
    s = rng.choice([0.02, 0.1, 0.3])
    return [v + rng.uniform(-s, s) * (b[2] + b[3]) / 2 for v in b[:2]] + [
        max(0.5, v * (1 + rng.uniform(-s, s))) for v in b[2:]
    ]


def area_ranges(rng):
    """COCO's ranges with other borders, some of them, or ranges with names of their own."""
    low, high = sorted(float(side**2) for side in rng.sample(SIDES, 2))
    coco = [["all", 0.0, 1e10], ["small", 0.0, low], ["medium", low, high], ["large", high, 1e10]]
    own = [["tiny", 0.0, 256.0], ["between", low, high], ["all", 0.0, 1e5]]
    return rng.choice([coco, coco, rng.sample(coco, 2), own, own[:1] + coco[:2], own[:2]])


def make(seed):
    """One case: {"type", "truth", "results", "max_dets", "ious", "use_cats", "areas", "image_ids", "category_ids"}."""
    rng = random.Random(seed)
    iou_type = rng.choice(["bbox", "bbox", "segm"])
    grid = rng.random() < 0.5
    image_ids = rng.sample([1, 2, 3, 7, 42, 139, 581929, 10**12], rng.randint(1, 6))
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": rng.randint(60, 260), "height": rng.randint(60, 260)}
        for i in image_ids
    ]
    categories = [{"id": i, "name": f"class {i}"} for i in rng.sample([0, 1, 2, 3, 17, 90], rng.randint(1, 4))]
    first_id = rng.choice([0, 1, 1, 1, 1000])
    annotations, results = [], []
    scores = [round(rng.random(), rng.choice([1, 1, 3, 17])) for _ in range(rng.randint(1, 6))] + [0, 1]
    crowding = rng.choice([0, 0.1, 0.4, 1]) if rng.random() < 0.5 else 0
    results_kind = rng.choice(["box", "mask", "both"] if iou_type == "segm" else ["box", "box", "mask", "both"])
    for image in images:
        for category in categories:
            objects = rng.choice([0, 0, 1, 1, 2, 3, 6])
            truths = []
            for _ in range(objects):
                b = box(rng, image["width"], image["height"], grid)
                if truths and rng.random() < 0.15:
                    b = list(truths[-1]["bbox"])
                crowd = int(rng.random() < crowding)
                area = b[2] * b[3] if rng.random() < 0.7 else float(rng.choice(SIDES) ** 2)
                a = {
                    "id": first_id + len(annotations),
                    "image_id": image["id"],
                    "category_id": category["id"],
                    "bbox": b,
                    "area": area,
                    "iscrowd": crowd,
                }
                if iou_type == "segm":
                    kind = "uncompressed" if crowd else rng.choice(["polygon", "polygon", "uncompressed", "compressed"])
                    a["segmentation"] = segmentation(rng, b, image, kind)
                if rng.random() < 0.1:
                    a["ignore"] = rng.randint(0, 1)
                annotations.append(a)
                truths.append(a)
            for _ in range(rng.choice([0, 0, 1, 2, 4, 9, 14])):
                near = rng.choice(truths) if truths and rng.random() < 0.75 else None
                b = jittered(rng, near["bbox"]) if near else box(rng, image["width"], image["height"], grid)
                r = {"image_id": image["id"], "category_id": category["id"], "score": rng.choice(scores)}
                if results_kind != "mask":
                    r["bbox"] = b
                if results_kind != "box":
                    if near and "segmentation" in near and rng.random() < 0.4:
                        s = near["segmentation"]
                        if isinstance(s, list):
                            s = mask_utils.merge(mask_utils.frPyObjects(s, image["height"], image["width"]))
                            s = {"size": s["size"], "counts": s["counts"].decode()}
                        elif isinstance(s["counts"], list):
                            s = mask_utils.frPyObjects(s, image["height"], image["width"])
                            s = {"size": s["size"], "counts": s["counts"].decode()}
                        r["segmentation"] = s
                    else:
                        # With a box beside it pycocotools reads masks of every kind: it needs no area of them.
                        kinds = ["compressed", "polygon", "uncompressed"] if results_kind == "both" else ["compressed"]
                        r["segmentation"] = segmentation(rng, b, image, rng.choice(kinds))
                    if rng.random() < 0.03:
                        # A mask of another size than its image matches nothing.
                        r["segmentation"] = segmentation(rng, b, {"height": 70, "width": 50}, "compressed")
                results.append(r)
    if rng.random() < 0.2:
        extra = {"image_id": images[0]["id"], "category_id": 555, "score": 0.5}
        b = [1.0, 1.0, 20.0, 20.0]
        if results_kind != "mask":
            extra["bbox"] = b
        if results_kind != "box":
            extra["segmentation"] = segmentation(rng, b, images[0], "compressed")
        results.insert(rng.randint(0, len(results)), extra)
    if iou_type == "bbox" and results_kind == "box" and annotations and rng.random() < 0.06:
        # Overlaps that are not numbers.
        for some in (annotations, results):
            for one in rng.sample(some, len(some) // 3):
                one["bbox"] = [0.0, 0.0, 1e200, 1e200]
    rng.shuffle(results)
    rng.shuffle(annotations)
    return {
        "seed": seed,
        "type": iou_type,
        "truth": {"images": images, "annotations": annotations, "categories": categories},
        "results": results,
        "max_dets": rng.choice([[1, 10, 100]] * 4 + [[1, 2, 3], [100, 5, 1], [1, 3, 100]]),
        "ious": rng.choice([None] * 5 + [[0.3, 0.5, 0.75], [0.5], [0.75, 0.99, 1.0]]),
        "use_cats": rng.random() < 0.85,
        "areas": area_ranges(rng) if rng.random() < 0.3 else None,
        "image_ids": rng.sample(image_ids + [5], rng.randint(1, len(image_ids))) if rng.random() < 0.2 else None,
        "category_ids": rng.sample([c["id"] for c in categories] + [555], 1) if rng.random() < 0.1 else None,
    }


def expected(case):
    """Adds pycocotools' numbers to a case."""
    names = ["max_dets", "ious", "use_cats", "areas", "image_ids", "category_ids"]
    parameters = {name: case[name] for name in names if name in case}
    ev, text = evaluate(case["truth"], case["results"], case["type"], **parameters)
    case |= numbers(ev, text)
    return case, ev
