"""Compares vigdet's detections with torchvision's: its eight detectors of COCO with the same random weights on real images.

    cargo build --bin detect
    python tests/reference/compare_torchvision.py IMAGES [--count 4] [--few 4] [--size 480,800|own] [--model NAME]
        [--seed 1]

(torch 2.13, torchvision 0.28, pycocotools, numpy, pillow). IMAGES is a folder of photographs. Each is resized to the size that the detectors would
choose (`own`: the detector's own) and saved as PNG, so that resizing is left out of the comparison. The weights are random, with batch norms
calibrated on the images and the last layers scaled so that detections are many and no score is saturated. They are saved as torchvision's users and
its published files have them: `trained` has the names of today and the counters of norms that learned; `published` has, in the first generation,
the older names of heads and pyramid, no counters, epsilon 0 and the file format of before PyTorch 1.6. vigdet gets the published file alone, for
all images; and for a few, the trained file alone, and the published one with its config. A detection is the same if class, box (0.1 pixel) and score
(1e-3) agree. Fails below 99%, or with masks whose mean IoU is below 0.995, or with a saturated score.
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
from torchvision.models import detection
from torchvision.transforms.functional import to_tensor

ROOT = pathlib.Path(__file__).parents[2]
MODELS = ['retinanet_resnet50_fpn', 'retinanet_resnet50_fpn_v2', 'fasterrcnn_resnet50_fpn', 'fasterrcnn_resnet50_fpn_v2', 'maskrcnn_resnet50_fpn',
          'maskrcnn_resnet50_fpn_v2', 'fasterrcnn_mobilenet_v3_large_fpn', 'fasterrcnn_mobilenet_v3_large_320_fpn']
SATURATED = 0.9999


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


def norms(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def calibrate(module, run):
    """The mean of the batch statistics of what `run` shows it becomes a module's running ones."""
    for norm in norms(module):
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    run()
    module.eval()


def random_model(name, batch, eps, seed, mask_mean=0.0, **sizes):
    """A calibrated detector. Logits of masks have the deviation 2 and this mean: from 4 on masks fill their boxes."""
    torch.manual_seed(seed)
    model = getattr(detection, name)(weights=None, weights_backbone=None, **sizes).eval()

    shown = batch[::max(1, len(batch) // 4)]

    def run():
        for image in shown:
            model([image])

    def show_backbone():
        for image in batch:
            model.backbone(model.transform([image])[0].tensors)

    with torch.no_grad():
        # Weights of norms that are all 1 would hide where they belong.
        for norm in norms(model):
            norm.weight.copy_(0.75 + 0.5 * torch.rand_like(norm.weight))
            norm.bias.copy_(0.1 * torch.randn_like(norm.bias))
        calibrate(model.backbone, show_backbone)
        # 0 is refused in training.
        for norm in norms(model):
            norm.eps = eps
        if name.startswith('retinanet'):
            # The five hundred best of an image get scores above 1/2. By mean and deviation alone, hundreds of scores came within 1e-6 of one,
            # and rounding alone decided which of them made the best 300 of an image.
            scale_outputs(model.head.classification_head.cls_logits, 1.0, 0.0, run, rank=500 * len(shown))
            scale_outputs(model.head.regression_head.bbox_reg, 0.3, 0.0, run)
        else:
            scale_outputs(model.rpn.head.cls_logits, 2.0, -2.0, run)
            scale_outputs(model.rpn.head.bbox_pred, 0.2, 0.0, run)
            calibrate(model.roi_heads.box_head, run)
            # Scores that are far apart, and none saturated: where hundreds are within 0.1, rounding alone decides which
            # are an image's best 100.
            scale_outputs(model.roi_heads.box_predictor.cls_score, 1.2 if 'mobilenet' in name else 2.0, 0.0, run)
            scale_outputs(model.roi_heads.box_predictor.bbox_pred, 0.5, 0.0, run)
            if model.roi_heads.has_mask():
                calibrate(model.roi_heads.mask_head, run)
                scale_outputs(model.roi_heads.mask_predictor.mask_fcn_logits, 2.0, mask_mean, run)
    return model


def older_names(state):
    """The state dict under the names of torchvision's published files; torchvision knows them as long as they come without versions."""
    def rename(name):
        name = re.sub(r'(rpn\.head\.conv)\.0\.0\.', r'\1.', name)
        name = re.sub(r'(fpn\.(?:inner|layer)_blocks\.\d+)\.0\.', r'\1.', name)
        name = re.sub(r'((?:classification|regression)_head\.conv)\.(\d+)\.0\.', lambda m: f'{m[1]}.{2 * int(m[2])}.', name)
        return re.sub(r'mask_head\.(\d+)\.0\.', lambda m: f'mask_head.mask_fcn{int(m[1]) + 1}.', name)
    return {rename(name): value for name, value in state.items()}


def save(model, is_published, is_first, path):
    state = model.state_dict()
    if is_published and is_first:
        # As its published files, which have no step counters either.
        state = {name: value for name, value in older_names(state).items() if not name.endswith('num_batches_tracked')}
        # torchvision itself takes them for what they are.
        model.load_state_dict(state)
    elif is_published and 'mobilenet' in str(path):
        state = {name: value for name, value in state.items() if not name.endswith('num_batches_tracked')}
    torch.save(state, path, _use_new_zipfile_serialization=not is_published)


def detect(program, weights, paths, result, flags):
    subprocess.run([program, '--weights', weights, '--device', 'cpu', '--json', result, *flags, *paths], check=True,
                   stdout=subprocess.DEVNULL)
    return json.loads(result.read_text())


def compare(name, args, folder):
    is_first = name.endswith('resnet50_fpn')
    own = (320, 640) if '320' in name else (800, 1333)
    short, most = own if args.size == 'own' else (int(side) for side in args.size.split(','))
    (folder / 'images').mkdir()
    paths = images(args.images, args.count, short, most, folder / 'images')
    batch = [to_tensor(Image.open(p)) for p in paths]
    size = [] if args.size == 'own' else ['--size', args.size]
    sizes = {} if args.size == 'own' else {'min_size': short, 'max_size': most}
    good = True
    config = ['--config', name.replace('rcnn', '_rcnn') + '_torchvision']
    for style, runs in (('trained', [(args.few, [])]), ('published', [(args.count, []), (args.few, config)])):
        model = random_model(name, batch, 0.0 if is_first and style == 'published' else 1e-5, args.seed, **sizes)
        with torch.no_grad():
            wanted = [model([image])[0] for image in batch[:max(count for count, _ in runs)]]
        weights, result = folder / f'{name}-{style}.pth', folder / 'found.json'
        save(model, style == 'published', is_first, weights)
        for count, flags in runs:
            found = detect(args.program, weights, paths[:count], result, [*size, *flags])
            what = f'{name}, {style}, {"with its config" if flags else "the file alone"}'
            good = same_detections(what, wanted[:count], found) and good
    return good


def iou(a, b):
    both = numpy.logical_and(a, b).sum()
    either = numpy.logical_or(a, b).sum()
    return both / either if either else 1.0


def overlap(box, others):
    """IoU of a box with each of others, as x1, y1, x2, y2."""
    width, height = (numpy.minimum(box[i + 2], others[:, i + 2]) - numpy.maximum(box[i], others[:, i]) for i in range(2))
    both = width.clip(0) * height.clip(0)
    area = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1]) + (box[2] - box[0]) * (box[3] - box[1])
    return both / (area - both)


