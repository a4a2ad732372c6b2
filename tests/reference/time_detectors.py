"""Times and measures vigdet's detectors beside torchvision's ResNet-50 ones: inference and a training step of one image, each in a process of its own.

    cargo build --bin detect --bin train_det
    python tests/reference/time_detectors.py [--models retinanet,mask_rcnn] [--backbones pvig_s,resnet50] [--parts training,inference]
        [--size 800x1280] [--steps 3] [--pictures 3] [--threads 2] [--only vigdet] [--set KEY=VALUE]...

Weights are random, 80 classes (91 outputs in torchvision), images are generated with eight objects each. A training step is forward, backward and
AdamW's update at a batch of one; the fastest of --steps counts. Inference is the mean over --pictures, from the file to boxes and masks of the
image. For it the layers that say class and box have no weights but their biases: RetinaNet sees nothing, and Mask R-CNN, where any score
counts, has 100 detections with their masks. Memory is the most that the process held. Needs torch, torchvision, pycocotools, safetensors, numpy and
pillow.
"""
import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
from PIL import Image

ROOT = Path(__file__).parents[2]
OBJECTS = 8

# Torch is loaded in processes of their own: the memory that Linux reports for a child begins with its parent's.
SILENCE = '''
import sys
from safetensors import safe_open
from safetensors.torch import load_file, save_file
weights = load_file(sys.argv[1])
for name, value in weights.items():
    if name.endswith(('bbox_reg.weight', 'bbox_pred.weight', 'cls_score.weight', 'classification_head.cls_logits.weight')):
        value.zero_()
# A checksum of other numbers would not fit.
metadata = safe_open(sys.argv[1], 'pt').metadata()
save_file(weights, sys.argv[2], {key: value for key, value in metadata.items() if key not in ('crc32c', 'writer')})
'''

TORCHVISION = '''
import json, pathlib, sys, time, numpy, torch
from PIL import Image
from torchvision.models import detection
from torchvision.transforms.functional import to_tensor
name, part, folder, repeat, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
torch.manual_seed(0)
folder = pathlib.Path(folder)
options = {'retinanet': {}, 'maskrcnn': {'box_score_thresh': 0.0}}[name]
model = getattr(detection, f'{name}_resnet50_fpn')(weights=None, weights_backbone=None, **options)
read = lambda file: to_tensor(Image.open(folder / 'train2017' / file))
said = json.loads((folder / 'annotations/instances_train2017.json').read_text())
if part == 'inference':
    model.eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith(('bbox_reg.weight', 'bbox_pred.weight', 'cls_score.weight', 'classification_head.cls_logits.weight')):
                value.zero_()
        start = time.perf_counter()
        for i in range(int(repeat)):
            found = model([read(said['images'][i % len(said['images'])]['file_name'])])
            assert len(found[0]['scores']) == (100 if name == 'maskrcnn' else 0), len(found[0]['scores'])
    print((time.perf_counter() - start) / int(repeat))
else:
    from pycocotools import mask
    targets = []
    for image in said['images']:
        own = [a for a in said['annotations'] if a['image_id'] == image['id']]
        boxes = torch.tensor([a['bbox'] for a in own])
        boxes[:, 2:] += boxes[:, :2]
        pixels = [mask.decode(mask.merge(mask.frPyObjects(a['segmentation'], image['height'], image['width']))) for a in own]
        targets.append({'boxes': boxes, 'labels': torch.tensor([a['category_id'] for a in own]),
                        'masks': torch.from_numpy(numpy.array(pixels))})
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-6)
    best = float('inf')
    for i in range(int(repeat)):
        which = i % len(targets)
        start = time.perf_counter()
        sum(model([read(said['images'][which]['file_name'])], [targets[which]]).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        best = min(best, time.perf_counter() - start)
    print(best)
'''


def make_data(folder, height, width):
    """Two images of blocks, with ellipses as objects, in COCO's layout."""
    random = numpy.random.default_rng(0)
    (folder / 'train2017').mkdir()
    (folder / 'annotations').mkdir()
    images, annotations = [], []
    for image in (1, 2):
        blocks = random.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=numpy.uint8)
        Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)[:height, :width]).save(folder / f'train2017/{image}.png')
        images.append({'id': image, 'file_name': f'{image}.png', 'height': height, 'width': width})
        for i in range(OBJECTS):
            # A third of COCO's objects is small, a third large.
            a, b = (min(height, width) * share / 2 for share in 0.04 * 15 ** random.random(2))
            x, y = random.uniform(a, width - a), random.uniform(b, height - b)
            turns = [2 * math.pi * t / 40 for t in range(40)]
            polygon = [round(v, 2) for t in turns for v in (x + a * math.cos(t), y + b * math.sin(t))]
            annotations.append({'id': len(annotations) + 1, 'image_id': image, 'category_id': 1 + (i * 7 + image) % 80, 'iscrowd': 0,
                                'bbox': [x - a, y - b, 2 * a, 2 * b], 'area': math.pi * a * b, 'segmentation': [polygon]})
    categories = [{'id': i + 1, 'name': f'class {i + 1}'} for i in range(80)]
    said = {'images': images, 'annotations': annotations, 'categories': categories}
    (folder / 'annotations/instances_train2017.json').write_text(json.dumps(said))


