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
(IoU 0.9) and score (0.01) do. Two looser measures say how far off the others are. --search GRAPH compares `detect` with itself instead, with another
search for neighbours.

A mask is a grid on its box, and torchvision rounds the box to whole pixels first. Two boxes that are 0.001 pixel apart may round to two sides, and a
small mask moves by a pixel. So masks are compared twice: as they are, and with the file's grid pasted by torchvision on the box of `detect`.

Fails with fewer than --least of the detections the same, with a mask on the same box whose IoU is below 0.999 and that differs in more than pixels
within 1e-4 of the threshold, or if onnx.checker with full shape inference finds a fault.
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
# IoU above, and scores within: as good as the same, close, and the same object.
MATCHED = [(0.9, 0.01), (0.8, 0.05), (0.5, 0.1)]


def sized(folder, count, short, size, out):
    files = sorted(p for p in pathlib.Path(folder).iterdir() if p.suffix.lower() in ('.jpg', '.jpeg', '.png'))[:count]
    for path in files:
        image = Image.open(path).convert('RGB')
        scale = short / min(image.size)
        to = (size[1], size[0]) if size else [round(side * scale) for side in image.size]
        image.resize(to, Image.Resampling.BILINEAR).save(out / (path.stem + '.png'))
    return sorted(out.glob('*.png'))


def random_weights(name, paths, folder, seed, mask_mean):
    import compare_torchvision
    from torchvision.transforms.functional import to_tensor
    sides = [Image.open(p).size for p in paths]
    limits = {'min_size': min(min(s) for s in sides), 'max_size': max(max(s) for s in sides)}
    batch = [to_tensor(Image.open(p)) for p in paths]
    is_first = name.endswith('resnet50_fpn')
    model = compare_torchvision.random_model(name, batch, 0.0 if is_first else 1e-5, seed, mask_mean, **limits)
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
    """The neighbours that vigdet finds for a batch of images, and what they count, block by block."""
    from safetensors.numpy import load_file, save_file
    scale = (1 / (255 * std)).astype(numpy.float32)
    normalised = images.astype(numpy.float32) * scale[:, None, None] + (-mean / std).astype(numpy.float32)[:, None, None]
    save_file({'images': numpy.ascontiguousarray(normalised)}, folder / 'images.safetensors')
    command = [args.program, 'extract_features', model, '--weights', weights, '--input', folder / 'images.safetensors', '--edges', '--device', 'cpu',
               '--out', folder / 'features.safetensors']
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = load_file(folder / 'features.safetensors')
    return {name: value for name, value in found.items() if name.startswith(('edges.', 'weights.'))}


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
            taken = [value.name for value in session.get_inputs()]
            feeds |= {name: value for name, value in neighbours(args, args.given, weights, images, mean, std, folder).items() if name in taken}
        then = time.perf_counter()
        outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))
        seconds.append(time.perf_counter() - then)
        for i, count in enumerate(outputs['counts']):
            found.append({name: outputs[name][i][:count] for name in outputs if name != 'counts'})
    return found, seconds


def iou(a, b):
    either = numpy.logical_or(a, b).sum()
    return numpy.logical_and(a, b).sum() / either if either else 1.0


def whole(box, side):
    """The whole pixels that torchvision pastes a mask's grid on, and how near a side of them is to another pixel."""
    from torchvision.models.detection.roi_heads import expand_boxes
    import torch
    wide = expand_boxes(torch.from_numpy(numpy.float32(box))[None], (side + 2) / side)[0]
    return wide.to(torch.int64).numpy(), (wide - wide.round()).abs().min().item()


def pasted(grid, box, size):
    """A grid of probabilities on its box in an image, as torchvision pastes it."""
    from torchvision.models.detection.roi_heads import paste_masks_in_image
    import torch
    boxes = torch.from_numpy(numpy.float32(box))[None]
    return paste_masks_in_image(torch.from_numpy(grid)[None, None], boxes, size)[0, 0].numpy()


def compare_masks(what, masks):
    """Masks of detections that are the same: (of `detect`, the file's, its grid, the box of `detect`, the file's). Gives whether they are."""
    own, same, turned, good = [], [], 0, True
    for wanted, found, grid, box, other in masks:
        values = pasted(grid, box, wanted.shape)
        apart = (values > 0.5) != wanted
        own.append(iou(wanted, found))
        same.append(iou(wanted, values > 0.5))
        worst = numpy.abs(values[apart] - 0.5).max(initial=0.0)
        good = good and (same[-1] >= 0.999 or worst < 1e-4)
        frames, edges = zip(*(whole(b, len(grid)) for b in (box, other)))
        turned += (frames[0] != frames[1]).any()
        if own[-1] < 0.999:
            print(f'  IoU {own[-1]:.4f}, on the same box {same[-1]:.5f} ({apart.sum()} pixels within {worst:.1e} of the threshold); {wanted.sum()} pixels; '
                  f'boxes {numpy.round(box, 4)} and {numpy.round(other, 4)}, {edges[0]:.5f} and {edges[1]:.5f} from rounding to other pixels'
                  f'{", as they do" if (frames[0] != frames[1]).any() else ""}')
    less = [i for i, value in enumerate(own) if value < 0.999]
    print(f'{what}: {len(own)} masks have a mean IoU of {numpy.mean(own):.6f}, the least {numpy.min(own):.5f}; {len(less)} are below 0.999; '
          f'{turned} have boxes that round to other pixels')
    print(f'{what}: on the same box the mean IoU is {numpy.mean(same):.6f}, the least {numpy.min(same):.5f}')
    return good


