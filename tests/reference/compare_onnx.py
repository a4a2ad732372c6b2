"""Compares exported ONNX files, run by onnxruntime on the CPU, with `vigdet detect`.

    cargo build --bin vigdet
    python tests/reference/compare_onnx.py IMAGES --torchvision retinanet_resnet50_fpn [--size H,W]
    python tests/reference/compare_onnx.py IMAGES --classifier swin_t [--size H,W]
    python tests/reference/compare_onnx.py IMAGES --weights best.safetensors [--size H,W] [--given pvig_ti] [--batch N]

(torch 2.13, torchvision 0.28, onnx 1.23, onnxruntime 1.32, pycocotools, numpy, pillow, safetensors). IMAGES is a folder of photographs. Without
--size the model takes any size: the images keep their shape, with a shorter side of --short pixels, and are padded to multiples of 32. With it they
are stretched to H x W. Either way they are saved as PNG first, so that resizing is left out of the comparison. --torchvision makes a detector with
random calibrated weights as compare_torchvision.py does. --given MODEL gives each graph block the neighbours that vigdet found (fixed sizes alone).
--batch N runs N images of one size at a time. A detection is the same if class, box (0.05 pixel) and score (1e-4) agree; it is matched if class, box
(IoU 0.9) and score (0.01) do. Fails with fewer than --least of them the same, or with masks whose mean IoU is below 0.999, or if onnx.checker with
full shape inference finds a fault.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy
import onnx
import onnxruntime
from PIL import Image
from pycocotools import mask as coco

ROOT = pathlib.Path(__file__).parents[2]


def sized(folder, count, short, size, out):
    files = sorted(p for p in pathlib.Path(folder).iterdir() if p.suffix.lower() in ('.jpg', '.jpeg', '.png'))[:count]
    for path in files:
        image = Image.open(path).convert('RGB')
        scale = short / min(image.size)
        to = (size[1], size[0]) if size else [round(side * scale) for side in image.size]
        image.resize(to, Image.Resampling.BILINEAR).save(out / (path.stem + '.png'))
    return sorted(out.glob('*.png'))


def random_weights(name, paths, folder):
    import compare_torchvision
    from torchvision.transforms.functional import to_tensor
    sides = [Image.open(p).size for p in paths]
    limits = {'min_size': min(min(s) for s in sides), 'max_size': max(max(s) for s in sides)}
    batch = [to_tensor(Image.open(p)) for p in paths]
    is_first = name.endswith('resnet50_fpn')
    model = compare_torchvision.random_model(name, batch, 0.0 if is_first else 1e-5, **limits)
    weights = folder / f'{name}.pth'
    compare_torchvision.save(model, True, is_first, weights)
    return weights


def padded(path, size):
    image = numpy.array(Image.open(path))
    height, width = size or [-(-side // 32) * 32 for side in image.shape[:2]]
    canvas = numpy.zeros((height, width, 3), numpy.uint8)
    canvas[:image.shape[0], :image.shape[1]] = image
    return canvas.transpose(2, 0, 1), image.shape[:2]


def neighbours(args, model, weights, images, mean, std, folder):
    """The neighbours that vigdet finds for a batch of images, block by block."""
    from safetensors.numpy import load_file, save_file
    scale = (1 / (255 * std)).astype(numpy.float32)
    normalised = images.astype(numpy.float32) * scale[:, None, None] + (-mean / std).astype(numpy.float32)[:, None, None]
    save_file({'images': numpy.ascontiguousarray(normalised)}, folder / 'images.safetensors')
    command = [args.program, 'extract_features', model, '--weights', weights, '--input', folder / 'images.safetensors', '--edges', '--device', 'cpu',
               '--out', folder / 'features.safetensors']
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = load_file(folder / 'features.safetensors')
    return {name: value for name, value in found.items() if name.startswith('edges.')}


def run(args, session, weights, paths, folder):
    """Detections of onnxruntime for each image, and seconds for each batch."""
    metadata = session.get_modelmeta().custom_metadata_map
    mean, std = (numpy.array(json.loads(metadata[key]), numpy.float32) for key in ('mean', 'std'))
    found, seconds = [], []
    for start in range(0, len(paths), args.batch):
        parts = [padded(path, args.size) for path in paths[start:start + args.batch]]
        images = numpy.stack([part[0] for part in parts])
        feeds = {'images': images, 'sizes': numpy.array([part[1] for part in parts], numpy.int64)}
        if args.given:
            feeds |= neighbours(args, args.given, weights, images, mean, std, folder)
        then = time.perf_counter()
        outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))
        seconds.append(time.perf_counter() - then)
        for i, count in enumerate(outputs['counts']):
            found.append({name: outputs[name][i][:count] for name in outputs if name != 'counts'})
    return found, seconds


def iou(a, b):
    either = numpy.logical_or(a, b).sum()
    return numpy.logical_and(a, b).sum() / either if either else 1.0


def box_iou(a, b):
    sides = numpy.minimum(a[2:], b[2:]) - numpy.maximum(a[:2], b[:2])
    shared = max(sides[0], 0) * max(sides[1], 0)
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / either if either else 1.0


def compare(what, wanted, found, ids):
    total = same = more = near = 0
    worst, ious = [0.0, 0.0], []
    for entry, ours in zip(wanted, found, strict=True):
        free = [True] * len(ours['scores'])
        total += len(entry['detections'])
        more += max(0, len(free) - len(entry['detections']))
        for d in entry['detections']:
            x, y, w, h = d['bbox']
            box = numpy.array([x, y, x + w, y + h])
            alike = [j for j in range(len(free)) if ids[ours['labels'][j]] == d['category_id'] and abs(ours['scores'][j] - d['score']) < 0.01
                     and box_iou(ours['boxes'][j], box) > 0.9]
            near += bool(alike)
            fits = [j for j in range(len(free)) if free[j] and ids[ours['labels'][j]] == d['category_id']
                    and abs(ours['scores'][j] - d['score']) < 1e-4 and numpy.abs(ours['boxes'][j] - box).max() < 0.05]
            if not fits:
                continue
            same += 1
            free[fits[0]] = False
            worst = [max(worst[0], numpy.abs(ours['boxes'][fits[0]] - box).max()), max(worst[1], abs(ours['scores'][fits[0]] - d['score']))]
            if 'masks' in ours:
                mask = coco.decode(d['segmentation']) > 0
                ious.append(iou(mask, ours['masks'][fits[0]][:mask.shape[0], :mask.shape[1]]))
    print(f'{what}: {near} of {total} are matched ({100 * near / max(total, 1):.2f}%; IoU above 0.9, scores within 0.01)')
    scores = [d['score'] for entry in wanted for d in entry['detections']]
    line = f'{what}: {same} of {total} detections are the same ({100 * same / max(total, 1):.2f}%; boxes within {worst[0]:.4f} pixel, scores within '
    print(line + f'{worst[1]:.1e}), {more} more were found; scores {min(scores):.3f} to {max(scores):.4f}')
    if ious:
        print(f'{what}: masks have a mean IoU of {numpy.mean(ious):.6f}, the least {numpy.min(ious):.5f}')
    sys.stdout.flush()
    return same / max(total, 1), numpy.mean(ious) if ious else 1.0


def compare_classifier(args, name, paths, folder):
    """Class scores of a classifier with random weights, beside those of `extract_features`."""
    from safetensors.numpy import load_file, save_file
    model, weights, images = folder / f'{name}.onnx', folder / f'{name}.safetensors', folder / 'images.safetensors'
    pixels = numpy.stack([padded(path, None)[0] for path in paths])
    save_file({'images': numpy.zeros((1, 3, 64, 64), numpy.float32)}, images)
    features = [args.program, 'extract_features', name, '--device', 'cpu', '--input', images, '--out', folder / 'features.safetensors']
    run = lambda command: subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run([*features, '--save', weights])
    size = ['--size', f'{pixels.shape[2]},{pixels.shape[3]}', '--batch', len(paths)] if args.size else ['--dynamic']
    given = ['--neighbours-as-inputs'] if args.given else []
    run([args.program, 'export', '--model', name, '--weights', weights, '--out', model, *size, *given, *args.export])
    onnx.checker.check_model(str(model), full_check=True)
    session = onnxruntime.InferenceSession(str(model), providers=['CPUExecutionProvider'])
    mean, std = (numpy.array(json.loads(session.get_modelmeta().custom_metadata_map[key]), numpy.float32)[:, None, None] for key in ('mean', 'std'))
    save_file({'images': numpy.ascontiguousarray((pixels / numpy.float32(255) - mean) / std)}, images)
    run([*features, '--weights', weights, *(['--edges'] if args.given else [])])
    wanted = load_file(folder / 'features.safetensors')
    feeds = {name: value for name, value in wanted.items() if name.startswith('edges.')} | {'images': pixels}
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))['logits']
    wanted = wanted['logits']
    worst = numpy.abs(found - wanted).max() / wanted.std()
    print(f'{name}, {args.size or "any size"}{", neighbours given" if args.given else ""}: class scores within {worst:.1e} of their deviation', flush=True)
    return worst


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('images')
    parser.add_argument('--torchvision')
    parser.add_argument('--weights', type=pathlib.Path)
    parser.add_argument('--classifier', action='append', default=[], help='a classifier with random weights; scores must agree to 1e-3')
    parser.add_argument('--count', type=int, default=20)
    parser.add_argument('--short', type=int, default=480)
    parser.add_argument('--size')
    parser.add_argument('--dynamic', action='store_true', help='with --size: a model for any size all the same')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--given')
    parser.add_argument('--score', default='0.05')
    parser.add_argument('--least', type=float, default=1.0)
    parser.add_argument('--export', action='append', default=[], help='more arguments of `vigdet export`')
    parser.add_argument('--program', default=ROOT / 'target/debug/vigdet')
    args = parser.parse_args()
    args.size = [int(side) for side in args.size.split(',')] if args.size else None
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / 'images').mkdir()
        paths = sized(args.images, args.count, args.short, args.size, folder / 'images')
        if args.classifier:
            worst = [compare_classifier(args, name, paths, folder) for name in args.classifier]
            sys.exit(0 if max(worst) < 1e-3 else 1)
        weights = args.weights or random_weights(args.torchvision, paths, folder)
        model, result = folder / 'model.onnx', folder / 'found.json'
        fixed = args.size and not args.dynamic
        size = ['--size', f'{args.size[0]},{args.size[1]}', '--batch', args.batch] if fixed else ['--dynamic']
        given = ['--neighbours-as-inputs'] if args.given else []
        command = [args.program, 'export', '--weights', weights, '--out', model, '--set', f'model.test.score={args.score}', *size, *given, *args.export]
        subprocess.run([str(c) for c in command], check=True)
        onnx.checker.check_model(str(model), full_check=True)
        session = onnxruntime.InferenceSession(str(model), providers=['CPUExecutionProvider'])
        sides = [Image.open(p).size for p in paths]
        limits = f'{min(min(s) for s in sides)},{max(max(s) for s in sides)}'
        command = [args.program, 'detect', '--weights', weights, '--device', 'cpu', '--json', result, '--size', limits, '--score-threshold', args.score]
        subprocess.run([str(c) for c in [*command, *paths]], check=True, stdout=subprocess.DEVNULL)
        found, seconds = run(args, session, weights, paths, folder)
        ids = [entry[0] for entry in json.loads(session.get_modelmeta().custom_metadata_map['classes'])]
        what = f'{args.torchvision or args.weights.name}, {args.size or "own sizes"}{"" if fixed else " (any size)"}, batch {args.batch}{", neighbours given" if args.given else ""}'
        share, masks = compare(what, json.loads(result.read_text()), found, ids)
        print(f'{what}: onnxruntime took {min(seconds):.2f} s for a batch at best')
    sys.exit(0 if share >= args.least and masks >= 0.999 else 1)


if __name__ == '__main__':
    main()
