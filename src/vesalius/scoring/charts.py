"""The charts of a report as SVG inside its page: no other file, no script, and each says in words what it shows.

Drawn as wide as a phone, so that their letters stay legible there. Colours: Okabe & Ito 2008, each with a dash or
a shape of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from vesalius.evaluation.metrics import METRICS
from vesalius.scoring.tables import interval, number, title

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 340, 42, 18, 10, 40
"""Pixels of the drawing, and of its margins."""
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
INK, GREY, PALE = "#18181b", "#5f5f68", "#dcdce2"
LINES = (
    ("dice", BLUE, ""),
    ("iou", VERMILLION, "7 3"),
    ("precision", GREEN, "2 3"),
    ("recall", PURPLE, "9 3 2 3"),
)
"""The curves over thresholds: metric, colour and dashes."""
BINS = 20

Curves = Mapping[str, Sequence[float | None]]
Ticks = Sequence[tuple[float, str]]
Range = tuple[float, float]
SHARES: Ticks = [(0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1, "1")]


class Plot:
    """A drawing with two axes; what is drawn is given in the numbers of the data."""

    def __init__(self, x: Range, y: Range, height: int = 150, left: int = LEFT, bottom: int = BOTTOM) -> None:
        """`height` is that of the area between the axes."""
        self._x, self._y, self._height, self._left, self._bottom = x, y, height, left, bottom
        self._parts: list[Markup] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the data lies in the drawing."""
        width = WIDTH - self._left - RIGHT
        across = (x - self._x[0]) / (self._x[1] - self._x[0])
        up = (y - self._y[0]) / (self._y[1] - self._y[0])
        return round(self._left + across * width, 1), round(TOP + (1 - up) * self._height, 1)

    def axes(self, x: Ticks = (), y: Ticks = (), name: str = "") -> None:
        """Both axes with their marks; `name` stands under the lower one."""
        for value, label in y:
            self.line([(self._x[0], value), (self._x[1], value)], PALE, 1)
            self.text(self._x[0], value, label, dx=-6, dy=4, anchor="end")
        for value, label in x:
            self.text(value, self._y[0], label, dy=16)
        self.line([(self._x[0], self._y[0]), (self._x[1], self._y[0])], GREY, 1)
        if name:
            self.text(sum(self._x) / 2, self._y[0], name, dy=33)

    def line(
        self, points: Sequence[tuple[float, float]], colour: str, width: float = 2, dash: str = ""
    ) -> None:
        places = " ".join("{},{}".format(*self.at(*point)) for point in points)
        self._add(
            '<polyline points="{}" fill="none" stroke="{}" stroke-width="{}" stroke-dasharray="{}"/>',
            places,
            colour,
            width,
            dash or "none",
        )

    def bar(self, x: Range, y: Range, colour: str, tip: str, inset: float = 0) -> None:
        """A rectangle; `inset` pixels are left free at its left and right."""
        (left, bottom), (right, top) = self.at(x[0], y[0]), self.at(x[1], y[1])
        self._add(
            '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"><title>{}</title></rect>',
            left + inset,
            top,
            max(0.0, right - left - 2 * inset),
            bottom - top,
            colour,
            tip,
        )

    def dot(self, x: float, y: float, radius: float, colour: str, tip: str) -> None:
        self._add(
            '<circle cx="{}" cy="{}" r="{:.1f}" fill="{}"><title>{}</title></circle>',
            *self.at(x, y),
            radius,
            colour,
            tip,
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        dx: float = 0,
        dy: float = 0,
        anchor: str = "middle",
        colour: str = GREY,
    ) -> None:
        place = self.at(x, y)
        self._add(
            '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" fill="{}">{}</text>',
            place[0] + dx,
            place[1] + dy,
            anchor,
            colour,
            text,
        )

    def svg(self, words: str) -> Markup:
        """The drawing; `words` say the same to those who do not see it."""
        box = f"0 0 {WIDTH} {TOP + self._height + self._bottom}"
        start = Markup('<svg viewBox="{}" role="img" aria-label="{}" font-size="12">').format(box, words)
        return start + Markup("\n").join(self._parts) + Markup("</svg>")

    def _add(self, shape: str, *values: object) -> None:
        self._parts.append(Markup(shape).format(*values))


