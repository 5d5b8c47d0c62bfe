"""Gain in Dice from simulated clicks on the masks of `tiny`, by each way to apply them.

    .venv/bin/python benchmarks/clicks.py DATA [--clicks 5] [--json FILE]

A simulated user clicks the center of the largest missed region (positive) or wrong region (negative), one click after the
other. `bumps` changes the logits near the clicks, as `refine` does for `tiny`; `prompts` are SAM 2's point and mask
prompts alone, which are random in `tiny`; `both` is the way for models with trained prompts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock, patch

import numpy as np
from scipy import ndimage

from vesalius import load_item, load_predictor, load_samples
from vesalius.clicks import Click
from vesalius.files import write_json
from vesalius.models.cards import ModelCard
from vesalius.types import Item


def find_click(target: np.ndarray, mask: np.ndarray) -> Click | None:
    """The click of the simulated user; None if the mask is perfect."""
    found: list[tuple[int, Click]] = []
    for region, positive in ((target & ~mask, True), (mask & ~target, False)):
        labels, count = ndimage.label(region, np.ones((3, 3)))
        if count:
            sizes = np.bincount(labels.ravel())[1:]
            inside = np.pad(labels == sizes.argmax() + 1, 1)
            depth = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            found.append((int(sizes.max()), ((float(x), float(y)), positive)))
    return max(found)[1] if found else None


def dice(target: np.ndarray, mask: np.ndarray) -> float:
    """Dice of two masks; at least one must not be empty."""
    return 2 * float((target & mask).sum()) / float(target.sum() + mask.sum())


def measure(items: list[Item], clicks: int) -> dict[str, Any]:
    """Per phrase the Dice before and after each click, and the seconds of a call."""
    predictor = load_predictor("tiny")
    curves: dict[str, list[list[float]]] = {}
    took = []
    for item in items:
        for prompt, masks in zip(item.prompts, item.masks if item.masks is not None else (), strict=True):
            prediction = predictor(item.frames[0], prompt)
            curve = [dice(masks[0], prediction.mask)]
            for _ in range(clicks):
                if click := find_click(masks[0], prediction.mask):
                    start = time.perf_counter()
                    prediction = predictor.refine(prediction, [click])
                    took.append(time.perf_counter() - start)
                curve.append(dice(masks[0], prediction.mask))
            curves.setdefault(prompt, []).append(curve)
    phrases = {
        prompt: {
            "images": len(rows),
            "dice": [round(statistics.mean(column), 4) for column in zip(*rows, strict=True)],
            "worse": sum(row[-1] < row[0] for row in rows),
        }
        for prompt, rows in curves.items()
    }
    return {"phrases": phrases, "median_s": statistics.median(took)}


def main() -> None:
    """Measure the three ways on one dataset and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    items = [load_item(sample) for sample in load_samples(args.data)]
    rows = {"bumps": measure(items, args.clicks)}
    with patch.object(ModelCard, "has_random_points", PropertyMock(return_value=False)):
        rows["both"] = measure(items, args.clicks)
        with patch("vesalius.inference.refinement.correct", lambda logits, *_: logits):
            rows["prompts"] = measure(items, args.clicks)
    for way, row in rows.items():
        for prompt, each in row["phrases"].items():
            shown = " ".join(f"{value:.3f}" for value in each["dice"])
            print(f"{way:8} {prompt:14} {shown}  worse {each['worse']} of {each['images']}  {row['median_s']:.3f} s")
    if args.json:
        write_json(args.json, {"data": args.data.name, "rows": rows})


if __name__ == "__main__":
    main()
