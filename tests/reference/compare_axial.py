"""Compares `extract_features` with the authors' GreedyViG and AdaptViG, for every size of model and image asked for.

    python tests/reference/compare_axial.py FOLDER [--models greedyvig_s,adaptvig_s] [--sizes 224x224,97x133] [--program target/debug/extract_features]

FOLDER holds copies of the authors' files, greedyvig.py and adaptvig.py (see tests/fixtures/axial/make.py). Each model
gets random weights and the batch-norm statistics of a pass over random images. GreedyViG's masks are compared, then
the program's are given to the authors' code, so that no neighbour just at the threshold hides what follows. A line
for each run:

    worst map     largest difference of a stage map from the authors', over the map's largest value
    logits        the same of the class scores
    own masks     the worst map where the authors' code decides by itself
    turned        neighbours that the two decide otherwise, of all
    gap           of those, how far the distance is from the threshold, at most, over the threshold

and a last line says whether all maps and scores are within 1e-4, and all gaps within 1e-5. Needs torch and
safetensors.
"""
import argparse
import importlib.util
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MAPS, GAP = 1e-4, 1e-5
MODELS = ['greedyvig_s', 'greedyvig_m', 'greedyvig_b', 'adaptvig_s', 'adaptvig_m', 'adaptvig_b']


def load_reference(path):
    for name in ('timm', 'timm.models'):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    parts = {'timm.data': dict(IMAGENET_DEFAULT_MEAN=None, IMAGENET_DEFAULT_STD=None), 'timm.models.layers': dict(DropPath=torch.nn.Identity),
             'timm.models.registry': dict(register_model=lambda f: f)}
    for name, values in parts.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(values)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Forced:
    """Stands for `torch` in the authors' module: masks are those that are given, and what differs is counted."""

    def __init__(self):
        self.masks, self.block, self.turned, self.all, self.gap = None, -1, 0, 0, 0.0

    def __getattr__(self, name):
        return getattr(torch, name)

    def norm(self, *args, **kwargs):
        self.distance = torch.norm(*args, **kwargs)
        return self.distance

    def mean(self, *args, **kwargs):
        # Called once at the start of each graph convolution.
        self.block += 1
        self.roll = 0
        self.average = torch.mean(*args, **kwargs)
        return self.average

    def std(self, *args, **kwargs):
        deviation = torch.std(*args, **kwargs)
        self.limit = self.average - deviation
        return deviation

    def where(self, near, yes, no):
        if self.masks is None:
            return torch.where(near, yes, no)
        b, _, h, w = near.shape
        self.all += near.numel()
        # The first roll along each side is none, and the program leaves it out.
        if self.own():
            return torch.where(near, yes, no)
        given = self.masks[self.block][:, :, self.roll].view(b, 1, h, w) > 0
        self.roll += 1
        apart = given != near
        self.turned += apart.sum().item()
        if apart.any():
            gap = ((self.distance - self.limit).abs() / self.limit.abs())[apart].max().item()
            self.gap = max(self.gap, gap)
        return given.to(torch.int64)

    def own(self):
        return not self.distance.any()


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda p, low, high: p.data.copy_(torch.rand(p.shape, generator=generator) * (high - low) + low)
    for name, p in model.named_parameters():
        if 'layer_scale' in name:
            draw(p, 0.1, 0.6)
        elif name.endswith('temperature'):
            p.data.fill_(-0.5 * model.get_submodule(name.rsplit('.', 1)[0]).nn[0].out_channels)
        elif p.dim() == 1:
            draw(p, 0.5, 1.5) if name.endswith('weight') else draw(p, -0.2, 0.2)
        else:
            p.data.copy_(torch.randn(p.shape, generator=generator) * p[0].numel() ** -0.5)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(images(4, 224, 224, seed))
    return model.eval()


def images(count, height, width, seed):
    """Smooth noise and some of every pixel's own."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, height // 16 + 2, width // 16 + 2, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode='bicubic')
    return smooth + 0.2 * torch.randn(count, 3, height, width, generator=generator)


def run(model, x):
    with torch.no_grad():
        x = model.stem(x)
        maps = []
        for stage in model.backbone:
            x = stage(x)
            maps.append(x)
        hidden = model.prediction(x)
        return maps, ((model.head(hidden) + model.dist_head(hidden)) / 2).flatten(1)


def error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--models', default=','.join(MODELS))
    parser.add_argument('--sizes', default='224x224,97x133')
    parser.add_argument('--program', default='target/debug/extract_features')
    args = parser.parse_args()
    torch.set_num_threads(1)
    failed = 0
    print(f'{"model":12} {"size":>9} {"worst map":>10} {"logits":>10} {"own masks":>10} {"turned":>18} {"gap":>9}')
    for turn, name in enumerate(args.models.split(',')):
        family, size = name.split('_')
        module = load_reference(args.folder / f'{family}.py')
        title = {'greedyvig': 'GreedyViG', 'adaptvig': 'AdaptViG'}[family]
        model = randomize(getattr(module, f'{title}_{size.upper()}')(), turn)
        with tempfile.TemporaryDirectory() as folder:
            weights, inputs, outputs = (Path(folder) / n for n in ('weights.pth', 'inputs.safetensors', 'outputs.safetensors'))
            torch.save({'state_dict': model.state_dict()}, weights)
            for shape in args.sizes.split(','):
                x = images(1, *map(int, shape.split('x')), 100 + turn)
                save_file({'images': x}, inputs)
                done = subprocess.run([args.program, name, '--weights', weights, '--input', inputs, '--out', outputs, '--edges', '--device', 'cpu'],
                                      capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f'{name} {shape}: {done.stderr}')
                out = load_file(outputs)
                names = [f'stage{i + 1}' for i in range(4)]
                worst = lambda maps: max(error(out[n], m) for n, m in zip(names, maps, strict=True))
                own = worst(run(model, x)[0])
                forced = Forced()
                if family == 'greedyvig':
                    forced.masks = [out[f'weights.{i}'] for i in range(sum(k.startswith('weights.') for k in out))]
                    module.torch = forced
                maps, logits = run(model, x)
                module.torch = torch
                found = worst(maps), error(out['logits'], logits)
                good = max(found) < MAPS and forced.gap < GAP
                failed += not good
                print(f'{name:12} {shape:>9} {found[0]:10.1e} {found[1]:10.1e} {own:10.1e} {forced.turned:6} of {forced.all:8} '
                      f'{forced.gap:9.1e}{"" if good else "   TOO FAR"}', flush=True)
    print(f'{failed} too far' if failed else 'all within 1e-4 and 1e-5')
    sys.exit(bool(failed))


if __name__ == '__main__':
    main()
