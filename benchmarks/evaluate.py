"""Images scored per second with all metrics, by Vesalius and by other libraries.

    .venv/bin/python benchmarks/evaluate.py [--pairs 48] [--size 512] [--spacing 0.3 0.3] [--json FILE]

Both sides score the same masks with the same metrics in two processes. Ours: `vesalius.evaluation.metrics.score`.
Theirs: MONAI (overlap, distances), with one object per metric called on batches of one as in its documentation, and
scikit-image and scipy (skeletons, widths, components, holes), with one function of two masks per metric. Metrics that one
library call returns together are computed once: all ratios of the confusion matrix, and clDice with precision and
sensitivity. The benchmark fails if the values of both sides differ. Masks are synthetic vessels; predictions are the same
masks shifted, with gaps, ragged edges and false blobs. Needs the development packages.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter
from skimage.measure import euler_number, label
from skimage.morphology import diamond, skeletonize

from vesalius.evaluation.centerline import WIDTHS
from vesalius.evaluation.metrics import score
from vesalius.synth import draw

PROCESSES = 2
Spacing = tuple[float, float] | None
Pair = tuple[np.ndarray, np.ndarray]
Values = dict[str, float | None]
ROUNDS = {"theirs": 1, "ours": 5}
"""Repetitions, chosen so that each measurement takes seconds."""


def make_pair(index: int, size: int) -> Pair:
    """A ground truth mask and a realistic prediction for it."""
    target = draw(9, index, size).masks[0, 0]  # type: ignore[index]
    rng = np.random.default_rng(index)
    ragged = gaussian_filter(target.astype(np.float32), 1.5) + 0.15 * gaussian_filter(
        rng.normal(size=target.shape), 1.5
    )
    gaps = gaussian_filter(rng.random(target.shape), 4) > 0.545
    blobs = gaussian_filter(rng.random(target.shape), 4) > 0.575
    moved = np.roll(ragged > 0.45, rng.integers(-1, 2, 2), axis=(0, 1))
    return target, (moved & ~gaps) | blobs


class Theirs:
    """The same metrics from other libraries."""

    def __init__(self, spacing: Spacing) -> None:
        import torch

        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from monai import metrics as monai
        warnings.simplefilter("ignore")  # MONAI uses its own deprecated functions
        self.torch, self.spacing = torch, spacing
        self.shares = ["precision", "recall", "specificity", "accuracy", "balanced accuracy"]
        self.overlap = {
            "dice": monai.DiceMetric(),
            "iou": monai.MeanIoU(),
            "shares": monai.ConfusionMatrixMetric(metric_name=self.shares),
        }
        self.distances = {
            "hd_": monai.HausdorffDistanceMetric(),
            "hd95_": monai.HausdorffDistanceMetric(percentile=95),
            "assd_": monai.SurfaceDistanceMetric(symmetric=True),
            "nsd_1": monai.SurfaceDiceMetric(class_thresholds=[1.0]),
            "nsd_2": monai.SurfaceDiceMetric(class_thresholds=[2.0]),
        }
        self.lines: tuple[Callable[[np.ndarray, np.ndarray], Values], ...] = (
            cldice,
            betti0_error,
            betti1_error,
            breaks,
            skeleton_recall,
            skeleton_recall_by_width,
        )

    def score(self, target: np.ndarray, prediction: np.ndarray) -> Values:
        """All metrics of one pair."""
        batches = [self.torch.from_numpy(mask.astype(np.float32))[None, None] for mask in (prediction, target)]
        values: Values = {}
        for name, metric in self.overlap.items():
            metric(*batches)
            found = metric.aggregate()
            metric.reset()
            if name == "shares":
                values |= {share.replace(" ", "_"): v.item() for share, v in zip(self.shares, found, strict=True)}
            else:
                values[name] = found.item()
        units: dict[str, dict[str, Any]] = {"px": {}} | ({"mm": {"spacing": self.spacing}} if self.spacing else {})
        for unit, options in units.items():
            for name, metric in self.distances.items():
                metric(*batches, **options)
                values[name + unit] = metric.aggregate().item()
                metric.reset()
        for function in self.lines:
            values |= function(target, prediction)
        return values


def cldice(target: np.ndarray, prediction: np.ndarray) -> Values:
    """clDice as in the authors' code: https://github.com/jocpae/clDice/blob/master/cldice_metric/cldice.py"""
    target_line, predicted_line = skeletonize(target), skeletonize(prediction)
    precision = float(np.sum(target * predicted_line) / np.sum(predicted_line))
    sensitivity = float(np.sum(prediction * target_line) / np.sum(target_line))
    return {
        "cldice": 2 * precision * sensitivity / (precision + sensitivity),
        "topology_precision": precision,
        "topology_sensitivity": sensitivity,
    }


def betti0_error(target: np.ndarray, prediction: np.ndarray) -> Values:
    """Difference in the number of connected components."""
    pieces = [label(mask, connectivity=2, return_num=True)[1] for mask in (target, prediction)]
    return {"betti0_error": float(abs(pieces[0] - pieces[1]))}


