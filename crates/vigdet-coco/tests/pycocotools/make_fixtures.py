#!/usr/bin/env python3
"""Writes tests/fixtures/cases.json: small evaluation cases with pycocotools' numbers, for tests without Python.

    python make_fixtures.py    (pycocotools 2.0.11)
"""

import json
import pathlib

import cases


def main():
    chosen = []
    for seed in range(100_000, 101_000):
        case = cases.make(seed)
        if case["results"] and len(json.dumps(case)) < 6000:
            chosen.append(cases.expected(case)[0])
    path = pathlib.Path(__file__).parent.parent / "fixtures" / "cases.json"
    path.write_text("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in chosen[:160]) + "\n]\n")
    kinds = {kind: sum(case["type"] == kind for case in chosen[:160]) for kind in ("bbox", "segm")}
    print(f"{path}: {kinds}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
