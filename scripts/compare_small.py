"""What vigdet and its peers learn from the same pictures in the same time, each on one thread with its own defaults.

usage: compare_small.py DATA --minutes M --seeds N [-- FLAGS of train_det]

(needs torch, torchvision, pycocotools and a build of vigdet)

DATA is a folder in COCO's layout. Programs: vigdet with pvig_n, pvig_ti and ResNet-18 under one recipe, torchvision's
RetinaNet on ResNet-18, and YOLO11n where this Python has ultralytics. All start from random weights and see images of
--size. They run one after the other, pinned to one core; leave that core alone. AP is pycocotools'. The column "CPU" is
the processor time of the whole run, data and evaluation included: with the same minutes it should be much the same.
"""
import argparse
import contextlib
import importlib.util
import io
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = ROOT / 'scripts' / 'peers'
RECIPE = 'retinanet_pvig_n_small'
BACKBONES = ['pvig_n', 'pvig_ti', 'resnet18']
PROGRAMS = [*(f'vigdet-{name}' for name in BACKBONES), 'torchvision', 'yolo11n']


def command(program, args, seed, folder):
    """What trains the program, and the file with its detections afterwards."""
    if program.startswith('vigdet-'):
        run = [args.vigdet, 'train_det', 'retinanet', '--config', RECIPE, '--backbone', program.removeprefix('vigdet-'),
               '--data', args.data, '--size', args.size, '--seed', seed, '--out', folder / 'run', '--epochs', 1000,
               '--set', f'train.max_minutes={args.minutes}', '--set', 'train.threads=1', *args.vigdet_flags]
        return run, folder / 'run' / 'bbox.json'
    script = PEERS / {'torchvision': 'torchvision_retinanet.py', 'yolo11n': 'yolo.py'}[program]
    found = folder / 'bbox.json'
    return [sys.executable, script, args.data, found, args.minutes, seed, args.size], found


def train(program, args, seed):
    """AP and AP50 of one run, and its processor time in minutes."""
    folder = args.out / f'{program}-{seed}'
    folder.mkdir(parents=True, exist_ok=True)
    run, found = command(program, args, seed, folder)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(folder / 'log', 'w') as log:
        status = subprocess.run(['taskset', '-c', str(args.core), *map(str, run)], stdout=log, stderr=log, check=False,
                                env={**os.environ, 'OMP_NUM_THREADS': '1'}).returncode
    if status:
        sys.exit(f'{program} failed: see {folder / "log"}')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(args.data / 'annotations' / 'instances_val2017.json'))
        results = json.loads(found.read_text())
        scores = COCOeval(truth, truth.loadRes(results), 'bbox') if results else None
        if scores:
            scores.evaluate()
            scores.accumulate()
            scores.summarize()
    return (scores.stats[0], scores.stats[1], spent / 60) if scores else (0.0, 0.0, spent / 60)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=pathlib.Path)
    parser.add_argument('--minutes', type=float, default=25)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--size', default='240,320', help='shorter side, and the most of the longer, in pixels')
    parser.add_argument('--programs', default=','.join(PROGRAMS), help='which of ' + ', '.join(PROGRAMS))
    parser.add_argument('--core', type=int, default=0)
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/compare_small'))
    parser.add_argument('--vigdet', type=pathlib.Path, default=ROOT / 'target' / 'debug' / 'vigdet')
    # By hand: a list of argparse is empty once the positional argument before it was taken alone.
    words = [*sys.argv[1:], '--']
    args = parser.parse_args(words[:words.index('--')])
    args.vigdet_flags = words[words.index('--') + 1:-1]
    programs = args.programs.split(',')
    if wrong := set(programs) - set(PROGRAMS):
        parser.error(f'there is no {", ".join(sorted(wrong))}: there are {", ".join(PROGRAMS)}')
    if 'yolo11n' in programs and not importlib.util.find_spec('ultralytics'):
        print('yolo11n is left out: this Python has no package ultralytics')
        programs.remove('yolo11n')
    print(f'| program, {args.minutes:g} minutes | AP | spread | AP50 | CPU, minutes |\n|---|---|---|---|---|', flush=True)
    for program in programs:
        runs = [train(program, args, seed) for seed in range(args.seeds)]
        ap, ap50, spent = ([run[i] for run in runs] for i in range(3))
        print(f'| {program} | {statistics.mean(ap):.3f} | {min(ap):.3f} to {max(ap):.3f} | {statistics.mean(ap50):.3f} | '
              f'{statistics.mean(spent):.1f} |', flush=True)


if __name__ == '__main__':
    main()
