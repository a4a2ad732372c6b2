#!/usr/bin/env python3
"""Compares coco_eval with pycocotools on real data and on generated cases.

    python compare.py --bin ../../../../target/debug/coco_eval [--data ../shared/datasets] [--cases 2000]

Needs pycocotools 2.0.11 and the example `arrays` beside the program (cargo build --bins --examples). Every one of the
twelve numbers must agree to 1e-12, with them those per IoU, per area and per class, and the whole arrays of precision,
recall and scores that the library gives. The printed lines must be the same.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import numpy as np

import cases

TOLERANCE = 1e-12


def call(case, command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{case.get('name', case.get('seed'))}: {done.stderr}")
    return done.stdout


def of_program(binary, folder, case):
    """The file of numbers and the printed lines of coco_eval."""
    gt, dt, out = folder / "gt.json", folder / "dt.json", folder / "out.json"
    command = [binary, "--gt", gt, "--dt", dt, "--type", case["type"], "--json", out]
    if case.get("max_dets"):
        command += ["--max-dets", ",".join(map(str, case["max_dets"]))]
    if case.get("ious"):
        command += ["--iou", ",".join(map(repr, case["ious"]))]
    if not case.get("use_cats", True):
        command += ["--class-agnostic"]
    for label, low, high in case.get("areas") or []:
        command += ["--area", f"{label}:{low!r}:{high!r}"]
    # Ranges with names of their own have lines of their own, after the twelve.
    lines = "\n".join(call(case, command).splitlines()[:12])
    return json.loads(out.read_text()), lines


def of_library(binary, folder, case):
    """The arrays of the library."""
    names = ["type", "ious", "areas", "max_dets", "use_cats", "image_ids", "category_ids"]
    options = json.dumps({name: case[name] for name in names if name in case})
    arrays = binary.parent / "examples" / "arrays"
    return json.loads(call(case, [arrays, folder / "gt.json", folder / "dt.json", options]))


def difference(ours, theirs):
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max(initial=0))


def check(binary, folder, case):
    """Adds pycocotools' numbers to a case. Gives the largest difference, and how many numbers were compared.

    Stops at a case that differs.
    """
    case, ev = cases.expected(case)
    (folder / "gt.json").write_text(json.dumps(case["truth"]))
    (folder / "dt.json").write_text(json.dumps(case["results"]))
    arrays = of_library(binary, folder, case)
    pairs = {name: (arrays[name], ev.eval[name].flatten()) for name in ["precision", "recall", "scores"]}
    pairs["shape"] = (arrays["shape"], ev.eval["precision"].shape)
    text = case["text"]
    # The program has no list of images or categories.
    if case.get("image_ids") is None and case.get("category_ids") is None:
        ours, text = of_program(binary, folder, case)
        classes = sorted(ours["per_class"], key=lambda c: c["category_id"])
        pairs |= {
            "stats": (ours["stats"], case["stats"]),
            "class_ap": ([c["ap"] for c in classes], case["class_ap"]),
            "class_ar": ([c["ar"] for c in classes], case["class_ar"]),
            "per_iou": ([i["ap"] for i in ours["per_iou"]], case["per_iou"]),
            "area_ap": ([a["ap"] for a in ours["per_area"]], case["area_ap"]),
            "area_ar": ([a["ar"] for a in ours["per_area"]], case["area_ar"]),
        }
    differences = {name: difference(*pair) for name, pair in pairs.items()}
    worst = max(differences.values())
    name = case.get("name", f"case {case.get('seed')}")
    if not worst <= TOLERANCE or text != case["text"]:
        sys.exit(f"{name} ({case['type']}) differs: {differences}\nours:\n{text}\npycocotools:\n{case['text']}")
    return worst, sum(len(theirs) for _, theirs in pairs.values())


def perturbed(truth, rng, masks):
    """Results near the ground truth: moved, rescaled, doubled, missed, of another class, with scores that tie."""
    ids = [c["id"] for c in truth["categories"]]
    sizes = {i["id"]: i for i in truth["images"]}
    results = []
    for a in truth["annotations"]:
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            r = {"image_id": a["image_id"], "category_id": a["category_id"], "score": round(rng.random(), 2)}
            if rng.random() < 0.1:
                r["category_id"] = rng.choice(ids)
            b = cases.jittered(rng, a["bbox"])
            if masks:
                image = sizes[a["image_id"]]
                own = a["segmentation"]
                if isinstance(own, list) and rng.random() < 0.8:
                    (x, y, w, h), (left, top, width, height) = b, a["bbox"]
                    moved = lambda v, start, side, new, size: new + (v - start) * (size / side if side else 1)
                    own = [
                        [moved(v, top, height, y, h) if i % 2 else moved(v, left, width, x, w) for i, v in enumerate(p)]
                        for p in own
                    ]
                elif rng.random() < 0.5:
                    own = cases.polygon(rng, b)
                r["segmentation"] = compressed(own, image)
            else:
                r["bbox"] = b
            results.append(r)
    return results


def compressed(segmentation, image):
    """Any segmentation as a compressed mask."""
    rle = cases.mask_utils.frPyObjects(segmentation, image["height"], image["width"])
    rle = cases.mask_utils.merge(rle) if isinstance(rle, list) else rle
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def itself(truth, masks):
    sizes = {i["id"]: i for i in truth["images"]}
    results = []
    for a in truth["annotations"]:
        r = {"image_id": a["image_id"], "category_id": a["category_id"], "score": 1.0}
        if masks:
            r["segmentation"] = compressed(a["segmentation"], sizes[a["image_id"]])
        else:
            r["bbox"] = a["bbox"]
        results.append(r)
    return results


def real(data):
    coco = data / "coco-eval"
    truth = json.loads((coco / "instances_val2014_100.json").read_text())
    for kind in ["bbox", "segm"]:
        results = json.loads((coco / f"instances_val2014_fake{kind}100_results.json").read_text())
        yield {"name": f"coco-eval {kind}", "type": kind, "truth": truth, "results": results}
        yield {"name": f"coco-eval {kind} as bbox", "type": "bbox", "truth": truth, "results": results}
    yield {"name": "coco-eval boxes as segm", "type": "segm", "truth": truth, "results": json.loads(
        (coco / "instances_val2014_fakebbox100_results.json").read_text())}
    rng = random.Random(0)
    for split in ["val2017", "train2017"]:
        truth = json.loads((data / "coco-mini" / "annotations" / f"instances_{split}.json").read_text())
        for name, kind, masks in [
            ("itself", "bbox", False),
            ("itself masks", "segm", True),
            ("boxes as segm", "segm", False),
        ]:
            yield {"name": f"coco-mini {split} {name}", "type": kind, "truth": truth, "results": itself(truth, masks)}
        for i in range(3):
            yield {"name": f"coco-mini {split} perturbed {i}", "type": "bbox", "truth": truth,
                   "results": perturbed(truth, rng, False)}
            yield {"name": f"coco-mini {split} perturbed masks {i}", "type": "segm", "truth": truth,
                   "results": perturbed(truth, rng, True)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    worst, compared = 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for case in real(arguments.data) if arguments.data else []:
            differs, count = check(arguments.bin, folder, case)
            worst, compared = max(worst, differs), compared + count
            print(f"{case['name']}: AP {case['stats'][0]:.6f}, largest difference {differs:.1e}")
        done = 0
        for seed in range(arguments.seed, arguments.seed + arguments.cases):
            case = cases.make(seed)
            if not case["results"]:
                continue
            differs, count = check(arguments.bin, folder, case)
            worst, compared, done = max(worst, differs), compared + count, done + 1
        print(f"{done} generated cases agree")
    print(f"{compared} numbers compared, largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
