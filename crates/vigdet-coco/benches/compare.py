#!/usr/bin/env python3
"""Times whole processes on the files of generate.py.

The programs are coco_eval and whichever of hotcoco, faster-coco-eval and pycocotools are there.

    python generate.py FOLDER && python compare.py FOLDER --bin ../../../target/release/coco_eval [--repeat 5]
        [--type bbox|segm] [--slow]

Prints best and median wall-clock time, processor time, peak memory, and the best time over coco_eval's. `--slow`
includes faster-coco-eval and pycocotools (minutes).
"""

import argparse
import importlib.util
import os
import pathlib
import statistics
import subprocess
import sys
import time

HOTCOCO = """
import sys
from hotcoco import COCO, COCOeval
gt = COCO(sys.argv[1]); ev = COCOeval(gt, gt.load_res(sys.argv[2]), sys.argv[3])
ev.evaluate(); ev.accumulate(); ev.summarize()
"""
FASTER = """
import sys
from faster_coco_eval import COCO, COCOeval_faster
gt = COCO(sys.argv[1]); ev = COCOeval_faster(gt, gt.loadRes(sys.argv[2]), sys.argv[3])
ev.evaluate(); ev.accumulate(); ev.summarize()
"""
PYCOCO = """
import sys
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
gt = COCO(sys.argv[1]); ev = COCOeval(gt, gt.loadRes(sys.argv[2]), sys.argv[3])
ev.evaluate(); ev.accumulate(); ev.summarize()
"""


def measure(command):
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        sys.exit(f"{command[:2]}: {process.stderr.read().decode()[-500:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--type", choices=["bbox", "segm"], action="append", help="default: both")
    parser.add_argument("--slow", action="store_true")
    a = parser.parse_args()
    for kind in a.type or ["bbox", "segm"]:
        files = [str(a.folder / "gt.json"), str(a.folder / f"{kind}.json")]
        programs = {"coco_eval": [a.bin, "--gt", files[0], "--dt", files[1], "--type", kind]}
        for name, module, code, slow in [
            ("hotcoco", "hotcoco", HOTCOCO, False),
            ("faster-coco-eval", "faster_coco_eval", FASTER, True),
            ("pycocotools", "pycocotools", PYCOCO, True),
        ]:
            if importlib.util.find_spec(module) and (a.slow or not slow):
                programs[name] = [sys.executable, "-c", code, *files, kind]
        runs = {name: [] for name in programs}
        # In turns, so that a slower minute of the machine is one for all.
        for turn in range(a.repeat):
            for name, command in programs.items():
                if turn == 0 or name in ("coco_eval", "hotcoco"):
                    runs[name].append(measure(command))
        for name in programs:
            walls, cpus, memories = zip(*runs[name])
            wall, cpu, memory, middle = min(walls), min(cpus), max(memories), statistics.median(walls)
            ratio = wall / min(run[0] for run in runs["coco_eval"])
            times = f"{wall:7.2f} s (median {middle:.2f})  {cpu:7.2f} s processor"
            print(f"{kind}  {name:<17} {times}  {memory:6.0f} MB  {ratio:6.2f}")


if __name__ == "__main__":
    main()
