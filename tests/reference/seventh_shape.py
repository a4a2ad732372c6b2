"""Paints a seventh class, `arrow`, into images of the built-in shapes, for a test of fine-tuning.

    cargo run --bin vigdet -- shapes --seed 77 --images 20 --val 200 --side 128 --out datasets/arrows
    python tests/reference/seventh_shape.py datasets/arrows

Each image gets one to three arrows of random size, turn and colour, where they cover nothing else, and their
annotations, with polygons, in both splits' files. Ids of the six shapes stay; the arrow's is 7. Needs Pillow.
"""
import json
import math
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw


def arrow(x, y, radius, turn):
    """Corners of an arrow within this radius of (x, y)."""
    corners = [(1, 0), (0.1, 0.8), (0.1, 0.3), (-0.95, 0.3), (-0.95, -0.3), (0.1, -0.3), (0.1, -0.8)]
    c, s = math.cos(turn), math.sin(turn)
    return [(x + radius * (c * u - s * v), y + radius * (s * u + c * v)) for u, v in corners]


def area(corners):
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(corners, corners[1:] + corners[:1]))) / 2


def overlaps(a, b):
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def main():
    root = Path(sys.argv[1])
    rng = random.Random(7)
    for split in ('train2017', 'val2017'):
        path = root / f'annotations/instances_{split}.json'
        data = json.loads(path.read_text())
        assert all(c['name'] != 'arrow' for c in data['categories']), 'there are arrows already'
        data['categories'].append({'id': 7, 'name': 'arrow', 'supercategory': 'shape'})
        arrows = 0
        number = max(a['id'] for a in data['annotations']) + 1
        for info in data['images']:
            file = root / split / info['file_name']
            image = Image.open(file).convert('RGB')
            boxes = [a['bbox'] for a in data['annotations'] if a['image_id'] == info['id']]
            for _ in range(rng.randint(1, 3)):
                for _ in range(100):
                    radius = rng.uniform(6, 18)
                    x, y = rng.uniform(radius, image.width - radius), rng.uniform(radius, image.height - radius)
                    corners = arrow(x, y, radius, rng.uniform(0, 2 * math.pi))
                    left, top = min(c[0] for c in corners), min(c[1] for c in corners)
                    box = [left, top, max(c[0] for c in corners) - left, max(c[1] for c in corners) - top]
                    inside = left >= 0 and top >= 0 and left + box[2] <= image.width and top + box[3] <= image.height
                    if inside and not any(overlaps(box, other) for other in boxes):
                        break
                else:
                    continue
                colour = tuple(rng.randint(0, 255) for _ in range(3))
                # Four times as large and back, for smooth edges.
                mask = Image.new('L', (4 * image.width, 4 * image.height))
                ImageDraw.Draw(mask).polygon([(4 * u, 4 * v) for u, v in corners], fill=255)
                mask = mask.resize(image.size, Image.Resampling.BOX)
                image.paste(Image.new('RGB', image.size, colour), mask=mask)
                boxes.append(box)
                data['annotations'].append({
                    'id': number, 'image_id': info['id'], 'category_id': 7, 'iscrowd': 0, 'bbox': box,
                    'area': area(corners), 'segmentation': [[round(v, 2) for c in corners for v in c]]})
                number += 1
                arrows += 1
            image.save(file, quality=95)
        path.write_text(json.dumps(data))
        print(f'{split}: {len(data["images"])} images, {arrows} arrows')


if __name__ == '__main__':
    main()
