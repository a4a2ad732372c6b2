"""Compares vigdet's detections with torchvision's: ResNet-50 RetinaNet and Mask R-CNN with the same random weights on real images.

    cargo build --bin detect
    python tests/reference/compare_torchvision.py IMAGES [--count 4] [--size 480,800] [--model retinanet|mask_rcnn] [--names today|older]

(torch 2.13, torchvision 0.28, pycocotools, numpy, pillow). IMAGES is a folder of photographs. Each is resized to the size that the detectors would
choose and saved as PNG, so that resizing is left out of the comparison. The weights are random, with batch norms calibrated on the images and
the last layers scaled so that detections are many and confident. They are saved twice: as torchvision saves them today, and as its published files
are, with the older names of heads and pyramid and in the file format of before PyTorch 1.6. A detection is the same if class, box (0.1 pixel) and score (1e-3) agree. Fails below
99%, or with masks whose mean IoU is below 0.995.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy
import torch
from PIL import Image
from pycocotools import mask as coco
from torchvision.models.detection import maskrcnn_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.transforms.functional import to_tensor

ROOT = pathlib.Path(__file__).parents[2]


def images(folder, count, short, most, out):
    files = sorted(p for p in pathlib.Path(folder).iterdir() if p.suffix.lower() in ('.jpg', '.jpeg', '.png'))[:count]
    for path in files:
        image = Image.open(path).convert('RGB')
        scale = min(short / min(image.size), most / max(image.size))
        size = [round(side * scale) for side in image.size]
        image.resize(size, Image.Resampling.BILINEAR).save(out / (path.stem + '.png'))
    return sorted(out.glob('*.png'))


def scale_outputs(layer, spread, shift, run, rank=None):
    """Scales a layer so that what it says has this standard deviation and mean; or, with a rank, so that this is its value of that rank."""
    said = []
    hook = layer.register_forward_hook(lambda _module, _input, output: said.append(output.detach().flatten()))
    run()
    hook.remove()
    values = torch.cat(said)
    factor = spread / values.std()
    layer.weight.data.mul_(factor)
    middle = values.mean() if rank is None else values.topk(rank).values[-1]
    layer.bias.data.mul_(factor).add_(shift - middle * factor)


def random_model(name, batch, short, most):
    torch.manual_seed(1)
    make = {'mask_rcnn': maskrcnn_resnet50_fpn, 'retinanet': retinanet_resnet50_fpn}[name]
    model = make(weights=None, weights_backbone=None, min_size=short, max_size=most)
    # Batch statistics of real images become the running ones.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    model.backbone.train()
    with torch.no_grad():
        for image in batch:
            model.backbone(model.transform([image])[0].tensors)
        model.eval()
        # As in torchvision's published files, and so in the configs.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.0

        def run():
            for image in batch[:2]:
                model([image])

        if name == 'retinanet':
            # The thousand best of two images get scores above 1/2. By mean and deviation alone, hundreds of scores came within 1e-6 of one,
            # and rounding alone decided which of them made the best 300 of an image.
            scale_outputs(model.head.classification_head.cls_logits, 1.0, 0.0, run, rank=1000)
            scale_outputs(model.head.regression_head.bbox_reg, 0.3, 0.0, run)
        else:
            scale_outputs(model.rpn.head.cls_logits, 2.0, -2.0, run)
            scale_outputs(model.rpn.head.bbox_pred, 0.2, 0.0, run)
            scale_outputs(model.roi_heads.box_predictor.cls_score, 2.5, 0.0, run)
            scale_outputs(model.roi_heads.box_predictor.bbox_pred, 0.5, 0.0, run)
            scale_outputs(model.roi_heads.mask_predictor.mask_fcn_logits, 2.0, 0.0, run)
    return model


def older_names(state):
    """The state dict under the names of torchvision's published files; torchvision knows them as long as they come without versions."""
    def rename(name):
        name = re.sub(r'(rpn\.head\.conv)\.0\.0\.', r'\1.', name)
        name = re.sub(r'(fpn\.(?:inner|layer)_blocks\.\d+)\.0\.', r'\1.', name)
        name = re.sub(r'((?:classification|regression)_head\.conv)\.(\d+)\.0\.', lambda m: f'{m[1]}.{2 * int(m[2])}.', name)
        return re.sub(r'mask_head\.(\d+)\.0\.', lambda m: f'mask_head.mask_fcn{int(m[1]) + 1}.', name)
    # As its published files, which have no step counters either.
    return {rename(name): value for name, value in state.items() if not name.endswith('num_batches_tracked')}