def box_iou(a, b):
    sides = numpy.minimum(a[2:], b[2:]) - numpy.maximum(a[:2], b[:2])
    shared = max(sides[0], 0) * max(sides[1], 0)
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / either if either else 1.0


def by_name(entry):
    """What `detect` found in an image, as a file's outputs are."""
    boxes = numpy.array([d['bbox'] for d in entry['detections']], numpy.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {'boxes': boxes, 'scores': [d['score'] for d in entry['detections']], 'labels': [d['category_id'] for d in entry['detections']]}


def compare(what, wanted, found, ids):
    total = same = more = 0
    near = dict.fromkeys(MATCHED, 0)
    worst, masks = [0.0, 0.0], []
    for entry, ours in zip(wanted, found, strict=True):
        free = [True] * len(ours['scores'])
        total += len(entry['detections'])
        more += max(0, len(free) - len(entry['detections']))
        for d in entry['detections']:
            x, y, w, h = d['bbox']
            box = numpy.array([x, y, x + w, y + h])
            of_class = [j for j in range(len(free)) if ids[ours['labels'][j]] == d['category_id']]
            alike = [(box_iou(ours['boxes'][j], box), abs(ours['scores'][j] - d['score'])) for j in of_class]
            for least, most in MATCHED:
                near[least, most] += any(overlap > least and apart < most for overlap, apart in alike)
            fits = [j for j in of_class if free[j] and abs(ours['scores'][j] - d['score']) < 1e-4 and numpy.abs(ours['boxes'][j] - box).max() < 0.05]
            if not fits:
                continue
            same += 1
            free[fits[0]] = False
            worst = [max(worst[0], numpy.abs(ours['boxes'][fits[0]] - box).max()), max(worst[1], abs(ours['scores'][fits[0]] - d['score']))]
            if 'masks' in ours:
                mask = coco.decode(d['segmentation']) > 0
                inside = ours['masks'][fits[0]][:mask.shape[0], :mask.shape[1]]
                masks.append((mask, inside, ours['mask_grids'][fits[0]], box, ours['boxes'][fits[0]]))
    for (least, most), count in near.items():
        print(f'{what}: {count} of {total} are matched ({100 * count / max(total, 1):.2f}%; IoU above {least}, scores within {most})')
    scores = [d['score'] for entry in wanted for d in entry['detections']]
    line = f'{what}: {same} of {total} detections are the same ({100 * same / max(total, 1):.2f}%; boxes within {worst[0]:.4f} pixel, scores within '
    print(line + f'{worst[1]:.1e}), {more} more were found; scores {min(scores):.3f} to {max(scores):.4f}')
    good = compare_masks(what, masks) if masks else True
    sys.stdout.flush()
    return same / max(total, 1), good


def with_visible_graphs(state):
    """Random weights of GreedyViG or AdaptViG whose branches count: they start with scales of 1e-5, and with gates that are closed."""
    generator = numpy.random.default_rng(0)
    for name, value in state.items():
        if 'layer_scale' in name:
            state[name] = generator.uniform(0.1, 0.6, value.shape).astype(numpy.float32)
        elif name.endswith('temperature'):
            channels = state[name.replace('temperature', 'nn.0.weight')].shape[0]
            state[name] = numpy.full(value.shape, -0.5 * channels, numpy.float32)
    return state


def turned(model, pixels, wanted):
    """How many of GreedyViG's neighbours count in the file and not in vigdet, or the other way, of how many."""
    graph = onnx.load(model)
    names = [node.output[0] for node in graph.graph.node if node.op_type == 'Less' and '.graph.' in node.name]
    graph.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None) for name in names)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=['CPUExecutionProvider'])
    blocks = {}
    for name, near in zip(names, session.run(names, {'images': pixels})):
        blocks.setdefault(name.rsplit('/', 1)[0], []).append(near.reshape(len(near), -1))
    # A map of one step has no neighbours, and no nodes for them.
    counted = (wanted[f'weights.{i}'] > 0 for i in range(len(wanted)) if wanted.get(f'weights.{i}', numpy.zeros(0)).size)
    apart = [numpy.stack(near, 2) != count for near, count in zip(blocks.values(), counted, strict=True)]
    return sum(a.sum() for a in apart), sum(a.size for a in apart)


