"""Upper bound of Dice for the resolution of the mask decoder, on the whole image and in tiles.

    .venv/bin/python benchmarks/tiles.py FOLDER... [--cells 256] [--input 1024] [--json FILE]

Each FOLDER contains `masks/`. The ground truth stands for the output of a perfect model: it is averaged over the cells of
the mask decoder's map, for the whole image or for each window, then enlarged, blended and thresholded at 0.5 like a
prediction. No training can exceed this Dice.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vesalius.data.images import list_images
from vesalius.files import write_json
from vesalius.inference.tiles import TileSettings, find_windows
from vesalius.mask_maps import Tile, Tiled, Window
from vesalius.masks import area_average


def perfect(target: np.ndarray, windows: list[Window], cells: int, input_size: int) -> np.ndarray:
    """The mask bool (h, w) predicted by a model with perfect maps of `cells` x `cells`."""
    tiles = []
    for window in windows:
        part = target[window.pixels]
        tiles.append(Tile(window, area_average(part, (cells, cells))[None] - np.float32(0.5)))
    size = target.shape[0], target.shape[1]
    return Tiled(tuple(tiles), input_size).masks(size, 0.5)[0]


def dice(target: np.ndarray, prediction: np.ndarray) -> float:
    """Dice of two masks; at least one must not be empty."""
    return 2 * float((target & prediction).sum()) / float(target.sum() + prediction.sum())


def measure(folder: Path, cells: int, input_size: int) -> list[dict[str, Any]]:
    """The best Dice, averaged over the masks of a folder, for the whole image and for windows of several sides."""
    targets = [np.asarray(Image.open(path).convert("L")) > 0 for path in list_images(folder / "masks")]
    rows = []
    overlap = TileSettings().overlap
    for side in (None, input_size, input_size * 3 // 4, input_size // 2, input_size // 4):
        values = []
        for target in targets:
            size = target.shape[0], target.shape[1]
            windows = [Window(0, 0, *size)] if side is None else find_windows(size, side, overlap)
            values.append(dice(target, perfect(target, windows, cells, input_size)))
        row = {"data": folder.name, "images": len(targets), "side": side, "best_dice": statistics.mean(values)}
        row["windows"] = len(windows)
        rows.append(row)
        shown = "whole image" if side is None else f"tiles of {side}"
        print(f"{folder.name:12}{shown:>16}{row['windows']:5d} windows{row['best_dice']:10.4f}", flush=True)
    return rows


def main() -> None:
    """Measure every folder and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--cells", type=int, default=256, help="side of the mask decoder's map (default 256)")
    parser.add_argument("--input", type=int, default=1024, help="side of the segmenter's input (default 1024)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = [row for folder in args.folders for row in measure(folder, args.cells, args.input)]
    if args.json:
        write_json(args.json, {"cells": args.cells, "input": args.input, "rows": rows})


if __name__ == "__main__":
    main()
