"""torchvision's RetinaNet on ResNet-18 from scratch for a number of minutes; see ../compare_small.py.

usage: torchvision_retinanet.py DATA OUT.json MINUTES SEED SHORT,LONG

torchvision has no recipe for small sets. This one is fixed: AdamW at 5e-4 with a warm-up and a cosine, batches of 4,
both flips, pyramid and heads of 128 channels. Evaluation is not counted.
"""
import json
import math
import pathlib
import random
import sys
import time

import torch
import torchvision
from PIL import Image
from pycocotools.coco import COCO
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.transforms.functional import hflip, to_tensor, vflip

BATCH, RATE, DECAY, WARM_UP, CHANNELS = 4, 5e-4, 0.05, 100, 128


def load(root, split, classes):
    """(image id, tensor, targets) of every image."""
    truth = COCO(str(root / 'annotations' / f'instances_{split}2017.json'))
    for i, info in truth.imgs.items():
        image = to_tensor(Image.open(root / f'{split}2017' / info['file_name']).convert('RGB'))
        objects = [a for a in truth.loadAnns(truth.getAnnIds(i)) if not a.get('iscrowd')]
        boxes = torch.tensor([a['bbox'] for a in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        yield i, image, {'boxes': boxes, 'labels': torch.tensor([classes.index(a['category_id']) + 1 for a in objects])}


def build(classes, short, long):
    body = torchvision.models.resnet18(weights=None)
    levels = {'layer2': '0', 'layer3': '1', 'layer4': '2'}
    pyramid = BackboneWithFPN(body, levels, [128, 256, 512], CHANNELS, LastLevelP6P7(512, CHANNELS))
    sizes = tuple(tuple(int(size * 2 ** (octave / 3)) for octave in range(3)) for size in (24, 48, 96, 192, 384))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return RetinaNet(pyramid, classes + 1, anchor_generator=anchors, min_size=short, max_size=long,
                     detections_per_img=100)


def flip(image, target):
    boxes = target['boxes'].clone()
    height, width = image.shape[1:]
    if random.random() < 0.5:
        image, boxes[:, [0, 2]] = hflip(image), width - boxes[:, [2, 0]]
    if random.random() < 0.5:
        image, boxes[:, [1, 3]] = vflip(image), height - boxes[:, [3, 1]]
    return image, {**target, 'boxes': boxes}


def main():
    root, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    minutes, seed = float(sys.argv[3]), int(sys.argv[4])
    short, long = map(int, sys.argv[5].split(','))
    torch.manual_seed(seed)
    random.seed(seed)
    torch.set_num_threads(1)
    truth = COCO(str(root / 'annotations' / 'instances_train2017.json'))
    classes = sorted(truth.getCatIds())
    train = [sample for sample in load(root, 'train', classes) if len(sample[2]['boxes'])]
    model = build(len(classes), short, long).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    start, steps, spent = time.monotonic(), 0, 0.0
    while spent < minutes * 60:
        random.shuffle(train)
        for first in range(0, len(train) - BATCH + 1, BATCH):
            spent = time.monotonic() - start
            if spent >= minutes * 60:
                break
            for group in optimizer.param_groups:
                group['lr'] = RATE * min(1, (steps + 1) / WARM_UP) * (1 + math.cos(math.pi * spent / minutes / 60)) / 2
            images, targets = zip(*(flip(image, target) for _, image, target in train[first:first + BATCH]))
            loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            steps += 1
    model.eval()
    found = []
    with torch.no_grad():
        for i, image, _ in load(root, 'val', classes):
            seen = model([image])[0]
            values = (seen[key].tolist() for key in ('boxes', 'scores', 'labels'))
            for (left, top, right, bottom), score, label in zip(*values):
                box = [left, top, right - left, bottom - top]
                found.append({'image_id': i, 'category_id': classes[label - 1], 'bbox': box, 'score': score})
    out.write_text(json.dumps(found))
    print(f'steps {steps}')


if __name__ == '__main__':
    main()
