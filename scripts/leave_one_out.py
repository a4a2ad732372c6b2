"""What each part of the recipe for small data is worth: it is left out, and all else stays.

usage: leave_one_out.py DATA [--minutes 10 | --steps N] [--seeds 2] [--parts NAME,…] [-- FLAGS of train_det]

(needs a build of vigdet)

DATA is a folder that train_det takes. Every run has one thread, on one core; leave that core alone. With --minutes all
runs take the same time, with --steps the same number of steps. The difference is that of AP with the part and without
it: where it is above zero, the part helps. Its interval is the paired bootstrap's of coco_eval, 95%, one for each seed:
images are drawn anew, 1000 times. It tells how sure a difference is on other images, not with other seeds.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPE = 'retinanet_pvig_n_small'
WHOLE = 'nothing'
# What is left out, and what takes its place: RetinaNet's own, or nothing.
PARTS = {
    WHOLE: [],
    'ATSS': ['match.kind=iou'],
    'quality focal loss': ['loss.class=focal'],
    'GIoU loss': ['loss.box=l1', 'loss.box_weight=1'],
    'fitted anchors': ['anchors.auto=false'],
    'masked padding': ['model.padding=published'],
    'sizes at random': ['data.scale=[1,1]'],
    'affine turns': ['affine.probability=0'],
    'hue': ['data.hue=0'],
    'averaged weights': ['train.ema=null'],
}


def train(part, seed, args):
    """The results file of a run; one that is there is not trained again."""
    folder = args.out / f'{part.replace(" ", "_")}-{seed}'
    found = folder / 'run' / 'bbox.json'
    if (folder / 'done').exists():
        return found
    folder.mkdir(parents=True, exist_ok=True)
    length = ['--max-iters', args.steps] if args.steps else ['--set', f'train.max_minutes={args.minutes}']
    changes = [flag for change in PARTS[part] for flag in ('--set', change)]
    run = ['taskset', '-c', args.core, args.vigdet, 'train_det', 'retinanet', '--config', RECIPE, '--data', args.data,
           '--seed', seed, '--epochs', 1000, '--set', 'train.threads=1', *length, *args.flags, *changes,
           '--out', folder / 'run']
    with open(folder / 'log', 'w') as log:
        status = subprocess.run([str(word) for word in run], stdout=log, stderr=log, check=False,
                                env={**os.environ, 'OMP_NUM_THREADS': '1'}).returncode
    if status:
        sys.exit(f'without {part}: failed, see {folder / "log"}')
    (folder / 'done').touch()
    return found


def compared(without, whole, args):
    """AP without and with the part, and the interval of their difference."""
    numbers = args.out / 'compared.json'
    subprocess.run([args.coco_eval, '--dt', without, '--compare', whole, '--json', numbers], check=True,
                   stdout=subprocess.DEVNULL)
    ap = json.loads(numbers.read_text())['comparison']['differences'][0]
    return ap['a'], ap['b'], ap['interval']


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=pathlib.Path)
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--steps', type=int, help='in place of --minutes')
    parser.add_argument('--seeds', type=int, default=2)
    parser.add_argument('--parts', default=','.join(PARTS),
                        help='those to leave out, separated by commas')
    parser.add_argument('--core', type=int, default=0)
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/leave_one_out'))
    parser.add_argument('--vigdet', type=pathlib.Path, default=ROOT / 'target/debug/vigdet')
    parser.add_argument('--coco-eval', type=pathlib.Path, default=ROOT / 'target/debug/coco_eval')
    # By hand: a list of argparse is empty once the positional argument before it was taken alone.
    words = [*sys.argv[1:], '--']
    args = parser.parse_args(words[:words.index('--')])
    args.flags = words[words.index('--') + 1:-1]
    parts = [part for part in args.parts.split(',') if part != WHOLE]
    if wrong := set(parts) - set(PARTS):
        parser.error(f'there is no {", ".join(sorted(wrong))}: there are {", ".join(PARTS)}')
    whole = [train(WHOLE, seed, args) for seed in range(args.seeds)]
    print('| without | AP | with it | difference | intervals |\n|---|---|---|---|---|', flush=True)
    for part in parts:
        rows = [compared(train(part, seed, args), whole[seed], args) for seed in range(args.seeds)]
        without, with_it = (statistics.mean(row[i] for row in rows) for i in range(2))
        intervals = ', '.join(f'{low:+.3f} to {high:+.3f}' for _, _, (low, high) in rows)
        print(f'| {part} | {without:.3f} | {with_it:.3f} | {with_it - without:+.3f} | {intervals} |', flush=True)


if __name__ == '__main__':
    main()
