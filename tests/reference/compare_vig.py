"""Compares `extract_features` with a reference ViG in PyTorch, for every model, graph convolution and image size asked for.

    python tests/reference/compare_vig.py path/to/vig_ref.py [--models vig_ti,pvig_ti] [--convs mr,edge,gin,sage]
        [--sizes 224x224,32x32] [--graphs fused,dense,chunked] [--program target/debug/extract_features]

The reference is one file with `vig(name, conv=...)`, `randomize`, `force` and `gaps` (see tests/fixtures/vig/make.py). Each model gets random weights
with real batch-norm statistics, in a .pth.tar, a .pth and a .safetensors file by turns. The program's neighbours are given to the reference, so
that no swapped near-tie hides what follows. A line for each run:

    worst map     largest difference of a stage map from the reference's, over the map's largest value
    logits        the same of the class scores
    gap           how much farther any neighbour is than the one that belongs at its place, in float64
    same          share of neighbours that the reference finds by itself at the same place, in the first block

and a last line says whether all are within 1e-4, 1e-4 and 2e-5. Also checks that what the program saves loads back with strict=True
apart from the constants and gives the same logits. Needs torch and safetensors.
"""
import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MAPS, GAP = 1e-4, 2e-5
MODELS = ['vig_ti', 'vig_s', 'vig_b', 'pvig_ti', 'pvig_s', 'pvig_m', 'pvig_b']
CONVS = ['mr', 'edge', 'gin', 'sage']
SIZES = ['224x224', '32x32', '64x512', '70x100', '320x416']


def load_reference(path):
    spec = importlib.util.spec_from_file_location('vig_ref', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_weights(model, folder, turn):
    state = model.state_dict()
    if turn % 3 == 0:
        path = folder / 'model.pth.tar'
        torch.save({'epoch': 1, 'state_dict': {f'module.{k}': v for k, v in state.items()}}, path)
    elif turn % 3 == 1:
        path = folder / 'model.pth'
        torch.save(state, path)
    else:
        path = folder / 'model.safetensors'
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


def error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('reference')
    parser.add_argument('--models', default=','.join(MODELS))
    parser.add_argument('--convs', default=','.join(CONVS))
    parser.add_argument('--sizes', default=','.join(SIZES))
    parser.add_argument('--graphs', default='fused')
    parser.add_argument('--images', type=int, default=2)
    parser.add_argument('--program', default='target/debug/extract_features')
    args = parser.parse_args()
    ref = load_reference(args.reference)
    torch.set_num_threads(1)
    worst = {'maps': 0.0, 'logits': 0.0, 'gap': 0.0}
    turn = failed = 0
    print(f'{"model":8} {"conv":5} {"size":>8} {"graph":8} {"worst map":>10} {"logits":>10} {"gap":>10} {"same":>7}')
    for name in args.models.split(','):
        for conv in args.convs.split(','):
            model = ref.randomize(ref.vig(name, conv=conv), seed=turn)
            with tempfile.TemporaryDirectory() as folder:
                folder = Path(folder)
                weights = write_weights(model, folder, turn)
                turn += 1
                saved, inputs, outputs = (folder / f'{n}.safetensors' for n in ('saved', 'inputs', 'outputs'))
                for size in args.sizes.split(','):
                    for graph in args.graphs.split(','):
                        h, w = map(int, size.split('x'))
                        images = torch.randn(args.images, 3, h, w, generator=torch.Generator().manual_seed(turn))
                        save_file({'images': images}, inputs)
                        run = subprocess.run(
                            [args.program, name, '--weights', weights, '--input', inputs, '--out', outputs, '--edges',
                             '--save', saved, '--set', f'conv={conv}', '--set', f'backbone.graph={graph}'],
                            capture_output=True, text=True)
                        if run.returncode:
                            sys.exit(f'{name} {conv} {size}: {run.stderr}')
                        out = load_file(outputs)
                        edges = [out[f'edges.{i}'] for i in range(len(model.graphers))]
                        with torch.no_grad():
                            model.force([None] * len(edges))
                            model.features(images)
                            same = (model.edges[0] == edges[0]).float().mean().item()
                            model.force(edges)
                            maps = model.features(images)
                            logits = model(images)
                        names = [f'stage{i + 1}' for i in range(4)] if model.pyramid else ['features']
                        found = {'maps': max(error(out[n], m) for n, m in zip(names, maps, strict=True)),
                                 'logits': error(out['logits'], logits), 'gap': max(model.gaps)}
                        good = found['maps'] < MAPS and found['logits'] < MAPS and found['gap'] < GAP
                        failed += not good
                        worst = {k: max(worst[k], found[k]) for k in worst}
                        print(f'{name:8} {conv:5} {size:>8} {graph:8} {found["maps"]:10.1e} {found["logits"]:10.1e} '
                              f'{found["gap"]:10.1e} {same:7.2%}{"" if good else "   TOO FAR"}', flush=True)
                back = ref.vig(name, conv=conv).eval()
                state = load_file(saved)
                constants = {k: v for k, v in back.state_dict().items() if k.endswith('relative_pos')}
                back.load_state_dict({**state, **constants}, strict=True)
                back.force(edges)
                with torch.no_grad():
                    if not torch.equal(back(images), logits):
                        failed += 1
                        print(f'{name} {conv}: saved weights give other logits')
    print(f'worst: maps {worst["maps"]:.1e}, logits {worst["logits"]:.1e}, gap {worst["gap"]:.1e}; '
          + (f'{failed} too far' if failed else 'all within 1e-4, 1e-4, 2e-5'))
    sys.exit(bool(failed))


if __name__ == '__main__':
    main()
