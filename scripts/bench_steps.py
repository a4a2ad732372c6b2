"""Times training steps of one config with and without mixed precision and replicas, in turns, each run a process of its own.

    cargo build --bin train_det
    python3 scripts/bench_steps.py [--config NAME] [--steps 40] [--skip 15] [--rounds 2] [--threads N]
        [--images 4] [-- further arguments of train_det]

A step has two micro batches of --images each. Prints the median of the steps after the first --skip, the least of all rounds. Runs are made in a
temporary folder; the config's data must be there (built-in data is drawn).
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WAYS = {
    'float32, one after another': ('false', 1),
    'bfloat16, one after another': ('true', 1),
    'float32, two replicas': ('false', 2),
    'bfloat16, two replicas': ('true', 2),
}


def median(way, args, folder):
    amp, replicas = way
    out = Path(folder) / 'run'
    command = [ROOT / 'target/debug/train_det', 'retinanet', '--config', args.config, '--out', out, '--device', 'cpu']
    command += ['--max-iters', args.skip + args.steps, '--set', 'train.eval_every=0', '--set', f'train.amp={amp}']
    command += ['--set', f'train.batch_size={2 * args.images}', '--set', f'train.micro_batch={args.images}']
    command += ['--set', f'train.replicas={replicas}', '--set', f'train.threads={args.threads}', *args.more]
    # As in .cargo/config.toml, which only cargo reads.
    environment = {'GOMP_SPINCOUNT': '10000', **os.environ}
    found = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    if found.returncode != 0:
        sys.exit(found.stderr)
    lines = map(json.loads, (out / 'log.jsonl').read_text().splitlines())
    return statistics.median([line['seconds'] for line in lines if line['iter'] > args.skip])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='retinanet_pvig_ti_shapes')
    parser.add_argument('--steps', type=int, default=40)
    parser.add_argument('--skip', type=int, default=15)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--images', type=int, default=4)
    parser.add_argument('more', nargs='*')
    args = parser.parse_args()
    seconds = {name: [] for name in WAYS}
    for _ in range(args.rounds):
        for name, way in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds[name].append(median(way, args, folder))
    for name, values in seconds.items():
        print(f'{name:28} {min(values):.3f} s  ({", ".join(f"{v:.3f}" for v in values)})')


if __name__ == '__main__':
    main()
