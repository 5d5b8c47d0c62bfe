"""Mask quality after training with different losses.

    .venv/bin/python benchmarks/losses.py [--data FOLDER] [--steps 240] [--seeds 0 1 2] [--json FILE]

The shipped `tiny` is fine-tuned with recipes/arcade.yaml, once for each entry of LOSSES and each seed, from the same
weights on the same images in the same order, with all objects of an image as one "blood vessel". FOLDER holds
annotations.train.json and annotations.val.json; without it, synthetic retinas are used, which `tiny` already segments.
The last weights are scored on the validation images with forced answers: Dice and clDice at probability 0.5, and Dice at
the best common threshold, because a loss may shift the probabilities without changing the ranking of pixels. The table has
mean and spread over seeds; differences below the spread are not meaningful. A seed changes order, augmentation and sampled
points. FILE is rewritten after each loss.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.config import read_settings
from vesalius.data.dataset import load_item, open_dataset
from vesalius.evaluation.centerline import cldice
from vesalius.evaluation.overlap import score
from vesalius.evaluation.shape import Shape
from vesalius.files import write_json
from vesalius.jobs.opening import load_predictor
from vesalius.lineage import versions
from vesalius.synth import write_dataset
from vesalius.training.run import train
from vesalius.training.settings import RunSettings
from vesalius.types import Item

RECIPE = Path(__file__).resolve().parents[1] / "recipes/arcade.yaml"
LOSSES: dict[str, dict[str, Any]] = {
    "default": {},
    "official": {"resolution": "points", "iou": 0},
    "bce 3 dice 1": {"text": 0.1, "bce": 3, "dice": 1},
    "arcade.yaml": {"text": 0.1, "bce": 1, "dice": 1, "cldice": 0.5},
    "points": {"resolution": "points"},
    "pixels": {"resolution": "image"},
    "bce alone": {"dice": 0},
    "dice alone": {"bce": 0, "dice": 2.5},
    "cldice 0.5": {"cldice": 0.5},
    "cldice 2": {"cldice": 2},
    "focal for bce": {"bce": 0, "focal": 10},
    "objects": {"class_balanced": True},
}
"""Name -> changes from the defaults of `LossSettings`."""
THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 20))


def train_one(sets: dict[str, Path], way: str, seed: int, steps: int, folder: Path) -> tuple[Path, float]:
    """The run folder of one training, and its median seconds per step."""
    changes = {
        "minutes": None,
        "steps": steps,
        "seed": seed,
        "out": str(folder / "run"),
        "data": {"train": str(sets["train"]), "prompt": "blood vessel"},
        "loss": LOSSES[way],
    }
    written = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    settings = read_settings(RunSettings, RECIPE, written)
    run = train(settings)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return run, statistics.median(settings.batch_size / line["images_per_s"] for line in lines)


def score_one(run: Path, items: list[Item]) -> dict[str, float]:
    """Mean scores over the validation images."""
    predictor = load_predictor(run / "last", answer="force")
    dices, lines, at_threshold = [], [], []
    for start in range(0, len(items), predictor.batch_size):
        part = items[start : start + predictor.batch_size]
        for item, prediction in zip(part, predictor.predict(part), strict=True):
            target = item.masks[0, 0]  # type: ignore[index]
            probabilities = prediction.probabilities.max(axis=0)
            dices.append(score(target, probabilities > 0.5)["dice"])
            lines.append(cldice(Shape(target), Shape(probabilities > 0.5)))
            at_threshold.append([score(target, probabilities > each)["dice"] for each in THRESHOLDS])
    by_threshold = np.mean(np.array(at_threshold, dtype=float), axis=0)
    return {
        "dice": statistics.mean(each for each in dices if each is not None),
        "cldice": statistics.mean(each for each in lines if each is not None),
        "best_dice": float(by_threshold.max()),
        "best_threshold": THRESHOLDS[int(by_threshold.argmax())],
    }


def measure(name: str, sets: dict[str, Path], args: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """One row per loss and seed; prints one line per loss."""
    samples = open_dataset(sets["val"], prompt="blood vessel").annotated().samples[: args.images]
    items = [load_item(sample) for sample in samples]
    print(f"\n{name}: {args.steps} steps, {len(items)} validation images, seeds {args.seeds}")
    print(f"{'loss':16}{'Dice':>16}{'clDice':>16}{'best Dice':>16}{'at':>7}{'s/step':>9}")
    for way in args.losses:
        of_way = []
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as folder:
                run, seconds = train_one(sets, way, seed, args.steps, Path(folder))
                row = {"data": name, "loss": way, "seed": seed, "s_per_step": seconds}
                of_way.append(row | score_one(run, items))
        shown = "".join(f"{spread([row[key] for row in of_way]):>16}" for key in ("dice", "cldice", "best_dice"))
        at, seconds = (statistics.mean(row[key] for row in of_way) for key in ("best_threshold", "s_per_step"))
        print(f"{way:16}{shown}{at:7.2f}{seconds:9.2f}", flush=True)
        yield of_way


def spread(values: list[float]) -> str:
    """Mean and half range as text."""
    return f"{statistics.mean(values):.3f} +- {(max(values) - min(values)) / 2:.3f}"


def main() -> None:
    """Train and score with all losses, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="train and validate on its images")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=40, help="validation images (default 40)")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    about = {"machine": machine, "versions": versions(), "steps": args.steps, "losses": LOSSES}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        if args.data:
            name = args.data.resolve().name
            sets = {part: args.data / f"annotations.{part}.json" for part in ("train", "val")}
        else:
            name = "synthetic retinas"
            sets = {part: Path(folder) / part for part in ("train", "val")}
            write_dataset(sets["train"], 160, seed=300, kind="retina")
            write_dataset(sets["val"], args.images, seed=301, kind="retina")
        for of_way in measure(name, sets, args):
            rows += of_way
            if args.json:
                write_json(args.json, {**about, "rows": rows})


if __name__ == "__main__":
    main()
