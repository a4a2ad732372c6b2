"""Compares vigdet's detections with references that follow mmdetection's and detectron2's rules, from files with the names and in the formats of both.

    cargo build --bin detect
    python tests/reference/compare_other_weights.py IMAGES [--count 20] [--size 320,533] [--model mmdetection_retinanet|…]

(torch 2.13, torchvision 0.28, pycocotools, numpy, pillow). Neither project is installed: mmcv has to be compiled, against an older torch. The
networks here are written on torch's and torchvision's operations, by the rules in the projects' own code: mmdetection 3.x
(`AnchorGenerator`, `DeltaXYWHBBoxCoder`, `FPN`, `RetinaHead`, `RPNHead`, `SingleRoIExtractor`, `BBoxHead`, `FCNMaskHead`) and detectron2 0.6
(`DefaultAnchorGenerator`, `Box2BoxTransform`, `RetinaNet`, `find_top_rpn_proposals`, `FastRCNNOutputLayers`, `paste_masks_in_image`). Their modules have
the attribute names of the projects, so that their state dicts have the names of the published files.

The weights are random, with batch norms calibrated on the images and last layers scaled so that detections are many and no score saturates. mmdetection's
are saved as its `.pth` with `meta` and `state_dict`; detectron2's as the `.pkl` of NumPy arrays of its model zoo, with the stride in the 1×1 convolutions,
blue first, and norms that are scale and shift alone. `detect --weights FILE` gets no further hint. A detection is the same if class, box (0.1 pixel) and
score (1e-3) agree. Fails below 99%, or with masks whose mean IoU is below 0.995.
"""
import argparse
import json
import math
import pathlib
import pickle
import subprocess
import sys
import tempfile

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models import resnet50
from torchvision.ops import batched_nms, roi_align
from torchvision.transforms.functional import to_tensor

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from compare_torchvision import ROOT, images, same_detections, scale_outputs

CLASSES = 80
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
RATIOS = (0.5, 1.0, 2.0)
RETINANET_STRIDES = (8, 16, 32, 64, 128)
RPN_STRIDES = (4, 8, 16, 32, 64)


# What both have in common.

def convolution(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def flat(maps, per_anchor):
    """[1, A·n, H, W] to [H·W·A, n]."""
    return maps[0].permute(1, 2, 0).reshape(-1, per_anchor)


def top_down(laterals):
    for i in range(len(laterals) - 1, 0, -1):
        laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=laterals[i - 1].shape[-2:], mode='nearest')
    return laterals


def shifts(size, stride):
    y, x = torch.meshgrid(torch.arange(size[0]) * stride, torch.arange(size[1]) * stride, indexing='ij')
    return torch.stack([x, y, x, y], -1).reshape(-1, 1, 4).float()


def clip(boxes, size):
    return torch.stack([boxes[..., i].clamp(0, size[1 - i % 2]) for i in range(4)], -1)


def padded(image):
    return F.pad(image, (0, -image.shape[2] % 32, 0, -image.shape[1] % 32))[None]


