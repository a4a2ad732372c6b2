"""The backbones of the ViG paper's Table 10, GreedyViG and AdaptViG in their authors' code, as `time_backbone.py` takes
a reference:

    AUTHORS=FOLDER python tests/reference/time_backbone.py tests/reference/authors.py \
        --cases greedyvig_s:1x800x1280,swin_t:1x240x320

FOLDER holds copies of the authors' files: pvt.py, poolformer.py, cycle_mlp.py (see tests/fixtures/table10/make.py),
greedyvig.py and adaptvig.py (see tests/fixtures/axial/make.py). ResNet, ResNeXt and Swin are torchvision's.
"""
import importlib.util
import os
from functools import partial
from pathlib import Path

import torch
import torchvision


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


axial = load(Path(__file__).parents[1] / 'fixtures/axial/make.py')
table10 = axial.table10


def of_author(file, name):
    table10.stubs()
    return getattr(load(Path(os.environ['AUTHORS']) / file), name)()


class Model(torch.nn.Module):
    """A classifier; `maps` gives its stage maps and class scores, `features` the maps alone."""

    def __init__(self, inner, maps, features=None):
        super().__init__()
        self.inner, self.maps = inner, maps
        self.of_maps = features or (lambda model, x: maps(model, x)[0])

    def state_dict(self, *args, **kwargs):
        return self.inner.state_dict(*args, **kwargs)

    def load_state_dict(self, state):
        return self.inner.load_state_dict(state)

    def features(self, x):
        return self.of_maps(self.inner, x)

    def forward(self, x):
        return self.maps(self.inner, x)[1]


def vig(name):
    family, _, size = name.partition('_')
    if family.startswith('res'):
        resnet = torchvision.models.resnet
        big = resnet.ResNet(resnet.Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4) if name == 'resnext101_32x4d' else None
        return Model(big or getattr(resnet, name)(), table10.resnet.maps)
    if family == 'swin':
        # Without stochastic depth, as the others are here.
        build = torchvision.models.swin_transformer.SwinTransformer
        depths, width = {'t': ([2, 2, 6, 2], 96), 's': ([2, 2, 18, 2], 96), 'b': ([2, 2, 18, 2], 128)}[size]
        inner = build([4, 4], width, depths, [width // 32 * 2 ** s for s in range(4)], [7, 7], stochastic_depth_prob=0.0)
        return Model(inner, lambda model, x: table10.Microsoft(model).maps(x))
    if family == 'pvt':
        return Model(of_author('pvt.py', name), table10.pvt_maps)
    if family == 'poolformer':
        return Model(of_author('poolformer.py', name), partial(table10.network_maps, last=False))
    if family == 'cyclemlp':
        return Model(of_author('cycle_mlp.py', f'CycleMLP_{size.upper()}'), partial(table10.network_maps, last=True))
    title = {'greedyvig': 'GreedyViG', 'adaptvig': 'AdaptViG'}[family]
    return Model(of_author(f'{family}.py', f'{title}_{size.upper()}'), axial.maps, axial.features)


def randomize(model, seed):
    torch.manual_seed(seed)
    return model
