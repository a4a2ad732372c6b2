"""Compares vigdet's detections with torchvision's: ResNet-50 RetinaNet and Mask R-CNN with the same random weights on real images.

    cargo build --bin detect
    python tests/reference/compare_torchvision.py IMAGES [--count 4] [--size 480,800] [--model retinanet|mask_rcnn]

(torch 2.13, torchvision 0.28, pycocotools, numpy, pillow). IMAGES is a folder of photographs. Each is resized to the size that the detectors would
choose and saved as PNG, so that resizing is left out of the comparison. The weights are random, with batch norms calibrated on the images and
the last layers scaled so that detections are many and confident. A detection is the same if class, box (0.1 pixel) and score (1e-3) agree. Fails below
99%, or with masks whose mean IoU is below 0.995.
"""
import argparse
import json
import pathlib
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


def iou(a, b):
    both = numpy.logical_and(a, b).sum()
    either = numpy.logical_or(a, b).sum()
    return both / either if either else 1.0


def compare(name, paths, short, most, folder):
    batch = [to_tensor(Image.open(p)) for p in paths]
    model = random_model(name, batch, short, most)
    weights = folder / 'model.pth'
    torch.save(model.state_dict(), weights)
    with torch.no_grad():
        wanted = [model([image])[0] for image in batch]
    result = folder / 'found.json'
    config = {'mask_rcnn': 'mask_rcnn_resnet50_fpn_torchvision', 'retinanet': 'retinanet_resnet50_fpn_torchvision'}[name]
    subprocess.run([ROOT / 'target/debug/detect', name, '--config', ROOT / f'configs/{config}.json', '--weights', weights, '--size',
                    f'{short},{most}', '--device', 'cpu', '--json', result, *paths], check=True, stdout=subprocess.DEVNULL)
    total = same = extra = 0
    ious = []
    for expected, entry in zip(wanted, json.loads(result.read_text())):
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
    print(f'{name}: {same} of {total} detections are the same, {extra} more were found; scores {scores.min():.3f} to {scores.max():.3f}')
    good = total > 0 and same >= 0.99 * total and extra <= 0.01 * total
    if ious:
        print(f'{name}: masks have a mean IoU of {numpy.mean(ious):.5f}, the least {numpy.min(ious):.4f}')
        good = good and numpy.mean(ious) >= 0.995
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('images')
    parser.add_argument('--count', type=int, default=4)
    parser.add_argument('--size', default='480,800')
    parser.add_argument('--model', choices=['retinanet', 'mask_rcnn'])
    args = parser.parse_args()
    short, most = (int(side) for side in args.size.split(','))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / 'images').mkdir()
        paths = images(args.images, args.count, short, most, folder / 'images')
        good = [compare(name, paths, short, most, folder) for name in ([args.model] if args.model else ['retinanet', 'mask_rcnn'])]
    sys.exit(0 if all(good) else 1)


if __name__ == '__main__':
    main()