def lost(box, label, score, found, boxes):
    """What could have turned a decision about a detection that vigdet does not have: all margins that are near zero."""
    scores = numpy.array([d['score'] for d in found])
    others = overlap(box, boxes)
    alike = numpy.array([d['category_id'] == label for d in found])
    nearest = numpy.where(alike, others, 0).argmax()
    return (f'class {label}, score {score:.6f}, box {box.round(2).tolist()} is missing; the last score is {scores.min():.6f}; nearest of its class: IoU '
            f'{others[nearest]:.6f}, score {scores[nearest]:.6f}, box {boxes[nearest].round(2).tolist()}')


def same_detections(what, wanted, entries):
    total = same = extra = 0
    ious = []
    worst = [0.0, 0.0]
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
                print(f'  {entry["file"] if "file" in entry else ""}: {lost(box, int(label), float(score), found, boxes)}')
                continue
            same += 1
            free[fits[0]] = False
            worst = [max(worst[0], numpy.abs(boxes[fits[0]] - box).max()), max(worst[1], abs(found[fits[0]]['score'] - score.item()))]
            if 'masks' in expected:
                ious.append(iou(expected['masks'][i, 0].numpy() > 0.5, coco.decode(found[fits[0]]['segmentation']) > 0))
    scores = torch.cat([w['scores'] for w in wanted])
    print(f'{what}: {same} of {total} detections are the same (boxes within {worst[0]:.4f} pixel, scores within {worst[1]:.1e}), {extra} more were '
          f'found; scores {scores.min():.3f} to {scores.max():.4f}', flush=True)
    good = total > 0 and same >= 0.99 * total and extra <= 0.01 * total and scores.max() < SATURATED
    if ious:
        print(f'{what}: masks have a mean IoU of {numpy.mean(ious):.5f}, the least {numpy.min(ious):.4f}', flush=True)
        good = good and numpy.mean(ious) >= 0.995
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('images')
    parser.add_argument('--count', type=int, default=4)
    parser.add_argument('--size', default='480,800')
    parser.add_argument('--model', choices=MODELS, action='append')
    parser.add_argument('--few', type=int, default=4)
    parser.add_argument('--seed', type=int, default=1, help='of the weights')
    parser.add_argument('--program', default=ROOT / 'target/debug/detect')
    args = parser.parse_args()
    good = []
    for name in args.model or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            good.append(compare(name, args, pathlib.Path(folder)))
    sys.exit(0 if all(good) else 1)


if __name__ == '__main__':
    main()