def pool(levels, boxes, size, epsilon):
    """RoIAlign, aligned, with as many points as there are pixels, from the level that fits each box."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    which = torch.floor(torch.log2(side / 56 + epsilon)).clamp(0, 3)
    out = torch.zeros(len(boxes), levels[0].shape[1], size, size)
    for i, stride in enumerate(RPN_STRIDES[:4]):
        here = which == i
        out[here] = roi_align(levels[i], [boxes[here]], size, 1 / stride, 0, True)
    return out


def paste(mask, box, size):
    """A mask's probability at the centre of each of the image's pixels, 1/2 or more."""
    height, width = size
    x = (torch.arange(width) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (torch.arange(height) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)], -1)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= 0.5


def scale_best(layer, run):
    """Scales a class layer so that the best logit of all images is 3, and the one of rank 500 an image is 0: no score saturates."""
    said = []
    hook = layer.register_forward_hook(lambda _module, _input, output: said.append(output.flatten().topk(min(output.numel(), 5000)).values))
    images = run(None)
    hook.remove()
    best = torch.cat(said).topk(500 * images).values
    factor = 3 / (best[0] - best[-1])
    layer.weight.data.mul_(factor)
    layer.bias.data.mul_(factor).sub_(best[-1] * factor)


def found(boxes, scores, labels, masks=None):
    out = {'boxes': boxes, 'scores': scores, 'labels': torch.tensor(COCO_IDS)[labels]}
    if masks is not None:
        out['masks'] = masks[:, None].float()
    return out


# mmdetection.

class ConvModule(nn.Module):
    def __init__(self, *arguments):
        super().__init__()
        self.conv = convolution(*arguments)

    def forward(self, x):
        return self.conv(x)


class MmResNet(nn.Module):
    """Named as torchvision's, which mmdetection's are too."""

    def __init__(self):
        super().__init__()
        for name, module in resnet50(weights=None).named_children():
            if name not in ('avgpool', 'fc'):
                setattr(self, name, module)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class MmNeck(nn.Module):
    def __init__(self, stages, extra):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(c, 256, 1) for c in stages)
        self.fpn_convs = nn.ModuleList(ConvModule(256, 256, 3) for _ in stages)
        if extra:
            self.fpn_convs.extend([ConvModule(stages[-1], 256, 3, 2), ConvModule(256, 256, 3, 2)])
        self.extra = extra

    def forward(self, maps):
        laterals = top_down([conv(x) for conv, x in zip(self.lateral_convs, maps)])
        outs = [conv(x) for conv, x in zip(self.fpn_convs, laterals)]
        if self.extra:
            outs.append(self.fpn_convs[len(maps)](maps[-1]))
            # No relu before P7.
            outs.append(self.fpn_convs[len(maps) + 1](outs[-1]))
        else:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return outs


def mm_anchors(sizes, strides, scales):
    """Ratio by ratio all scales, centred on the corner of each location's cell."""
    roots = torch.tensor(RATIOS).sqrt()
    out = []
    for size, stride in zip(sizes, strides):
        width = (stride / roots[:, None] * torch.tensor(scales)[None]).flatten()
        height = (stride * roots[:, None] * torch.tensor(scales)[None]).flatten()
        cell = torch.stack([-width, -height, width, height], -1) / 2
        out.append((cell + shifts(size, stride)).reshape(-1, 4))
    return out


def mm_decode(anchors, deltas, size, stds=(1, 1, 1, 1)):
    deltas = deltas * torch.tensor(stds)
    middle, side = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
    limit = abs(math.log(16 / 1000))
    middle = middle + deltas[..., :2] * side
    side = side * deltas[..., 2:].clamp(-limit, limit).exp()
    return clip(torch.cat([middle - side / 2, middle + side / 2], -1), size)


class MmDetector(nn.Module):
    MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])

    def prepare(self, image):
        return padded((image * 255 - self.MEAN.view(3, 1, 1)) / self.STD.view(3, 1, 1))

    def save(self, path):
        meta = {'mmdet_version': '3.3.0', 'cfg': "model = dict(\n    backbone=dict(style='pytorch'),\n    data_preprocessor=dict(\n        bgr_to_rgb=True,"
                '\n        mean=[\n            123.675,\n            116.28,\n            103.53,\n        ],\n        std=[\n            58.395,\n'
                '            57.12,\n            57.375,\n        ]))\n', 'dataset_meta': {'palette': [(220, 20, 60)]}}
        torch.save({'meta': meta, 'state_dict': self.state_dict(), 'message_hub': {'log_scalars': {'loss': numpy.arange(3.0)}}}, path)
        return path


class MmRetinaHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_convs = nn.ModuleList(ConvModule(256, 256, 3) for _ in range(4))
        self.reg_convs = nn.ModuleList(ConvModule(256, 256, 3) for _ in range(4))
        self.retina_cls = convolution(256, 9 * CLASSES, 3)
        self.retina_reg = convolution(256, 9 * 4, 3)

    def forward(self, x):
        classes = boxes = x
        for conv in self.cls_convs:
            classes = conv(classes).relu()
        for conv in self.reg_convs:
            boxes = conv(boxes).relu()
        return self.retina_cls(classes), self.retina_reg(boxes)


