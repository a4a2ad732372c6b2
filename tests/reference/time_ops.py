"""torchvision's times for what benches/detect.rs measures: suppression of 20,000 boxes and RoIAlign of 1,000 regions, the best of five runs.

    OMP_NUM_THREADS=2 python tests/reference/time_ops.py        (torch 2.13, torchvision 0.28)
"""
import time

import torch
from torchvision.ops import nms, roi_align

torch.manual_seed(0)


def boxes(count):
    side = 8 * 50 ** torch.rand(count, 2)
    corner = torch.rand(count, 2) * (torch.tensor([1280, 800]) - side)
    return torch.cat([corner, corner + side], 1)


def best(run):
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


b, scores = boxes(20000), torch.rand(20000)
print(f'nms of 20,000 boxes: {best(lambda: nms(b, scores, 0.5)):.3f} s, {len(nms(b, scores, 0.5))} stay')
features = torch.randn(1, 256, 200, 320).requires_grad_()
rois = torch.cat([torch.zeros(1000, 1), boxes(1000)], 1)
weights = torch.randn(1000, 256, 7, 7)
align = lambda: roi_align(features, rois, (7, 7), 0.25, 2, True)
with torch.no_grad():
    print(f'RoIAlign forward: {best(align):.3f} s')
print(f'RoIAlign forward and backward: {best(lambda: (align() * weights).sum().backward()):.3f} s')
