"""Charts of a report: distributions, means with intervals, threshold curves, reliability.

Curves differ in dash pattern as well as color.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from vesalius import plots
from vesalius.evaluation.metrics import METRICS
from vesalius.language import translate
from vesalius.plots import (
    BLUE,
    BOTTOM,
    GRAY,
    GREEN,
    INK,
    LEFT,
    PURPLE,
    RATIO_TICKS,
    RIGHT,
    VERMILLION,
    WIDTH,
    Plot,
    ticks_to,
)
from vesalius.scoring.tables import interval, number, title

CURVE_STYLES = (
    ("dice", BLUE, ""),
    ("iou", VERMILLION, "7 3"),
    ("precision", GREEN, "2 3"),
    ("recall", PURPLE, "9 3 2 3"),
)
"""Threshold curves: metric, color and dash pattern."""

Curves = Mapping[str, Sequence[float | None]]


def histogram(values: Sequence[float], name: str) -> Markup:
    """Histogram of a metric with its mean; the axis ends at 1 for ratios, else above the largest value."""
    is_ratio = METRICS[name].better == "higher"
    ticks = RATIO_TICKS if is_ratio else ticks_to(max(values, default=1.0))
    return plots.histogram(values, title(name), ticks, of=translate("predictions"), written=number)


def bars(mean: Mapping[str, float | None], ci95: Mapping[str, Any], names: Sequence[str]) -> Markup:
    """Horizontal bars of metrics in [0, 1] with their intervals; undefined metrics have no bar."""
    plot = Plot((0, 1), (len(names), 0), height=46 * len(names), left=12, bottom=22)
    plot.axes(RATIO_TICKS)
    words = []
    for row, name in enumerate(names):
        value, ends = mean[name], ci95[name]
        said = translate("undefined") if value is None else number(value) + (f" ({interval(ends)})" if ends else "")
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
    """Reliability diagram: observed foreground fraction by predicted probability; dots grow with the pixel count."""
    plot = Plot((0, 1), (0, 1), height=WIDTH - LEFT - RIGHT)
    plot.axes(RATIO_TICKS, RATIO_TICKS, translate("predicted probability; vertical: observed fraction"))
    plot.line([(0, 0), (1, 1)], GRAY, 1.5, "5 4")
    full = [each for each in bins if each["pixels"]]
    plot.line([(each["mean_probability"], each["positive_fraction"]) for each in full], BLUE, 2)
    most = math.log10(max((10, *(each["pixels"] for each in full))))
    words = []
    for each in full:
        predicted, observed = f"{each['mean_probability']:.2f}", f"{each['positive_fraction']:.2f}"
        words.append(translate("predicted {predicted}, observed {observed}", predicted=predicted, observed=observed))
        radius = 3 + 5 * math.log10(each["pixels"]) / most
        tip = translate("{words}, {n} pixels", words=words[-1], n=each["pixels"])
        plot.dot(each["mean_probability"], each["positive_fraction"], radius, BLUE, tip)
    return plot.svg(translate("Reliability diagram: ") + "; ".join(words))


def thresholds(tried: Sequence[float], curves: Curves, threshold: float) -> Markup:
    """Curves of the metrics over thresholds, with the threshold in use as a vertical line."""
    plot = Plot((0, 1), (0, 1), height=220, bottom=BOTTOM + 44)
    plot.axes(RATIO_TICKS, RATIO_TICKS, translate("threshold"))
    words = []
    for index, (name, color, dash) in enumerate(CURVE_STYLES):
        for run in _runs(tried, curves[name]):
            plot.line(run, color, 2.5, dash)
        best = _highest(tried, curves[name])
        if best:
            words.append(
                translate(
                    "{metric} is highest at {threshold} with {value}",
                    metric=title(name),
                    threshold=f"{best[0]:.2f}",
                    value=number(best[1]),
                )
            )
        x, down = 0.5 * (index % 2), 0.25 + 0.09 * (index // 2)
        plot.line([(x, -down), (x + 0.13, -down)], color, 2.5, dash)
        plot.text(x + 0.15, -down, title(name), dy=4, anchor="start")
    plot.line([(threshold, 0), (threshold, 1)], INK, 1.5)
    dx, anchor = (-5, "end") if threshold > 0.5 else (5, "start")
    plot.text(
        threshold,
        1,
        translate("in use: {threshold}", threshold=f"{threshold:.3g}"),
        dx=dx,
        dy=10,
        anchor=anchor,
        color=INK,
    )
    head = translate("Threshold curves, {threshold} in use: ", threshold=f"{threshold:.3g}")
    return plot.svg(head + "; ".join(words))


def better_threshold(
    tried: Sequence[float], curves: Curves, threshold: float, gain: float
) -> tuple[float, float, float] | None:
    """Best threshold, its Dice, and Dice at the threshold in use; None unless Dice improves by more than `gain`."""
    best = _highest(tried, curves["dice"])
    if best is None:
        return None
    points = [point for run in _runs(tried, curves["dice"]) for point in run]
    now = min(points, key=lambda point: abs(point[0] - threshold))
    return (*best, now[1]) if best[1] - now[1] > gain else None


def _highest(tried: Sequence[float], values: Sequence[float | None]) -> tuple[float, float] | None:
    """(threshold, value) at the maximum of the curve; None if it has no value."""
    points = [point for run in _runs(tried, values) for point in run]
    return max(points, key=lambda point: point[1], default=None)


def _runs(tried: Sequence[float], values: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """Contiguous runs of (threshold, value) with a defined value."""
    runs: list[list[tuple[float, float]]] = [[]]
    for threshold, value in zip(tried, values, strict=True):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((threshold, value))
    return [run for run in runs if run]