def iou(a, b):
    both = numpy.logical_and(a, b).sum()
    either = numpy.logical_or(a, b).sum()
    return both / either if either else 1.0


def save(model, names, path):
    if names == 'today':
        torch.save(model.state_dict(), path)
        return
    older = older_names(model.state_dict())
    assert older.keys() != model.state_dict().keys()
    # torchvision itself takes them for what they are.
    model.load_state_dict(older)
    torch.save(older, path, _use_new_zipfile_serialization=False)


def compare(name, styles, paths, short, most, folder):
    batch = [to_tensor(Image.open(p)) for p in paths]
    model = random_model(name, batch, short, most)
    with torch.no_grad():
        wanted = [model([image])[0] for image in batch]
    good = True
    for names in styles:
        weights, result = folder / 'model.pth', folder / 'found.json'
        save(model, names, weights)
        config = ROOT / f'configs/{name}_resnet50_fpn_torchvision.json'
        subprocess.run([ROOT / 'target/debug/detect', name, '--config', config, '--weights', weights, '--size', f'{short},{most}',
                        '--device', 'cpu', '--json', result, *paths], check=True, stdout=subprocess.DEVNULL)
        good = same_detections(f'{name}, {names} names', wanted, json.loads(result.read_text())) and good
    return good


def same_detections(what, wanted, entries):
    total = same = extra = 0
    ious = []
    for expected, entry in zip(wanted, entries, strict=True):
        found = entry['detections']
        boxes = numpy.array([d['bbox'] for d in found], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        free = [True] * len(found)
        total += len(expected['scores'])
        extra += max(0, len(found) - len(expected['scores']))
        for i, (box, label, score) in enumerate(zip(expected['boxes'].numpy(), expected['labels'], expected['scores'])):
            fits = [j for j, d in enumerate(found) if free[j] and d['category_id'] == label and abs(d['score'] - score) < 1e-3
                    and numpy.abs(boxes[j] - box).max() < 0.1]
            if not fits:
                continue
            same += 1
            free[fits[0]] = False
            if 'masks' in expected:
                ious.append(iou(expected['masks'][i, 0].numpy() > 0.5, coco.decode(found[fits[0]]['segmentation']) > 0))
    scores = torch.cat([w['scores'] for w in wanted])
    print(f'{what}: {same} of {total} detections are the same, {extra} more were found; scores {scores.min():.3f} to {scores.max():.3f}')
    good = total > 0 and same >= 0.99 * total and extra <= 0.01 * total
    if ious:
        print(f'{what}: masks have a mean IoU of {numpy.mean(ious):.5f}, the least {numpy.min(ious):.4f}')
        good = good and numpy.mean(ious) >= 0.995
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('images')
    parser.add_argument('--count', type=int, default=4)
    parser.add_argument('--size', default='480,800')
    parser.add_argument('--model', choices=['retinanet', 'mask_rcnn'])
    parser.add_argument('--names', choices=['today', 'older'])
    args = parser.parse_args()
    short, most = (int(side) for side in args.size.split(','))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / 'images').mkdir()
        paths = images(args.images, args.count, short, most, folder / 'images')
        models = [args.model] if args.model else ['retinanet', 'mask_rcnn']
        styles = [args.names] if args.names else ['today', 'older']
        good = [compare(name, styles, paths, short, most, folder) for name in models]
    sys.exit(0 if all(good) else 1)


if __name__ == '__main__':
    main()