def betti1_error(target: np.ndarray, prediction: np.ndarray) -> Values:
    """Difference in the number of holes: components minus the Euler number."""
    padded = [np.pad(mask, 1) for mask in (target, prediction)]
    holes = [label(each, connectivity=2, return_num=True)[1] - euler_number(each, connectivity=2) for each in padded]
    return {"betti1_error": float(abs(holes[0] - holes[1]))}


def breaks(target: np.ndarray, prediction: np.ndarray) -> Values:
    """Excess components along each vessel of the ground truth."""
    line, vessels = skeletonize(target), label(target, connectivity=2)
    near = label(prediction & binary_dilation(target, diamond(2)), connectivity=2)
    meets = np.unique(np.stack([vessels[line], near[line]]), axis=1)
    met = np.bincount(meets[0][meets[1] > 0], minlength=vessels.max() + 1)[1:]
    return {"breaks": float(np.abs(met - 1).sum())}


def skeleton_recall(target: np.ndarray, prediction: np.ndarray) -> Values:
    """Fraction of the ground truth skeleton that the prediction covers."""
    return {"skeleton_recall": float(prediction[skeletonize(target)].mean())}


def skeleton_recall_by_width(target: np.ndarray, prediction: np.ndarray) -> Values:
    """Skeleton recall by vessel width."""
    line = skeletonize(target)
    width, found = 2 * distance_transform_edt(target)[line], prediction[line]
    strata = {name: found[(width > low) & (width <= high)] for name, (low, high) in WIDTHS.items()}
    return {f"skeleton_recall_{name}": float(part.mean()) if len(part) else None for name, part in strata.items()}


_state: dict[str, Any] = {}
"""State of a worker process: the masks, and the function that scores them."""


def prepare(who: str, pairs: list[Pair], spacing: Spacing, ready: Any) -> None:
    """Load the libraries, score once, and wait for the other processes before the timing starts."""
    _state["pairs"] = pairs
    _state["score"] = Theirs(spacing).score if who == "theirs" else partial(score, spacing_mm=spacing)
    _state["score"](*pairs[0])
    ready.wait()


def work(index: int) -> Values:
    """The scores of one pair."""
    found: Values = _state["score"](*_state["pairs"][index])
    return found


def measure(who: str, pairs: list[Pair], spacing: Spacing, rounds: int) -> tuple[float, list[Values]]:
    """Images per second with two processes, all pairs scored `rounds` times, and the scores."""
    context = get_context("spawn")
    arguments = (who, pairs, spacing, context.Barrier(PROCESSES))
    with ProcessPoolExecutor(PROCESSES, context, prepare, arguments) as pool:
        list(pool.map(work, range(PROCESSES)))  # starts the processes
        started = time.perf_counter()
        values = list(pool.map(work, [*range(len(pairs))] * rounds, chunksize=4))
        return len(values) / (time.perf_counter() - started), values[: len(pairs)]


def largest_difference(ours: list[Values], theirs: list[Values]) -> tuple[float, str]:
    """Largest difference of a metric on a pair, relative to max(1, value), and the metric's name."""
    worst = (0.0, "")
    for mine, other in zip(ours, theirs, strict=True):
        for name, value in other.items():
            a, b = mine[name], value
            if a is None or b is None:
                worst = max(worst, (0.0 if a is b else float("inf"), name))
            else:
                worst = max(worst, (abs(a - b) / max(1.0, abs(b)), name))
    return worst


def main() -> None:
    """Measure both, compare the values, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--spacing", type=float, nargs=2, metavar=("ROW", "COLUMN"), help="mm; adds the metrics in mm")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # two processes on two cores
    spacing = tuple(args.spacing) if args.spacing else None
    pairs = [make_pair(index, args.size) for index in range(args.pairs)]
    rows: list[dict[str, Any]] = []
    scores = []
    print(f"{'':10}{'images/s':>10}{'ms/image':>10}{'metrics':>9}   {PROCESSES} processes, {args.size} x {args.size}")
    for who in ("theirs", "ours"):
        images_per_s, values = measure(who, pairs, spacing, ROUNDS[who])
        names = [name for name in values[0] if spacing or not name.endswith("mm")]
        rows.append({"who": who, "images_per_s": images_per_s, "metrics": len(names)})
        scores.append(values)
        ms = 1000 * PROCESSES / images_per_s
        print(f"{who:10}{images_per_s:10.1f}{ms:10.1f}{len(names):9d}", flush=True)
    times = rows[1]["images_per_s"] / rows[0]["images_per_s"]
    difference, name = largest_difference(scores[1], scores[0])
    print(f"ours is {times:.1f} times as fast; largest difference {difference:.1e}, in {name}")
    if args.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        result = {"machine": machine, "size": args.size, "pairs": args.pairs, "spacing_mm": spacing, "rows": rows}
        result |= {"times_as_fast": times, "largest_difference": difference}
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if difference > 1e-4:
        sys.exit("the two sides compute different values")


if __name__ == "__main__":
    main()
