#!/usr/bin/env python3
"""Checks vigdet on a GPU, and times it beside PyTorch, in at most ten minutes. scripts/pack_gpu_check.py packs it.

usage: gpu_check.py [--device cuda:0] [--out FILE] [--minutes 9] [--quick] [--parts NAME,...]

Each part appends a line of JSON to FILE as it ends, so a run that is cut short still says something:

    about      the card, the driver, the libtorch that runs
    tests      vigdet's tests of numbers on the device, against PyTorch's and torchvision's
    models     every kind of backbone as a classifier, on the device against the CPU, with the CPU's neighbours:
               maps, scores, gradients
    detectors  the same of detectors: each part of the loss, gradients, detections; in float32 and in bfloat16
    kinds      the kind of every tensor that a training step saves for its backward pass
    speed      seconds and memory of an image, in training and detection: vigdet, torchvision's ResNet-50 detectors, and
               the plain PyTorch ViG
    kernels    the most expensive kernels of a training step, its launches and its synchronisations
    summary    what passed, what did not, and the ratios

It needs Python's torch and torchvision, no Rust and no network. vigdet's library is loaded into this process, beside
Python's torch: so torch's profiler, its counts of memory and its hooks see vigdet's operations like its own.
--device cpu --quick runs all parts with small images, to see that they work; its times mean nothing.
"""
import argparse
import collections
import contextlib
import ctypes
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
# Differences from the CPU in float32, without TF32: norm of the difference over the norm.
TOLERANCE = {'maps': 1e-4, 'scores': 1e-4, 'losses': 1e-4, 'gradients': 2e-3}
# Mask R-CNN samples proposals: a near-tie that falls otherwise changes what is sampled.
SAMPLED = {'losses': 0.05, 'gradients': 0.2}
BFLOAT16 = {'losses': 0.1, 'gradients': 0.5}
TESTS = ['vig', 'pyramid', 'torchvision', 'two_stage', 'second_generation']
RETINANET, MASK_RCNN = 'retinanet_pvig_s_fpn_1x_coco', 'mask_rcnn_pvig_s_fpn_1x_coco'
SMALL = ['model.backbone.channels=[16,32,48,64]', 'model.backbone.blocks=[1,1,2,1]', 'model.fpn.channels=32']
BACKBONES = (
    [{'name': 'pvig_ti', 'conv': conv, 'channels': [16, 32, 48, 64], 'blocks': [1, 1, 2, 1]}
     for conv in ('mr', 'edge', 'gin', 'sage')]
    + [{'name': 'vig_ti', 'blocks': [3], 'channels': [96]}, {'name': 'pvig_ti', 'relative': 'grid'}]
    + [{'name': name} for name in ('resnet18', 'resnet50', 'efficientnet_lite0', 'mobilenet_v3_large', 'swin_t',
                                   'resnext50_32x4d', 'pvt_tiny', 'poolformer_s12', 'cyclemlp_b1')])
DETECTORS = [
    ('retinanet', RETINANET, SMALL),
    ('retinanet, adaptive assignment, quality focal loss, GIoU', RETINANET,
     SMALL + ['model.match.kind=atss', 'model.loss.class=quality_focal', 'model.loss.box=giou',
              'model.loss.box_weight=2']),
    ('retinanet on resnet18', RETINANET, ['model.backbone={"name":"resnet18"}', 'model.fpn.channels=32']),
    ('mask_rcnn', MASK_RCNN, SMALL + ['model.roi.channels=64', 'model.mask_head.channels=32']),
    ('faster_rcnn', MASK_RCNN, SMALL + ['model.roi.channels=64', 'model.mask=false']),
]
# Operations that wait for the device.
WAITING = ('aten::item', 'aten::nonzero', 'aten::is_nonzero', 'aten::equal', 'aten::_unique2')