def histogram(values: Sequence[float], name: str) -> Markup:
    """How often each value of a metric occurs, with their mean: shares in [0, 1], all else from 0 to the largest."""
    share = METRICS[name].better == "higher"
    ticks = SHARES if share else _ticks(max(values, default=1.0))
    most = ticks[-1][0]
    counts, edges = np.histogram(values, bins=BINS, range=(0, most))
    top = max(1, int(counts.max()))
    plot = Plot((0, most), (0, top), height=110)
    plot.axes(ticks, [(0, "0"), (top, f"{top}")], title(name))
    for count, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            plot.bar((low, high), (0, count), BLUE, f"{number(low)} to {number(high)}: {count}", inset=0.75)
    if not len(values):
        return plot.svg(f"{title(name)}: no values")
    mean = float(np.mean(values))
    plot.line([(mean, 0), (mean, top)], INK, 2, "5 4")
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return plot.svg(
        f"Histogram of {title(name)} of {len(values)} answers: mean {number(mean)}, median {number(middle)}, "
        f"half of them between {number(low)} and {number(high)}"
    )


def _ticks(most: float) -> Ticks:
    """From 0 to `most` or a little over, in steps of 1, 2 or 5 times a power of ten: four to eight of them or so."""
    size = 10.0 ** math.floor(math.log10(max(most, 1) / 4))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= max(most, 1) / 5)
    return [(k * step, f"{k * step:g}") for k in range(math.ceil(max(most, 1) / step) + 1)]


def bars(mean: Mapping[str, float | None], ci95: Mapping[str, Any], names: Sequence[str]) -> Markup:
    """A bar across for each metric, shares in [0, 1], with its interval; an undefined one has none."""
    plot = Plot((0, 1), (len(names), 0), height=46 * len(names), left=12, bottom=22)
    plot.axes(SHARES)
    words = []
    for row, name in enumerate(names):
        value, ends = mean[name], ci95[name]
        said = "not defined" if value is None else number(value) + (f" ({interval(ends)})" if ends else "")
        words.append(f"{title(name)}: {said}")
        plot.text(0, row, words[-1], dy=16, anchor="start", colour=INK)
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
    plot.line([(0, 0), (1, 1)], GREY, 1.5, "5 4")
    full = [each for each in bins if each["pixels"]]
    plot.line([(each["said"], each["came"]) for each in full], BLUE, 2)
    most = math.log10(max((10, *(each["pixels"] for each in full))))
    words = []
    for each in full:
        words.append(f"said {each['said']:.2f}, came {each['came']:.2f}")
        radius = 3 + 5 * math.log10(each["pixels"]) / most
        plot.dot(each["said"], each["came"], radius, BLUE, f"{words[-1]}, {each['pixels']} pixels")
    return plot.svg("Reliability diagram: " + "; ".join(words))


def thresholds(tried: Sequence[float], curves: Curves, threshold: float) -> Markup:
    """Each metric over the thresholds tried, and the one in use as an upright line."""
    plot = Plot((0, 1), (0, 1), height=220, bottom=BOTTOM + 44)
    plot.axes(SHARES, SHARES, "threshold")
    words = []
    for place, (name, colour, dash) in enumerate(LINES):
        for run in _runs(tried, curves[name]):
            plot.line(run, colour, 2.5, dash)
        best = _highest(tried, curves[name])
        if best:
            words.append(f"{title(name)} is highest at {best[0]:.2f} with {number(best[1])}")
        x, down = 0.5 * (place % 2), 0.25 + 0.09 * (place // 2)
        plot.line([(x, -down), (x + 0.13, -down)], colour, 2.5, dash)
        plot.text(x + 0.15, -down, title(name), dy=4, anchor="start")
    plot.line([(threshold, 0), (threshold, 1)], INK, 1.5)
    dx, anchor = (-5, "end") if threshold > 0.5 else (5, "start")
    plot.text(threshold, 1, f"in use: {threshold:.3g}", dx=dx, dy=10, anchor=anchor, colour=INK)
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