class MmRetinaNet(MmDetector):
    def __init__(self):
        super().__init__()
        self.backbone, self.neck, self.bbox_head = MmResNet(), MmNeck([512, 1024, 2048], True), MmRetinaHead()

    def calibrate(self, run):
        scale_best(self.bbox_head.retina_cls, run)
        scale_outputs(self.bbox_head.retina_reg, 0.3, 0.0, run)

    def forward(self, image):
        size = image.shape[-2:]
        levels = self.neck(self.backbone(self.prepare(image))[1:])
        outs = [self.bbox_head(level) for level in levels]
        anchors = mm_anchors([o[0].shape[-2:] for o in outs], RETINANET_STRIDES, [4 * 2 ** (i / 3) for i in range(3)])
        boxes, scores, labels = [], [], []
        for (classes, deltas), own in zip(outs, anchors):
            probability = flat(classes, CLASSES).sigmoid().flatten()
            kept = torch.nonzero(probability > 0.05)[:, 0]
            kept = kept[probability[kept].sort(descending=True, stable=True).indices[:1000]]
            boxes.append(mm_decode(own[kept // CLASSES], flat(deltas, 4)[kept // CLASSES], size))
            scores.append(probability[kept])
            labels.append(kept % CLASSES)
        boxes, scores, labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        whole = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, scores, labels = boxes[whole], scores[whole], labels[whole]
        kept = batched_nms(boxes, scores, labels, 0.5)[:100]
        return found(boxes[kept], scores[kept], labels[kept])


class MmRpnHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.rpn_conv, self.rpn_cls, self.rpn_reg = convolution(256, 256, 3), convolution(256, 3, 1), convolution(256, 12, 1)


class MmBoxHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc_cls, self.fc_reg = nn.Linear(1024, CLASSES + 1), nn.Linear(1024, 4 * CLASSES)
        self.shared_fcs = nn.ModuleList([nn.Linear(256 * 49, 1024), nn.Linear(1024, 1024)])


class MmMaskHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(ConvModule(256, 256, 3) for _ in range(4))
        self.upsample, self.conv_logits = nn.ConvTranspose2d(256, 256, 2, 2), nn.Conv2d(256, CLASSES, 1)


class MmRoiHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.bbox_head, self.mask_head = MmBoxHead(), MmMaskHead()


class MmMaskRcnn(MmDetector):
    def __init__(self):
        super().__init__()
        self.backbone, self.neck = MmResNet(), MmNeck([256, 512, 1024, 2048], False)
        self.rpn_head, self.roi_head = MmRpnHead(), MmRoiHead()

    def calibrate(self, run):
        scale_outputs(self.rpn_head.rpn_cls, 2.0, -2.0, run)
        scale_outputs(self.rpn_head.rpn_reg, 0.2, 0.0, run)
        scale_outputs(self.roi_head.bbox_head.fc_cls, 1.5, 0.0, run)
        scale_outputs(self.roi_head.bbox_head.fc_reg, 0.5, 0.0, run)
        scale_outputs(self.roi_head.mask_head.conv_logits, 2.0, 0.0, run)

    def proposals(self, levels, size):
        head = self.rpn_head
        boxes, scores, of = [], [], []
        for i, (level, own) in enumerate(zip(levels, mm_anchors([x.shape[-2:] for x in levels], RPN_STRIDES, [8.0]))):
            x = head.rpn_conv(level).relu()
            score, order = flat(head.rpn_cls(x), 1)[:, 0].sigmoid().sort(descending=True, stable=True)
            order = order[:1000]
            boxes.append(mm_decode(own[order], flat(head.rpn_reg(x), 4)[order], size))
            scores.append(score[:1000])
            of.append(torch.full((len(order),), i))
        boxes, scores, of = torch.cat(boxes), torch.cat(scores), torch.cat(of)
        whole = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, scores, of = boxes[whole], scores[whole], of[whole]
        return boxes[batched_nms(boxes, scores, of, 0.7)[:1000]]

    def forward(self, image):
        size = image.shape[-2:]
        levels = self.neck(self.backbone(self.prepare(image)))
        proposals = self.proposals(levels, size)
        head = self.roi_head.bbox_head
        x = pool(levels, proposals, 7, 1e-6).flatten(1)
        for layer in head.shared_fcs:
            x = layer(x).relu()
        # Background is the last class.
        scores = head.fc_cls(x).softmax(1)[:, :-1]
        boxes = mm_decode(proposals[:, None], head.fc_reg(x).view(-1, CLASSES, 4), size, (0.1, 0.1, 0.2, 0.2))
        at = torch.nonzero(scores > 0.05)
        boxes, scores, labels = boxes[at[:, 0], at[:, 1]], scores[at[:, 0], at[:, 1]], at[:, 1]
        kept = batched_nms(boxes, scores, labels, 0.5)[:100]
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        mask = self.roi_head.mask_head
        x = pool(levels, boxes, 14, 1e-6)
        for conv in mask.convs:
            x = conv(x).relu()
        logits = mask.conv_logits(mask.upsample(x).relu())[torch.arange(len(labels)), labels]
        masks = torch.stack([paste(m, b, size) for m, b in zip(logits.sigmoid(), boxes)]) if len(boxes) else torch.zeros(0, *size)
        return found(boxes, scores, labels, masks)


# detectron2.

class D2Conv(nn.Conv2d):
    """A convolution that has its norm inside."""

    def __init__(self, inputs, outputs, kernel, stride=1):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.norm(super().forward(x))


class D2Block(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        # The stride is in the first 1×1.
        if inputs != 4 * width:
            self.shortcut = D2Conv(inputs, 4 * width, 1, stride)
        self.conv1, self.conv2, self.conv3 = D2Conv(inputs, width, 1, stride), D2Conv(width, width, 3), D2Conv(width, 4 * width, 1)

    def forward(self, x):
        out = self.conv3(self.conv2(self.conv1(x).relu()).relu())
        return (out + (self.shortcut(x) if hasattr(self, 'shortcut') else x)).relu()


class D2Stem(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = D2Conv(3, 64, 7, 2)


class D2ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, inputs = D2Stem(), 64
        for i, depth in enumerate((3, 4, 6, 3)):
            blocks = []
            for j in range(depth):
                blocks.append(D2Block(inputs, 64 << i, 2 if i > 0 and j == 0 else 1))
                inputs = 256 << i
            setattr(self, f'res{i + 2}', nn.Sequential(*blocks))

    def forward(self, x):
        x = F.max_pool2d(self.stem.conv1(x).relu(), 3, 2, 1)
        maps = []
        for i in range(2, 6):
            x = getattr(self, f'res{i}')(x)
            maps.append(x)
        return maps


class D2TopBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.p6, self.p7 = convolution(2048, 256, 3, 2), convolution(256, 256, 3, 2)


class D2Fpn(nn.Module):
    def __init__(self, finest, top):
        super().__init__()
        self.finest = finest
        for i in range(finest, 6):
            setattr(self, f'fpn_lateral{i}', convolution(64 << i, 256, 1))
            setattr(self, f'fpn_output{i}', convolution(256, 256, 3))
        if top:
            self.top_block = D2TopBlock()
        self.bottom_up = D2ResNet()

    def forward(self, image):
        maps = self.bottom_up(image)[self.finest - 2:]
        laterals = top_down([getattr(self, f'fpn_lateral{i}')(x) for i, x in enumerate(maps, self.finest)])
        outs = [getattr(self, f'fpn_output{i}')(x) for i, x in enumerate(laterals, self.finest)]
        if hasattr(self, 'top_block'):
            outs.append(self.top_block.p6(maps[-1]))
            outs.append(self.top_block.p7(outs[-1].relu()))
        else:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return outs


def d2_anchors(sizes, strides, scales):
    """Size by size all ratios."""
    out = []
    for size, stride in zip(sizes, strides):
        cell = []
        for scale in scales:
            for ratio in RATIOS:
                width = math.sqrt((scale * stride) ** 2 / ratio)
                height = ratio * width
                cell.append([-width / 2, -height / 2, width / 2, height / 2])
        out.append((torch.tensor(cell) + shifts(size, stride)).reshape(-1, 4))
    return out


def d2_decode(anchors, deltas, weights=(1, 1, 1, 1)):
    deltas = deltas / torch.tensor(weights)
    side = anchors[..., 2:] - anchors[..., :2]
    middle = anchors[..., :2] + side / 2 + deltas[..., :2] * side
    side = deltas[..., 2:].clamp(max=math.log(1000 / 16)).exp() * side
    return torch.cat([middle - side / 2, middle + side / 2], -1)


def nonempty(boxes):
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


class D2Detector(nn.Module):
    def __init__(self):
        super().__init__()
        # Blue, green, red.
        self.register_buffer('pixel_mean', torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1))
        self.register_buffer('pixel_std', torch.ones(3, 1, 1))

    def prepare(self, image):
        return padded((image.flip(0) * 255 - self.pixel_mean) / self.pixel_std)

    def save(self, path):
        arrays = {k: v.numpy() for k, v in self.state_dict().items() if not k.endswith('num_batches_tracked')}
        path = path.with_suffix('.pkl')
        with open(path, 'wb') as out:
            pickle.dump({'model': arrays, '__author__': 'Detectron2 Model Zoo', 'matching_heuristics': True}, out, protocol=3)
        return path

    def freeze_norms(self):
        """Scale and shift alone, as in Microsoft's models: a running mean of 0 and variance of 1."""
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                norm.bias.data = norm.bias - norm.running_mean * scale
                norm.weight.data = scale
                norm.running_mean.zero_()
                norm.running_var.fill_(1 - norm.eps)


class D2RetinaHead(nn.Module):
    def __init__(self):
        super().__init__()
        tower = [part for _ in range(4) for part in (convolution(256, 256, 3), nn.ReLU())]
        self.cls_subnet = nn.Sequential(*tower)
        self.bbox_subnet = nn.Sequential(*[part for _ in range(4) for part in (convolution(256, 256, 3), nn.ReLU())])
        self.cls_score, self.bbox_pred = convolution(256, 9 * CLASSES, 3), convolution(256, 9 * 4, 3)


class D2RetinaNet(D2Detector):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = D2Fpn(3, True), D2RetinaHead()

    def calibrate(self, run):
        scale_best(self.head.cls_score, run)
        scale_outputs(self.head.bbox_pred, 0.3, 0.0, run)

    def forward(self, image):
        size, head = image.shape[-2:], self.head
        levels = self.backbone(self.prepare(image))
        boxes, scores, labels = [], [], []
        for x, own in zip(levels, d2_anchors([x.shape[-2:] for x in levels], RETINANET_STRIDES, [4 * 2 ** (i / 3) for i in range(3)])):
            probability = flat(head.cls_score(head.cls_subnet(x)), CLASSES).flatten().sigmoid()
            deltas = flat(head.bbox_pred(head.bbox_subnet(x)), 4)
            kept = torch.nonzero(probability > 0.05)[:, 0]
            kept = kept[probability[kept].sort(descending=True, stable=True).indices[:1000]]
            boxes.append(d2_decode(own[kept // CLASSES], deltas[kept // CLASSES]))
            scores.append(probability[kept])
            labels.append(kept % CLASSES)
        boxes, scores, labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        kept = batched_nms(boxes, scores, labels, 0.5)[:100]
        # Boxes are cut to the image after suppression.
        boxes, scores, labels = clip(boxes[kept], size), scores[kept], labels[kept]
        whole = nonempty(boxes)
        return found(boxes[whole], scores[whole], labels[whole])


class D2RpnHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.objectness_logits, self.anchor_deltas = convolution(256, 256, 3), convolution(256, 3, 1), convolution(256, 12, 1)


class D2BoxHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(256 * 49, 1024), nn.Linear(1024, 1024)


class D2BoxPredictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(1024, CLASSES + 1), nn.Linear(1024, 4 * CLASSES)


class D2MaskHead(nn.Module):
    def __init__(self):
        super().__init__()
        for i in range(1, 5):
            setattr(self, f'mask_fcn{i}', convolution(256, 256, 3))
        self.deconv, self.predictor = nn.ConvTranspose2d(256, 256, 2, 2), nn.Conv2d(256, CLASSES, 1)


class D2MaskRcnn(D2Detector):
    def __init__(self):
        super().__init__()
        self.backbone, self.proposal_generator, self.roi_heads = D2Fpn(2, False), nn.Module(), nn.Module()
        self.proposal_generator.rpn_head = D2RpnHead()
        self.proposal_generator.anchor_generator = nn.Module()
        self.proposal_generator.anchor_generator.cell_anchors = nn.Module()
        self.proposal_generator.anchor_generator.cell_anchors.register_buffer('0', torch.zeros(3, 4))
        self.roi_heads.box_head, self.roi_heads.box_predictor, self.roi_heads.mask_head = D2BoxHead(), D2BoxPredictor(), D2MaskHead()

    def calibrate(self, run):
        rpn, roi = self.proposal_generator.rpn_head, self.roi_heads
        scale_outputs(rpn.objectness_logits, 2.0, -2.0, run)
        scale_outputs(rpn.anchor_deltas, 0.2, 0.0, run)
        scale_outputs(roi.box_predictor.cls_score, 1.5, 0.0, run)
        scale_outputs(roi.box_predictor.bbox_pred, 0.5, 0.0, run)
        scale_outputs(roi.mask_head.predictor, 2.0, 0.0, run)

    def proposals(self, levels, size):
        head = self.proposal_generator.rpn_head
        boxes, scores, of = [], [], []
        for i, (level, own) in enumerate(zip(levels, d2_anchors([x.shape[-2:] for x in levels], RPN_STRIDES, [8]))):
            x = head.conv(level).relu()
            logits, order = flat(head.objectness_logits(x), 1)[:, 0].sort(descending=True, stable=True)
            order = order[:1000]
            boxes.append(d2_decode(own[order], flat(head.anchor_deltas(x), 4)[order]))
            scores.append(logits[:1000])
            of.append(torch.full((len(order),), i))
        boxes, scores, of = clip(torch.cat(boxes), size), torch.cat(scores), torch.cat(of)
        whole = nonempty(boxes)
        boxes, scores, of = boxes[whole], scores[whole], of[whole]
        return boxes[batched_nms(boxes, scores, of, 0.7)[:1000]]

    def forward(self, image):
        size, roi = image.shape[-2:], self.roi_heads
        levels = self.backbone(self.prepare(image))
        proposals = self.proposals(levels, size)
        x = roi.box_head.fc2(roi.box_head.fc1(pool(levels, proposals, 7, 1e-8).flatten(1)).relu()).relu()
        scores = roi.box_predictor.cls_score(x).softmax(1)[:, :-1]
        boxes = d2_decode(proposals[:, None], roi.box_predictor.bbox_pred(x).view(-1, CLASSES, 4), (10, 10, 5, 5))
        boxes = clip(boxes, size)
        at = torch.nonzero(scores > 0.05)
        boxes, scores, labels = boxes[at[:, 0], at[:, 1]], scores[at[:, 0], at[:, 1]], at[:, 1]
        kept = batched_nms(boxes, scores, labels, 0.5)[:100]
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        x = pool(levels, boxes, 14, 1e-8)
        for i in range(1, 5):
            x = getattr(roi.mask_head, f'mask_fcn{i}')(x).relu()
        logits = roi.mask_head.predictor(roi.mask_head.deconv(x).relu())[torch.arange(len(labels)), labels]
        whole = nonempty(boxes)
        boxes, scores, labels, logits = boxes[whole], scores[whole], labels[whole], logits[whole]
        masks = torch.stack([paste(m, b, size) for m, b in zip(logits.sigmoid(), boxes)]) if len(boxes) else torch.zeros(0, *size)
        return found(boxes, scores, labels, masks)


MODELS = {'mmdetection_retinanet': MmRetinaNet, 'mmdetection_mask_rcnn': MmMaskRcnn,
          'detectron2_retinanet': D2RetinaNet, 'detectron2_mask_rcnn': D2MaskRcnn}


def random_model(name, batch):
    torch.manual_seed(1)
    model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    # Batch statistics of real images become the running ones.
    model.backbone.train()
    for image in batch[:8]:
        model.backbone(model.prepare(image))
    model.eval()
    if hasattr(model, 'freeze_norms'):
        model.freeze_norms()

    def run(count=2):
        for image in batch[:count]:
            model(image)
        return len(batch[:count])

    model.calibrate(run)
    return model


def compare(detect, changes, name, paths, short, most, folder):
    batch = [to_tensor(Image.open(p)) for p in paths]
    model = random_model(name, batch)
    wanted = [model(image) for image in batch]
    weights, result = model.save(folder / f'{name}.pth'), folder / 'found.json'
    changes = [part for change in changes for part in ('--set', change)]
    subprocess.run([detect, '--weights', weights, '--size', f'{short},{most}', '--device', 'cpu', '--json', result, *changes, *paths],
                   check=True, stdout=subprocess.DEVNULL)
    return same_detections(name, wanted, json.loads(result.read_text()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('images')
    parser.add_argument('--count', type=int, default=20)
    parser.add_argument('--size', default='320,533')
    parser.add_argument('--model', choices=list(MODELS))
    parser.add_argument('--detect', default=ROOT / 'target/debug/detect', help='the program')
    parser.add_argument('--set', action='append', default=[], help='break a rule, to see the comparison fail')
    args = parser.parse_args()
    short, most = (int(side) for side in args.size.split(','))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        folder = pathlib.Path(folder)
        (folder / 'images').mkdir()
        paths = images(args.images, args.count, short, most, folder / 'images')
        models = [args.model] if args.model else MODELS
        good = [compare(args.detect, args.set, name, paths, short, most, folder) for name in models]
    sys.exit(0 if all(good) else 1)


if __name__ == '__main__':
    main()