def measured(command, threads):
    """What the command said, and the most memory it held, in MB."""
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'RAYON_NUM_THREADS': str(threads)}
    with tempfile.TemporaryFile('w+') as said:
        process = subprocess.Popen([str(c) for c in command], stdout=said, stderr=subprocess.STDOUT, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if status:
        sys.exit(f'{command[0]}: {text}')
    return text, usage.ru_maxrss / 1024


def vigdet(model, backbone, part, folder, args):
    """Seconds and MB. Inference takes the weights that a training step left behind."""
    run = folder / f'{model}-{backbone}'
    config = ['--config', ROOT / f'configs/{model}_pvig_s_fpn_1x_coco.json', '--device', 'cpu', '--set', f'model.backbone.name={backbone}',
              '--set', f'train.threads={args.threads}', '--size', ','.join(map(str, sorted(args.size))), *(f'--set={s}' for s in args.set)]

    def train(steps):
        command = [args.programs / 'train_det', model, *config, '--data', folder, '--out', run, '--max-iters', steps, '--epochs', steps,
                   '--batch-size', 1, '--set', 'train.micro_batch=1', '--set', 'train.eval_every=0', '--set', 'train.milestones=[]',
                   '--set', 'checkpoint.every_epochs=0']
        _, memory = measured(command, args.threads)
        lines = [json.loads(line) for line in (run / 'log.jsonl').read_text().splitlines()]
        return min(line['seconds'] for line in lines if 'loss' in line), memory

    if part == 'training':
        return train(args.steps)
    if not run.exists():
        train(1)
    pictures = folder / f'pictures-{args.pictures}'
    pictures.mkdir(exist_ok=True)
    for i in range(args.pictures):
        (pictures / f'{i}.png').write_bytes((folder / f'train2017/{i % 2 + 1}.png').read_bytes())
    weights = folder / f'{model}-{backbone}.safetensors'
    subprocess.run([sys.executable, '-c', SILENCE, run / 'checkpoints/last.safetensors', weights], check=True)
    any_score = ['--set', 'model.test.score=0'] if model == 'mask_rcnn' else []
    text, memory = measured([args.programs / 'detect', model, *config, *any_score, '--weights', weights, '--json', folder / 'found.json',
                             pictures], args.threads)
    counts = [len(image['detections']) for image in json.loads((folder / 'found.json').read_text())]
    assert counts == [100 if model == 'mask_rcnn' else 0] * args.pictures, counts
    return float(re.search(r'([\d.]+) s each', text)[1]), memory


def torchvision(model, part, folder, args):
    repeat = args.steps if part == 'training' else args.pictures
    text, memory = measured([sys.executable, '-c', TORCHVISION, model.replace('_', ''), part, folder, repeat, args.threads], args.threads)
    return float(text.strip().splitlines()[-1]), memory


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--models', default='retinanet,mask_rcnn')
    parser.add_argument('--backbones', default='pvig_s,resnet50')
    parser.add_argument('--parts', default='training,inference')
    parser.add_argument('--size', default='800x1280', help='height and width')
    parser.add_argument('--steps', type=int, default=3)
    parser.add_argument('--pictures', type=int, default=3)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--only', choices=['vigdet', 'torchvision'])
    parser.add_argument('--set', action='append', default=[], help="passed on to vigdet's programs")
    parser.add_argument('--programs', type=Path, default=ROOT / 'target/debug')
    args = parser.parse_args()
    args.size = [int(side) for side in args.size.split('x')]

    print(f'one image of {args.size[0]} × {args.size[1]}, {args.threads} threads')
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_data(folder, *args.size)
        for model in args.models.split(','):
            for part in args.parts.split(','):
                rows = []
                if args.only != 'torchvision':
                    rows += [(f'vigdet {b}', lambda b=b: vigdet(model, b, part, folder, args)) for b in args.backbones.split(',')]
                if args.only != 'vigdet':
                    rows.append(('torchvision resnet50', lambda: torchvision(model, part, folder, args)))
                for what, run in rows:
                    seconds, memory = run()
                    print(f'{model:10} {part:10} {what:20} {seconds:8.2f} s {memory:7.0f} MB', flush=True)


if __name__ == '__main__':
    main()
