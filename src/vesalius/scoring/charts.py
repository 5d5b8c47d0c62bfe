"""The charts of a report: distributions, means with their intervals, curves over thresholds.

Each has a dash or a shape of its own beside its color.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from vesalius import plots
from vesalius.evaluation.metrics import METRICS
from vesalius.plots import (
    BLUE,
    BOTTOM,
    GRAY,
    GREEN,
    INK,
    LEFT,
    PURPLE,
    RIGHT,
    SHARES,
    VERMILLION,
    WIDTH,
    Plot,
    ticks_to,
)
from vesalius.scoring.tables import interval, number, title

LINES = (
    ("dice", BLUE, ""),
    ("iou", VERMILLION, "7 3"),
    ("precision", GREEN, "2 3"),
    ("recall", PURPLE, "9 3 2 3"),
)
"""The curves over thresholds: metric, color and dashes."""

Curves = Mapping[str, Sequence[float | None]]


def histogram(values: Sequence[float], name: str) -> Markup:
    """How often each value of a metric occurs, with their mean: shares in [0, 1], all else from 0 to the largest."""
    share = METRICS[name].better == "higher"
    ticks = SHARES if share else ticks_to(max(values, default=1.0))
    return plots.histogram(values, title(name), ticks, of="answers", said=number)


def bars(mean: Mapping[str, float | None], ci95: Mapping[str, Any], names: Sequence[str]) -> Markup:
    """A bar across for each metric, shares in [0, 1], with its interval; an undefined one has none."""
    plot = Plot((0, 1), (len(names), 0), height=46 * len(names), left=12, bottom=22)
    plot.axes(SHARES)
    words = []
    for row, name in enumerate(names):
        value, ends = mean[name], ci95[name]
        said = "not defined" if value is None else number(value) + (f" ({interval(ends)})" if ends else "")
        words.append(f"{title(name)}: {said}")
        plot.text(0, row, words[-1], dy=16, anchor="start", color=INK)
        if value is None:
            continue
        plot.bar((0, value), (row + 0.82, row + 0.45), BLUE, words[-1])
        if ends:
            plot.line([(ends[0], row + 0.635), (ends[1], row + 0.635)], INK, 2)
            for end in ends:
                plot.line([(end, row + 0.52), (end, row + 0.75)], INK, 2)
    return plot.svg("; ".join(words))


def reliability(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Probability said against share that came true; a bin with few pixels has a small dot."""
    plot = Plot((0, 1), (0, 1), height=WIDTH - LEFT - RIGHT)
    plot.axes(SHARES, SHARES, "probability said; upwards: share that was true")
    plot.line([(0, 0), (1, 1)], GRAY, 1.5, "5 4")
    full = [each for each in bins if each["pixels"]]
    plot.line([(each["mean_probability"], each["positive_fraction"]) for each in full], BLUE, 2)
    most = math.log10(max((10, *(each["pixels"] for each in full))))
    words = []
    for each in full:
        words.append(f"said {each['mean_probability']:.2f}, came {each['positive_fraction']:.2f}")
        radius = 3 + 5 * math.log10(each["pixels"]) / most
        plot.dot(
            each["mean_probability"],
            each["positive_fraction"],
            radius,
            BLUE,
            f"{words[-1]}, {each['pixels']} pixels",
        )
    return plot.svg("Reliability diagram: " + "; ".join(words))


def thresholds(tried: Sequence[float], curves: Curves, threshold: float) -> Markup:
    """Each metric over the thresholds tried, and the one in use as an upright line."""
    plot = Plot((0, 1), (0, 1), height=220, bottom=BOTTOM + 44)
    plot.axes(SHARES, SHARES, "threshold")
    words = []
    for place, (name, color, dash) in enumerate(LINES):
        for run in _runs(tried, curves[name]):
            plot.line(run, color, 2.5, dash)
        best = _highest(tried, curves[name])
        if best:
            words.append(f"{title(name)} is highest at {best[0]:.2f} with {number(best[1])}")
        x, down = 0.5 * (place % 2), 0.25 + 0.09 * (place // 2)
        plot.line([(x, -down), (x + 0.13, -down)], color, 2.5, dash)
        plot.text(x + 0.15, -down, title(name), dy=4, anchor="start")
    plot.line([(threshold, 0), (threshold, 1)], INK, 1.5)
    dx, anchor = (-5, "end") if threshold > 0.5 else (5, "start")
    plot.text(threshold, 1, f"in use: {threshold:.3g}", dx=dx, dy=10, anchor=anchor, color=INK)
    return plot.svg(f"Curves over thresholds, {threshold:.3g} in use: " + "; ".join(words))


def better_threshold(
    tried: Sequence[float], curves: Curves, threshold: float, gain: float
) -> tuple[float, float, float] | None:
    """The threshold of the highest Dice, that Dice, and the Dice at the one in use, if they differ by more than `gain`."""
    best = _highest(tried, curves["dice"])
    if best is None:
        return None
    points = [point for run in _runs(tried, curves["dice"]) for point in run]
    now = min(points, key=lambda point: abs(point[0] - threshold))
    return (*best, now[1]) if best[1] - now[1] > gain else None


def _highest(tried: Sequence[float], values: Sequence[float | None]) -> tuple[float, float] | None:
    """(threshold, value) where the curve is highest; None where it has no value."""
    points = [point for run in _runs(tried, values) for point in run]
    return max(points, key=lambda point: point[1], default=None)


def _runs(tried: Sequence[float], values: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """(threshold, value) in stretches without a gap."""
    runs: list[list[tuple[float, float]]] = [[]]
    for place, value in zip(tried, values, strict=True):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((place, value))
    return [run for run in runs if run]
