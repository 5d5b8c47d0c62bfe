"""Small datasets with faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.html_pages import ATTACK

SQUARE = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]


def write_data(folder: Path, rows: list[dict[str, Any]], size: tuple[int, int] = (64, 96)) -> Path:
    """A dataset with an entry per row: a noise image and a square for the phrase `v`, updated by the row."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, row in enumerate(rows):
        entry = {"image": f"{index:03}.png", "mask": [SQUARE], "text": ["v"], "group": str(index), **row}
        pixels = np.random.default_rng(index).integers(0, 256, size, np.uint8)
        Image.fromarray(pixels).save(folder / entry["image"])
        entries.append(entry)
    (folder / "annotations.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return folder


def write_broken(folder: Path, first: dict[str, Any] | None = None) -> Path:
    """Seven entries: valid (updated by `first`), another size, outside the image, a phrase with HTML, a Chinese phrase, an
    empty image file, and no masks."""
    rows: list[dict[str, Any]] = [
        first or {},
        {"size": [128, 192]},
        {"mask": [[[80.0, 10.0, 120.0, 10.0, 120.0, 50.0]]]},
        {"text": [ATTACK]},
        {"text": ["冠状动脉左前降支"], "image": "左冠 & <b>1.png"},
        {"image": "cut.png"},
        {"mask": []},
    ]
    data = write_data(folder / "data", rows)
    (data / "cut.png").write_bytes(b"")
    return data
