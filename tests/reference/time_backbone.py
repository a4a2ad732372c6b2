"""Times `extract_features` beside a reference ViG in PyTorch: same weights, same images, same threads, in turns.

    python tests/reference/time_backbone.py path/to/vig_ref.py [--cases pvig_s:1x800x1280,...] [--backward] [--repeat 3] [--threads 2]
        [--program target/debug/extract_features]

Each run is a process of its own: seconds are those of the fastest forward of --repeat in it (with --backward: training mode, and the gradient
of the sum of the maps' means; stochastic depth off), memory is the most that the process held. `--only vigdet` leaves the reference out, and
`--sizes` makes the table of pvig_s over image sizes. Needs torch and safetensors.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = 'pvig_s:1x800x1280,pvig_s:8x224x224,vig_ti:8x224x224'

# Torch is loaded in processes of their own: the memory that Linux reports for a child begins with its parent's.
PREPARE = '''
import importlib.util, sys, torch
from safetensors.torch import save_file
path, name, size, weights, inputs = sys.argv[1:]
spec = importlib.util.spec_from_file_location('vig_ref', path)
ref = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ref)
b, h, w = map(int, size.split('x'))
torch.save(ref.randomize(ref.vig(name), seed=0).state_dict(), weights)
save_file({'images': torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(0))}, inputs)
'''

REFERENCE = '''
import importlib.util, sys, time, torch
from safetensors.torch import load_file
path, name, weights, inputs, backward, repeat, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
spec = importlib.util.spec_from_file_location('vig_ref', path)
ref = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ref)
model = ref.vig(name)
model.load_state_dict(torch.load(weights))
images = load_file(inputs)['images']
best = float('inf')
for _ in range(int(repeat)):
    start = time.perf_counter()
    if backward == '1':
        model.train()
        sum(m.mean() for m in model.features(images)).backward()
        model.zero_grad()
    else:
        model.eval()
        with torch.no_grad():
            model(images)
    best = min(best, time.perf_counter() - start)
print(best)
'''


def measured(command, threads):
    """Last line of the command's output, and the most memory it held, in MB."""
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'RAYON_NUM_THREADS': str(threads)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    out = process.stdout.read()
    err = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f'{command[0]}: {err}')
    return out.strip().splitlines()[-1], usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('reference')
    parser.add_argument('--cases', default=CASES, help='model:BxHxW, separated by commas')
    parser.add_argument('--backward', action='store_true')
    parser.add_argument('--repeat', type=int, default=3)
    parser.add_argument('--rounds', type=int, default=1, help='processes of each kind; the best counts')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--only', choices=['vigdet'])
    parser.add_argument('--sizes', action='store_true', help='pvig_s, one image of 5:8, 640 to 1920 pixels wide')
    parser.add_argument('--set', action='append', default=[], help='passed on to the program')
    parser.add_argument('--program', default='target/debug/extract_features')
    args = parser.parse_args()

    cases = args.cases.split(',')
    if args.sizes:
        cases = [f'pvig_s:1x{w * 5 // 8}x{w}' for w in (640, 960, 1280, 1920)]
    what = 'forward and backward' if args.backward else 'forward'
    print(f'{what}, {args.threads} threads, best of {args.repeat} in {args.rounds} process(es)')
    print(f'{"model":8} {"images":>14} {"vigdet":>9} {"memory":>9} {"reference":>10} {"memory":>9} {"times":>6}')
    with tempfile.TemporaryDirectory() as folder:
        weights, inputs, outputs = (Path(folder) / n for n in ('weights.pth', 'inputs.safetensors', 'out.safetensors'))
        for case in cases:
            name, size = case.split(':')
            subprocess.run([sys.executable, '-c', PREPARE, args.reference, name, size, weights, inputs], check=True)
            ours, theirs = [], []
            for _ in range(args.rounds):
                command = [args.program, name, '--weights', weights, '--input', inputs, '--out', outputs, '--json',
                           '--repeat', str(args.repeat), '--device', 'cpu', *(f'--set={s}' for s in args.set)]
                line, memory = measured([*map(str, command), *(['--backward'] if args.backward else [])], args.threads)
                ours.append((json.loads(line)['seconds'], memory))
                if args.only is None:
                    command = [sys.executable, '-c', REFERENCE, args.reference, name, weights, inputs,
                               str(int(args.backward)), args.repeat, args.threads]
                    line, memory = measured([str(c) for c in command], args.threads)
                    theirs.append((float(line), memory))
            seconds, memory = min(t for t, _ in ours), max(m for _, m in ours)
            line = f'{name:8} {size:>14} {seconds:7.3f} s {memory:6.0f} MB'
            if theirs:
                slow, held = min(t for t, _ in theirs), max(m for _, m in theirs)
                line += f' {slow:8.3f} s {held:6.0f} MB {slow / seconds:6.2f}'
            print(line, flush=True)


if __name__ == '__main__':
    main()
