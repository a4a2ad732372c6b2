"""A YOLO of ultralytics from scratch for a number of minutes, with its own defaults; see ../compare_small.py.

usage: yolo.py DATA OUT.json MINUTES SEED SHORT,LONG [MODEL.yaml]

Images are LONG pixels wide, in batches of 8. Its own time limit counts the validation after each epoch. Needs the
package ultralytics in this Python; nothing of it enters vigdet.
"""
import contextlib
import io
import json
import os
import pathlib
import sys
import tempfile

os.environ['YOLO_OFFLINE'] = 'true'

import torch
import ultralytics.utils.torch_utils
from pycocotools.coco import COCO
from ultralytics import YOLO


def convert(root, folder):
    """Writes YOLO's labels and links the images; gives its data file, category ids, and image ids by file name."""
    for split in ('train', 'val'):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(root / 'annotations' / f'instances_{split}2017.json'))
        classes = sorted(truth.getCatIds())
        images, labels = folder / 'images' / split, folder / 'labels' / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i, info in truth.imgs.items():
            (images / info['file_name']).symlink_to((root / f'{split}2017' / info['file_name']).resolve())
            lines = []
            for a in truth.loadAnns(truth.getAnnIds(i)):
                x, y, w, h = a['bbox']
                centre = (x + w / 2) / info['width'], (y + h / 2) / info['height']
                values = classes.index(a['category_id']), *centre, w / info['width'], h / info['height']
                lines.append(' '.join(map(str, values)))
            (labels / info['file_name']).with_suffix('.txt').write_text('\n'.join(lines))
    names = {n: truth.cats[c]['name'] for n, c in enumerate(classes)}
    data = folder / 'data.yaml'
    data.write_text(f'path: {folder}\ntrain: images/train\nval: images/val\nnames: {json.dumps(names)}\n')
    return data, classes, {info['file_name']: i for i, info in truth.imgs.items()}


def main():
    root, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    minutes, seed = float(sys.argv[3]), int(sys.argv[4])
    side = int(sys.argv[5].split(',')[1])
    name = sys.argv[6] if len(sys.argv) > 6 else 'yolo11n.yaml'
    ultralytics.utils.torch_utils.NUM_THREADS = 1
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        data, classes, ids = convert(root, folder)
        YOLO(name).train(data=str(data), time=minutes / 60, epochs=1000, imgsz=side, batch=8, device='cpu', workers=1,
                         pretrained=False, seed=seed, project=str(folder), name='run', plots=False, verbose=False,
                         patience=1000)
        best = YOLO(folder / 'run' / 'weights' / 'best.pt')
        found = []
        images = str(folder / 'images' / 'val')
        for seen in best.predict(images, imgsz=side, conf=0.001, iou=0.7, max_det=300, verbose=False, stream=True):
            image = ids[os.path.basename(seen.path)]
            values = (values.tolist() for values in (seen.boxes.xyxy, seen.boxes.conf, seen.boxes.cls))
            for (left, top, right, bottom), score, label in zip(*values):
                box = [left, top, right - left, bottom - top]
                found.append({'image_id': image, 'category_id': classes[int(label)], 'bbox': box, 'score': score})
    out.write_text(json.dumps(found))


if __name__ == '__main__':
    main()