def compare_classifier(args, name, paths, folder):
    """Class scores of a classifier with random weights, beside those of `extract_features`."""
    from safetensors.numpy import load_file, save_file
    model, weights, images = folder / f'{name}.onnx', folder / f'{name}.safetensors', folder / 'images.safetensors'
    pixels = numpy.stack([padded(path, None)[0] for path in paths])
    save_file({'images': numpy.zeros((1, 3, 64, 64), numpy.float32)}, images)
    features = [args.program, 'extract_features', name, '--device', 'cpu', '--input', images, '--out', folder / 'features.safetensors']
    run = lambda command: subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run([*features, '--save', weights])
    if name.startswith(('greedyvig', 'adaptvig')):
        save_file(with_visible_graphs(load_file(weights)), weights)
    size = ['--size', f'{pixels.shape[2]},{pixels.shape[3]}', '--batch', len(paths)] if args.size else ['--dynamic']
    given = ['--neighbours-as-inputs'] if args.given else []
    run([args.program, 'export', '--model', name, '--weights', weights, '--out', model, *size, *given, *args.export])
    onnx.checker.check_model(str(model), full_check=True)
    session = onnxruntime.InferenceSession(str(model), providers=['CPUExecutionProvider'])
    mean, std = (numpy.array(json.loads(session.get_modelmeta().custom_metadata_map[key]), numpy.float32)[:, None, None] for key in ('mean', 'std'))
    save_file({'images': numpy.ascontiguousarray((pixels / numpy.float32(255) - mean) / std)}, images)
    run([*features, '--weights', weights, *(['--edges'] if args.given or name.startswith('greedyvig') else [])])
    wanted = load_file(folder / 'features.safetensors')
    taken = [value.name for value in session.get_inputs()]
    feeds = {name: value for name, value in (wanted | {'images': pixels}).items() if name in taken}
    if name.startswith('greedyvig') and args.size and not args.given:
        print('%s: of its neighbours, %d of %d turned' % (name, *turned(model, pixels, wanted)))
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))['logits']
    wanted = wanted['logits']
    worst = numpy.abs(found - wanted).max() / wanted.std()
    print(f'{name}, {args.size or "any size"}{", neighbours given" if args.given else ""}: class scores within {worst:.1e} of their deviation', flush=True)
    return worst


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('images')
    parser.add_argument('--torchvision')
    parser.add_argument('--seed', type=int, default=0, help='of random weights')
    parser.add_argument('--mask-mean', type=float, default=4.0, help='mean logit of random masks: 4 fills most of a box, 0 is noise')
    parser.add_argument('--weights', type=pathlib.Path)
    parser.add_argument('--classifier', action='append', default=[], help='a classifier with random weights; scores must agree to 1e-3')
    parser.add_argument('--count', type=int, default=20)
    parser.add_argument('--short', type=int, default=480)
    parser.add_argument('--size')
    parser.add_argument('--dynamic', action='store_true', help='with --size: a model for any size all the same')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--given')
    parser.add_argument('--search', choices=['dense', 'chunked'], help="no file: `detect` with this search beside its own")
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
        weights = args.weights or random_weights(args.torchvision, paths, folder, args.seed, args.mask_mean)
        model, result = folder / 'model.onnx', folder / 'found.json'
        sides = [Image.open(p).size for p in paths]
        limits = f'{min(min(s) for s in sides)},{max(max(s) for s in sides)}'

        def detect(*flags):
            command = [args.program, 'detect', '--weights', weights, '--device', 'cpu', '--json', result, '--size', limits, '--score-threshold', args.score, *flags]
            subprocess.run([str(c) for c in [*command, *paths]], check=True, stdout=subprocess.DEVNULL)
            return json.loads(result.read_text())

        if args.search:
            others = [by_name(entry) for entry in detect('--set', f'graph={args.search}')]
            share, _ = compare(f'{args.weights.name}, graph={args.search}', detect(), others, {i: i for other in others for i in other['labels']})
            sys.exit(0 if share >= args.least else 1)
        fixed = args.size and not args.dynamic
        size = ['--size', f'{args.size[0]},{args.size[1]}', '--batch', args.batch] if fixed else ['--dynamic']
        given = ['--neighbours-as-inputs'] if args.given else []
        command = [args.program, 'export', '--weights', weights, '--out', model, '--set', f'model.test.score={args.score}', *size, *given, *args.export]
        subprocess.run([str(c) for c in command], check=True)
        onnx.checker.check_model(str(model), full_check=True)
        session = onnxruntime.InferenceSession(str(model), providers=['CPUExecutionProvider'])
        wanted = detect()
        found, seconds = run(args, session, weights, paths, folder)
        ids = [entry[0] for entry in json.loads(session.get_modelmeta().custom_metadata_map['classes'])]
        what = f'{args.torchvision or args.weights.name}, {args.size or "own sizes"}{"" if fixed else " (any size)"}, batch {args.batch}{", neighbours given" if args.given else ""}'
        share, masks = compare(what, wanted, found, ids)
        print(f'{what}: onnxruntime took {min(seconds):.2f} s for a batch at best')
    sys.exit(0 if share >= args.least and masks else 1)


if __name__ == '__main__':
    main()