class Vigdet:
    """The library: requests and replies are JSON."""

    def __init__(self):
        # After torch, whose libtorch it then uses.
        self.library = ctypes.CDLL(str(HERE / 'libgpu_check.so'))
        self.library.vigdet_check.restype = ctypes.c_void_p
        self.library.vigdet_check.argtypes = [ctypes.c_char_p]
        self.library.vigdet_free.argtypes = [ctypes.c_void_p]

    def __call__(self, do, **request):
        reply = self.library.vigdet_check(json.dumps({'do': do, **request}).encode())
        try:
            answer = json.loads(ctypes.string_at(reply))
        finally:
            self.library.vigdet_free(reply)
        if 'error' in answer:
            raise RuntimeError(answer['error'].split('Exception raised from')[0][:500])
        return answer


class Check:
    def __init__(self, args):
        import torch
        self.torch, self.args = torch, args
        self.start = time.monotonic()
        self.device = args.device
        self.cuda = args.device.startswith('cuda')
        self.number = int(args.device.partition(':')[2] or 0) if self.cuda else -1
        if self.cuda:
            torch.cuda.init()
        self.vigdet = Vigdet()
        self.rows = []
        args.out.write_text('')
        if not self.cuda:
            torch.set_num_threads(args.threads)

    # What is written

    def write(self, part, **row):
        row = {'part': part, **row, 'at': round(time.monotonic() - self.start, 1)}
        self.rows.append(row)
        with self.args.out.open('a') as out:
            out.write(json.dumps(row) + '\n')
        print(json.dumps(row), flush=True)

    def left(self):
        return self.args.minutes * 60 - (time.monotonic() - self.start)

    @contextlib.contextmanager
    def row(self, part, name, least=5):
        """A row that `with` fills in; one that fails or has no time left says so."""
        row = {'name': name}
        if self.left() < least:
            self.write(part, **row, skipped='no time is left')
            yield None
            return
        try:
            yield row
        except Exception as error:  # Whatever it is, the other rows are still to come.
            row['error'] = str(error).strip().splitlines()[0][:500] if str(error).strip() else repr(error)
        self.write(part, **row)
        if self.cuda:
            self.torch.cuda.empty_cache()

    def synchronize(self):
        if self.cuda:
            self.torch.cuda.synchronize(self.number)

    # The parts

    def about(self):
        torch = self.torch
        packed = json.loads((HERE / 'packed.json').read_text())
        row = {'python': sys.version.split()[0], 'torch': torch.__version__, 'packed': packed, **self.vigdet('about')}
        if self.cuda:
            row['card'] = torch.cuda.get_device_name(self.number)
            row['capability'] = torch.cuda.get_device_capability(self.number)
        self.write('about', **row)

    def tests(self):
        packed = json.loads((HERE / 'packed.json').read_text())
        source = pathlib.Path(packed['source'])
        # The tests look for their files where they were built.
        if not source.exists():
            with contextlib.suppress(OSError):
                source.parent.mkdir(parents=True, exist_ok=True)
                source.symlink_to(HERE / 'source')
        libraries = self.torch.__path__[0] + '/lib'
        environment = os.environ | {'LD_LIBRARY_PATH': libraries, 'VIGDET_TEST_DEVICE': self.device}
        for name in TESTS:
            with self.row('tests', name, least=20) as row:
                if row is None:
                    continue
                # They start vigdet's programs: those tests are of files, not of numbers.
                command = [str(HERE / 'tests' / name), '--skip', 'extract_features', '--test-threads', '4']
                ran = subprocess.run(command, env=environment, cwd=HERE / 'source', stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True, timeout=min(120, self.left()))
                lines = ran.stdout.splitlines()
                row['passed'] = sum(line.startswith('test ') and line.endswith('... ok') for line in lines)
                row['failed'] = [line.split()[1] for line in lines if line.endswith('... FAILED')]
                row['ok'] = ran.returncode == 0
                if not row['ok']:
                    words = ('off by', 'differs', 'error')
                    row['said'] = [line for line in lines if any(word in line for word in words)][:20]

    def without_tf32(self):
        self.torch.backends.cudnn.allow_tf32 = False
        self.torch.backends.cuda.matmul.allow_tf32 = False

    def with_tf32(self):
        """PyTorch's defaults."""
        self.torch.backends.cudnn.allow_tf32 = True
        self.torch.backends.cuda.matmul.allow_tf32 = False

    def models(self):
        self.without_tf32()
        # On the CPU, where there is nothing to compare with, tensor operations stand against the fused kernels.
        change = {} if self.cuda else {'graph': 'chunked'}
        images = {'batch': 2, 'height': 96, 'width': 128}
        for backbone in BACKBONES:
            with self.row('models', ' '.join(str(v) for v in backbone.values() if isinstance(v, str))) as row:
                if row is None:
                    continue
                vig = 'vig' in backbone['name']
                found = self.vigdet('compare_classifier', backbone={**backbone, 'drop_path': 0.0}, device=self.number,
                                    images=images, device_backbone=change if vig else {})
                row.update(found)
                row['ok'] = (max(found['maps']) < TOLERANCE['maps'] and found['logits'] < TOLERANCE['scores']
                             and found['gradients']['error'] < TOLERANCE['gradients'])

    def detectors(self):
        self.without_tf32()
        change = [] if self.cuda else ['model.backbone.graph=chunked']
        for amp in (False, True):
            for name, config, changes in DETECTORS:
                with self.row('detectors', name + (', bfloat16' if amp else '')) as row:
                    if row is None:
                        continue
                    more = [] if 'resnet' in name else change
                    found = self.vigdet('compare_detector', config=config, changes=changes + ['model.test.score=0.001'],
                                        device=self.number, images={'batch': 2, 'height': 192, 'width': 256}, amp=amp,
                                        device_changes=more)
                    row.update(found)
                    limits = BFLOAT16 if amp else SAMPLED if 'rcnn' in name else TOLERANCE
                    worst = max(part['error'] for part in found['losses'].values())
                    row['ok'] = (worst < limits['losses'] and found['gradients']['error'] < limits['gradients']
                                 and set(found['kinds']) == {'Float'})

    @contextlib.contextmanager
    def opened(self, config, images, changes=()):
        model = self.vigdet('open', config=config, changes=list(changes), device=self.number, images=images)['model']
        try:
            yield model
        finally:
            self.vigdet('close', model=model)

    def kinds(self):
        """Bytes that are saved for the backward pass, by kind. More than a number in float64 is a fault."""
        torch = self.torch
        images = {'batch': 2, 'height': 192, 'width': 256}
        for amp in (False, True):
            for name, config in (('retinanet', RETINANET), ('mask_rcnn', MASK_RCNN)):
                with self.row('kinds', name + (', bfloat16' if amp else '')) as row:
                    if row is None:
                        continue
                    saved, numbers = {}, collections.Counter()

                    def pack(tensor):
                        if tensor.numel() > 1:
                            storage = tensor.untyped_storage()
                            saved[storage.data_ptr(), str(tensor.dtype)] = storage.nbytes()
                            numbers[str(tensor.dtype)] += 1
                        return tensor

                    # The tensor operations that a GPU runs, on the CPU too.
                    with self.opened(config, images, SMALL + ['model.backbone.graph=chunked']) as model:
                        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                            self.vigdet('train', model=model, amp=amp)
                    row['tensors'] = dict(numbers)
                    sizes = collections.Counter()
                    for (_, kind), size in saved.items():
                        sizes[kind] += size
                    row['megabytes'] = {kind: round(size / 1e6, 2) for kind, size in sizes.items()}
                    row['ok'] = 'torch.float64' not in numbers and len(numbers) > 1

    def time(self, row, name, images, work):
        """Seconds and gigabytes of an image: the best of some runs after some to warm up."""
        torch = self.torch
        warm, runs = (0, 1) if self.args.quick else (3, 5)
        for _ in range(warm):
            work()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.number)
        seconds = []
        for _ in range(runs):
            self.synchronize()
            before = time.perf_counter()
            work()
            self.synchronize()
            seconds.append(time.perf_counter() - before)
        seconds = sorted(s / images for s in seconds)
        row[name] = {'seconds': round(seconds[0], 6), 'median': round(seconds[runs // 2], 6)}
        if self.cuda:
            row[name]['gigabytes'] = round(torch.cuda.max_memory_allocated(self.number) / 1e9 / images, 3)

    def speed(self):
        self.with_tf32()
        height, width = (96, 128) if self.args.quick else (800, 1344)
        small = SMALL if self.args.quick else []
        cases = [(batch, amp) for batch in ((2,) if self.args.quick else (2, 8)) for amp in (True, False)]
        for batch, amp in cases:
            suffix = f', batch {batch}' + (', bfloat16' if amp else '')
            images = {'batch': batch, 'height': height, 'width': width}
            with self.row('speed', 'plain PyTorch ViG, pvig_s' + suffix, least=15) as row:
                if row is not None:
                    self.plain_vig(row, images, amp)
            with self.row('speed', 'vigdet backbone, pvig_s' + suffix, least=15) as row:
                if row is not None:
                    self.vigdet_model(row, '', small, images, amp)
            for name, config in (('retinanet', RETINANET), ('mask_rcnn', MASK_RCNN)):
                with self.row('speed', f'vigdet {name} pvig_s' + suffix, least=15) as row:
                    if row is not None:
                        self.vigdet_model(row, config, small, images, amp)
                with self.row('speed', f'torchvision {name} ResNet-50' + suffix, least=15) as row:
                    if row is not None:
                        self.torchvision(row, name, images, amp)

    def vigdet_model(self, row, config, changes, images, amp):
        # An empty config is the backbone alone.
        with self.opened(config, images, changes) as model:
            self.time(row, 'training', images['batch'], lambda: self.vigdet('train', model=model, amp=amp))
            self.time(row, 'detection', images['batch'], lambda: self.vigdet('detect', model=model, amp=amp))

    def autocast(self, amp):
        return self.torch.autocast('cuda' if self.cuda else 'cpu', dtype=self.torch.bfloat16, enabled=amp)

    def plain_vig(self, row, images, amp):
        torch = self.torch
        if not (HERE / 'vig_ref.py').exists():
            row['skipped'] = 'vig_ref.py is not packed'
            return
        import vig_ref
        sizes = ([16, 32, 48, 64], [1, 1, 2, 1]) if self.args.quick else vig_ref.PRESETS['pvig_s'][1:]
        model = vig_ref.Vig(True, *sizes, drop_path=0.1).to(self.device)
        batch = torch.randn(images['batch'], 3, images['height'], images['width'], device=self.device)

        def train():
            with self.autocast(amp):
                maps = model.features(batch)
            sum(map.float().square().mean() for map in maps).backward()
            model.zero_grad(set_to_none=True)

        def detect():
            with torch.no_grad(), self.autocast(amp):
                model.features(batch)

        model.train()
        self.time(row, 'training', images['batch'], train)
        model.eval()
        self.time(row, 'detection', images['batch'], detect)

    def torchvision(self, row, name, images, amp):
        torch = self.torch
        from torchvision.models import detection
        build = {'retinanet': detection.retinanet_resnet50_fpn, 'mask_rcnn': detection.maskrcnn_resnet50_fpn}[name]
        height, width = images['height'], images['width']
        model = build(weights=None, weights_backbone=None, num_classes=91, min_size=height, max_size=width)
        model = model.to(self.device)
        generator = torch.Generator().manual_seed(0)
        batch = list(torch.rand(images['batch'], 3, height, width, generator=generator).to(self.device))
        targets = []
        for _ in batch:
            corners = torch.rand(7, 2, generator=generator) * torch.tensor([width / 2, height / 2])
            boxes = torch.cat([corners, corners + 8 + torch.rand(7, 2, generator=generator) * height / 3], 1)
            masks = torch.zeros(7, height, width, dtype=torch.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist()):
                mask[y1:y2, x1:x2] = 1
            target = {'boxes': boxes, 'labels': torch.randint(1, 91, (7,), generator=generator), 'masks': masks}
            targets.append({key: value.to(self.device) for key, value in target.items()})
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

        def train():
            with self.autocast(amp):
                losses = model(batch, targets)
            sum(losses.values()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def detect():
            with torch.no_grad(), self.autocast(amp):
                model(batch)

        model.train()
        self.time(row, 'training', images['batch'], train)
        model.eval()
        self.time(row, 'detection', images['batch'], detect)

    def kernels(self):
        torch = self.torch
        from torch.profiler import ProfilerActivity, profile
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.cuda else [])
        height, width = (96, 128) if self.args.quick else (800, 1344)
        images = {'batch': 2, 'height': height, 'width': width}
        for what in ('train', 'detect'):
            for name, config in (('retinanet', RETINANET), ('mask_rcnn', MASK_RCNN)):
                with self.row('kernels', f'{name} {what}, batch 2, bfloat16', least=25) as row:
                    if row is None:
                        continue
                    amp = self.cuda
                    with self.opened(config, images, SMALL if self.args.quick else []) as model:
                        for _ in range(1 if self.args.quick else 2):
                            self.vigdet(what, model=model, amp=amp)
                        self.synchronize()
                        with profile(activities=activities) as profiled:
                            self.vigdet(what, model=model, amp=amp)
                            self.synchronize()
                    row.update(self.summed(profiled))
                    row['ok'] = bool(row['top'])

    def summed(self, profiled):
        from torch.autograd import DeviceType
        events = list(profiled.events())
        where = DeviceType.CUDA if self.cuda else DeviceType.CPU
        took, calls, names = collections.Counter(), collections.Counter(), collections.Counter()
        for event in events:
            names[event.name] += 1
            if event.device_type == where:
                took[event.name] += event.time_range.elapsed_us() if self.cuda else event.self_cpu_time_total
                calls[event.name] += 1
        # The one that this check itself asks for is not the step's.
        waits = {name: count for name, count in names.items() if 'Synchronize' in name}
        if 'cudaDeviceSynchronize' in waits:
            waits['cudaDeviceSynchronize'] -= 1
        return {
            'top': [{'name': name[:120], 'milliseconds': round(us / 1e3, 3), 'calls': calls[name]}
                    for name, us in took.most_common(10)],
            'milliseconds': round(sum(took.values()) / 1e3, 3),
            'launches': sum(count for name, count in names.items() if 'LaunchKernel' in name),
            'synchronisations': sum(waits.values()),
            'waits': waits,
            'waiting_operations': {name: names[name] for name in WAITING if names[name]},
            'operations': sum(count for name, count in names.items() if name.startswith('aten::')),
        }

    def summary(self):
        judged = [row for row in self.rows if 'ok' in row or 'error' in row]
        failed = [f"{row['part']}: {row['name']}" for row in judged if not row.get('ok') and row['part'] != 'speed']
        failed += [f"speed: {row['name']}" for row in judged if row['part'] == 'speed' and 'error' in row]
        speed = {row['name']: row for row in self.rows if row['part'] == 'speed' and 'training' in row}
        ratios = {}
        for name, row in speed.items():
            if not name.startswith('vigdet backbone'):
                continue
            plain = speed.get(name.replace('vigdet backbone', 'plain PyTorch ViG'))
            if plain:
                of = lambda key, what: round(plain[key][what] / max(row[key][what], 1e-9), 2)  # noqa: E731
                keys = ['seconds'] + ['gigabytes'] * self.cuda
                ratios[name] = {key: {what: of(key, what) for what in keys} for key in ('training', 'detection')}
        skipped = [f"{row['part']}: {row['name']}" for row in self.rows if 'skipped' in row]
        self.write('summary', failed=failed, skipped=skipped, plain_over_vigdet=ratios)
        return not failed


PARTS = ['about', 'tests', 'models', 'detectors', 'kinds', 'speed', 'kernels', 'summary']


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda:0')
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('gpu_check.jsonl'))
    parser.add_argument('--minutes', type=float, default=9.0, help='parts that would begin later are left out')
    parser.add_argument('--quick', action='store_true', help='small images, one run of each')
    parser.add_argument('--threads', type=int, default=1, help='of the CPU, with --device cpu')
    parser.add_argument('--parts', default=','.join(PARTS), help=f'of {", ".join(PARTS)}')
    args = parser.parse_args()
    args.out = args.out.resolve()
    # vigdet's own threads.
    os.environ.setdefault('RAYON_NUM_THREADS', str(args.threads if args.device == 'cpu' else os.cpu_count()))
    try:
        check = Check(args)
    except (ImportError, OSError, RuntimeError) as error:
        sys.exit(f'gpu_check: {str(error).strip().splitlines()[0]}')
    good = True
    for part in args.parts.split(','):
        good = getattr(check, part)() is not False and good
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    main()
