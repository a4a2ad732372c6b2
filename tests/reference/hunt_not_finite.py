"""Whether recipes reach a loss or gradient that is not finite at ten times their learning rate.

    hunt_not_finite.py VIGDET DATASETS OUT [STEPS]

DATASETS holds `shapes`, `bccd` and `coco-mini`. Each recipe runs STEPS (60) steps, of which ten are warm-up, with
steps that are not finite skipped and counted: harsher than the recipe, whose warm-up is longer. Large images and
batches are made smaller, as a processor takes them.
"""

import json
import pathlib
import subprocess
import sys

SMALL = ["data.size=[160,256]", "train.batch_size=4", "train.micro_batch=4"]
# (command and config, data, changes, learning rate of the recipe)
RECIPES = [
    (["retinanet", "--config", "retinanet_pvig_ti_shapes"], "shapes", [], 0.0014),
    (["mask_rcnn", "--config", "mask_rcnn_pvig_ti_shapes"], "shapes", [], 0.001),
    (["retinanet", "--config", "retinanet_pvig_ti_bccd"], "bccd", [], 0.0005),
    (["faster_rcnn", "--config", "faster_rcnn_pvig_ti_bccd"], "bccd", [], 0.0005),
    (["retinanet", "--config", "retinanet_pvig_n_small"], "coco-mini", SMALL, 0.002),
    (["retinanet"], "coco-mini", SMALL, 0.0001),
    (["mask_rcnn", "--config", "mask_rcnn_pvig_s_fpn_1x_coco"], "coco-mini", SMALL, 0.0002),
    (["retinanet", "--config", "retinanet_resnet50_fpn_1x_coco"], "coco-mini", SMALL, 0.01),
]


def hunt(vigdet, root, out, steps, recipe, amp):
    named, data, changes, lr = recipe
    folder = pathlib.Path(out) / f"{named[-1]}-{data}-{amp}"
    sets = changes + [f"train.lr={10 * lr}", "warmup_iters=10", f"max_iters={steps}", "eval_every=0", "on_nan=skip",
                      "skip_most=1000", f"amp={amp}", "every_epochs=0", "train.threads=1", "data.workers=1",
                      "train.epochs=1000", "max_minutes=null"]
    detector = "mask_rcnn" if named[0] == "faster_rcnn" else named[0]
    command = [vigdet, "train_det", detector, *named[1:], "--data", f"{root}/{data}", "--out", str(folder), "--device",
               "cpu"] + [word for change in sets for word in ("--set", change)]
    done = subprocess.run(command, capture_output=True, text=True)
    log = folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    losses = [line["loss"] for line in lines if "loss" in line]
    skipped = [line["iter"] for line in lines if "skipped" in line]
    norm = max((line["grad_norm"] for line in lines if "loss" in line), default=float("nan"))
    error = "" if done.returncode == 0 else f"  ({done.stderr.strip().splitlines()[-1][:200]})"
    ends = f"loss {losses[0]:.2f} to {losses[-1]:.2f}" if losses else "no step"
    print(f"{named[-1]} on {data}, lr {10 * lr:g}, amp {amp}: {len(lines)} steps, {len(skipped)} not finite {skipped[:5]}, "
          f"{ends}, largest gradient {norm:.3g}{error}", flush=True)
    return len(skipped)


if __name__ == "__main__":
    vigdet, root, out = sys.argv[1:4]
    steps = int(sys.argv[4]) if len(sys.argv) > 4 else 60
    found = [hunt(vigdet, root, out, steps, recipe, amp) for recipe in RECIPES for amp in ("false", "true")]
    sys.exit(1 if any(found) else 0)
