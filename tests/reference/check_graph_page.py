"""Checks the page of `plot_graph --html` in a real Chromium, against the edges that `extract_features` writes.

    cargo build --bin plot_graph --bin extract_features
    python tests/reference/check_graph_page.py [--model pvig_s] [--chromium FILE] [--screenshots DIR]

Needs playwright, torch, safetensors, numpy and pillow, and a Chromium: the one that `playwright install chromium` fetches, or --chromium (or the
environment variable CHROMIUM) names, such as that of the npm package @sparticuz/chromium. Without playwright or Chromium it says so and exits
with 77, the usual code of a skipped test.

A photograph-like image of 640×480 goes through a model with random weights. The page must be below 5 MB, load without an error on the console and
without asking for anything, and a click, a tap, a key must highlight exactly the patches that the edges name.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

try:
    from playwright.sync_api import Error as PlaywrightError
    from playwright.sync_api import sync_playwright
except ImportError:
    print("skipped: there is no playwright here (pip install playwright)")
    sys.exit(77)
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 640, 480


def make_image(path):
    """Smooth noise and some shapes."""
    draw = np.random.default_rng(0)
    noise = Image.fromarray(draw.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8))
    image = noise.resize((WIDTH, HEIGHT), Image.BICUBIC).filter(ImageFilter.GaussianBlur(3))
    pen = ImageDraw.Draw(image)
    pen.ellipse((80, 60, 260, 300), fill=(200, 40, 30))
    pen.rectangle((340, 200, 560, 420), fill=(30, 90, 180))
    image.save(path, quality=92)


def run(binary, *arguments):
    subprocess.run([binary, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Block:
    """A block's graph from its edges [N, k] and grids, by the rules that the pictures are documented with."""

    def __init__(self, edges, stride, pooled):
        self.edges, self.stride, self.pooled = edges, stride, pooled
        self.rows, self.columns = -(-HEIGHT // stride), -(-WIDTH // stride)
        assert edges.shape[0] == self.rows * self.columns
        self.candidates = (self.rows // pooled, self.columns // pooled)

    def node(self, x, y):
        return int(y // self.stride) * self.columns + int(x // self.stride)

    def middle(self, node):
        return (node % self.columns + 0.5) * self.stride, (node // self.columns + 0.5) * self.stride

    def candidate_middle(self, candidate):
        side = self.stride * self.pooled
        return (candidate % self.candidates[1] + 0.5) * side, (candidate // self.candidates[1] + 0.5) * side

    def incoming(self, node):
        row, column = node // self.columns // self.pooled, node % self.columns // self.pooled
        if row >= self.candidates[0] or column >= self.candidates[1]:
            return []
        own = row * self.candidates[1] + column
        return np.nonzero((self.edges == own).any(axis=1))[0].tolist()


class Page:
    """The page as a user has it."""

    def __init__(self, browser, path, **context):
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#info[data-node]", state="attached")

    def settle(self):
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def at(self, x, y):
        """Where a pixel of the image is on the screen. Scrolls there."""
        self.page.locator("#view").scroll_into_view_if_needed()
        frame = self.page.locator("#view").bounding_box()
        return frame["x"] + x / WIDTH * frame["width"], frame["y"] + y / HEIGHT * frame["height"]

    def click(self, x, y):
        self.page.keyboard.press("Escape")
        frame = self.page.locator("#view").bounding_box()
        self.page.locator("#view").click(position={"x": x / WIDTH * frame["width"], "y": y / HEIGHT * frame["height"]})
        self.settle()

    def key(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def highlighted(self):
        data = self.page.evaluate("({...document.getElementById('info').dataset})")
        numbers = lambda text: [int(n) for n in text.split(",")] if text else []
        return int(data["block"]), int(data["node"]), numbers(data["neighbours"]), numbers(data["incoming"])

    def pixels(self, places):
        """The colours on the large canvas at pixels of the image. Read from a copy: reading from the canvas itself slows it down."""
        return self.page.evaluate(
            """places => {
              const view = document.getElementById("view"), copy = document.createElement("canvas");
              [copy.width, copy.height] = [view.width, view.height];
              const g = copy.getContext("2d", { willReadFrequently: true });
              g.drawImage(view, 0, 0);
              return places.map(([x, y]) => [...g.getImageData(x * copy.width, y * copy.height, 1, 1).data]);
            }""",
            [[x / WIDTH, y / HEIGHT] for x, y in places],
        )

    def style(self, selector, name):
        return self.page.evaluate("([s, n]) => getComputedStyle(document.querySelector(s))[n]", [selector, name])

    def close(self):
        assert not self.errors, f"the console has {self.errors}"
        outside = [url for url in self.requests if not url.startswith(("file:", "data:"))]
        assert not outside and len([u for u in self.requests if u.startswith("file:")]) == 1, f"it asked for {outside}"
        self.context.close()


def check_links(page, blocks):
    """A click on any patch in any block highlights what the edges name."""
    page.key("Home")
    for number, block in enumerate(blocks, 1):
        for x, y in [(5, 5), (201.5, 133.2), (402, 302.3), (WIDTH - 1, HEIGHT - 1)]:
            page.click(x, y)
            node = block.node(x, y)
            expected = (number, node, block.edges[node].tolist(), block.incoming(node))
            assert page.highlighted() == expected, f"block {number} at {x}, {y}: {page.highlighted()}, not {expected}"
        page.key("]")


def check_drawing(page, block):
    """Neighbours, and nothing else, change their look when they are shown."""
    page.key("End", "p")
    page.click(*block.middle(block.node(201, 133)))
    node = page.highlighted()[1]
    neighbours = block.edges[node].tolist()
    places = {c: block.candidate_middle(c) for c in range(block.candidates[0] * block.candidates[1])}
    places.pop(node)
    look = lambda: dict(zip(places, page.pixels(list(places.values()))))
    shown = look()
    page.key("n")
    hidden = look()
    page.key("n", "p")
    changed = sorted(c for c in places if shown[c] != hidden[c])
    assert changed == sorted(set(neighbours) - {node}), f"drawn: {changed}, linked: {neighbours}"
    # The nearest one takes on more of the colour than the farthest: distance is opacity.
    color = (86, 180, 233)

    def strength(c):
        apart = lambda a, b: sum(abs(v - w) for v, w in zip(a, b))
        return apart(shown[c], hidden[c]) / (1 + apart(color, hidden[c]))

    inside = [c for c in neighbours if c != node]
    assert strength(inside[0]) > strength(inside[-1]), [strength(c) for c in inside]


def check_keys(page, blocks):
    page.key("Home")
    page.click(*blocks[0].middle(blocks[0].node(300, 200)))
    _, start, _, _ = page.highlighted()
    page.key("ArrowRight", "ArrowDown")
    assert page.highlighted()[1] == start + 1 + blocks[0].columns
    page.key("ArrowLeft", "ArrowUp")
    assert page.highlighted()[1] == start
    page.key("PageDown")
    assert page.highlighted()[0] == 2
    page.key("End")
    assert page.highlighted()[0] == len(blocks)
    page.key("[")
    assert page.highlighted()[0] == len(blocks) - 1
    # Held: the pointer does not move it. Let go: it does.
    held = page.highlighted()[1]
    page.page.mouse.move(*page.at(40, 40))
    page.settle()
    assert page.highlighted()[1] == held
    page.key("Escape")
    page.page.mouse.move(*page.at(60, 60))
    page.settle()
    assert page.highlighted()[1] == blocks[len(blocks) - 2].node(60, 60)
    # The slider, by its own keys.
    page.page.locator("#block").focus()
    page.key("Home", "ArrowRight", "ArrowRight")
    assert page.highlighted()[0] == 3
    page.page.locator("#view").focus()


def check_panels(page, blocks):
    panels = page.page.locator("#all button")
    assert panels.count() == len(blocks)
    panels.nth(3).click()
    page.settle()
    assert page.highlighted()[0] == 4
    page.key("s")
    assert not page.page.locator("#all").is_visible()
    page.key("s")
    assert page.page.locator("#all").is_visible()


def light(color):
    return sum(int(v) for v in color[4:-1].split(",")[:3]) > 384


def check_theme(browser, path):
    for scheme in ("light", "dark"):
        page = Page(browser, path, color_scheme=scheme)
        assert light(page.style("body", "backgroundColor")) == (scheme == "light")
        assert light(page.style("body", "color")) == (scheme == "dark")
        page.key("t")
        assert light(page.style("body", "backgroundColor")) == (scheme == "dark")
        page.close()


def check_phone(browser, path, blocks, screenshots):
    page = Page(browser, path, viewport={"width": 375, "height": 740}, device_scale_factor=2, is_mobile=True, has_touch=True)
    wide, inner = page.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner <= 375, f"the page is {wide} wide on a screen of {inner}"
    small = page.page.evaluate(
        "Math.min(...[...document.querySelectorAll('p, label, td, button, h2')].map(e => parseFloat(getComputedStyle(e).fontSize)))")
    assert small >= 14, f"letters of {small} pixels"
    page.page.touchscreen.tap(*page.at(322, 214))
    page.settle()
    node = blocks[0].node(322, 214)
    assert page.highlighted() == (1, node, blocks[0].edges[node].tolist(), blocks[0].incoming(node)), page.highlighted()
    if screenshots:
        page.page.screenshot(path=screenshots / "phone.png")
    page.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="pvig_s")
    parser.add_argument("--bin", type=Path, default=ROOT / "target" / "debug")
    parser.add_argument("--chromium", default=os.environ.get("CHROMIUM"))
    parser.add_argument("--screenshots", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        folder = Path(folder)
        # Software drawing: there need be no GPU.
        options = {"executable_path": args.chromium, "args": ["--no-sandbox", "--disable-gpu"]}
        try:
            browser = playwright.chromium.launch(**options)
        except PlaywrightError as error:
            print(f"skipped: no Chromium starts here ({str(error).splitlines()[0]})")
            sys.exit(77)
        image, weights, page_file = folder / "image.jpg", folder / "w.safetensors", folder / "page.html"
        make_image(image)
        run(args.bin / "extract_features", args.model, "--input", image, "--edges", "--out", folder / "f.safetensors", "--save", weights)
        run(args.bin / "plot_graph", args.model, "--weights", weights, "--image", image, "--html", page_file, "--out", folder)
        size = page_file.stat().st_size
        assert size < 5_000_000, f"the page has {size} bytes"
        tensors = load_file(folder / "f.safetensors")
        edges = [tensors[f"edges.{i}"][0] for i in range(sum(name.startswith("edges.") for name in tensors))]
        strides = {-(-HEIGHT // s) * -(-WIDTH // s): s for s in (4, 8, 16, 32)}
        pools = {4: 4, 8: 2} if args.model.startswith("pvig_") else {}
        blocks = [Block(e, strides[len(e)], pools.get(strides[len(e)], 1)) for e in edges]

        if args.screenshots:
            args.screenshots.mkdir(parents=True, exist_ok=True)
        page = Page(browser, page_file, viewport={"width": 1280, "height": 900})
        for title in (page.page.title(), page.page.inner_text("h1")):
            assert title == f"{args.model} on image.jpg", title
        check_links(page, blocks)
        check_drawing(page, blocks[-1])
        check_keys(page, blocks)
        check_panels(page, blocks)
        if args.screenshots:
            page.click(402, 300)
            page.page.evaluate("scrollTo(0, 0)")
            page.page.screenshot(path=args.screenshots / "light.png", full_page=True)
            page.key("t")
            page.page.screenshot(path=args.screenshots / "dark.png", full_page=True)
        page.close()
        check_theme(browser, page_file)
        check_phone(browser, page_file, blocks, args.screenshots)
        print(f"{args.model} in Chromium {browser.version}: {len(blocks)} blocks, page of {size / 1e6:.2f} MB: as the edges say")
        browser.close()


if __name__ == "__main__":
    main()
