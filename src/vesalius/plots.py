"""Charts as inline SVG with a text description: no script and no other file.

Charts are as wide as a phone screen, so that labels stay legible on it. Colors: Okabe & Ito 2008. Matplotlib is not
used: it takes 84 ms per chart instead of 5, a second to import, and four times the bytes, and has no tooltips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup

from vesalius.language import translate

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 340, 42, 18, 10, 40
"""Width of the chart and its margins, in pixels."""
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
INK, GRAY, PALE = "#18181b", "#5f5f68", "#dcdce2"
BINS = 20

Ticks = Sequence[tuple[float, str]]
Range = tuple[float, float]
RATIO_TICKS: Ticks = [(0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1, "1")]


class Plot:
    """A chart with two axes. Its methods take data coordinates."""

    def __init__(self, x: Range, y: Range, height: int = 150, left: int = LEFT, bottom: int = BOTTOM) -> None:
        """`x` and `y` are the ranges of the axes; `height` is that of the plot area in pixels."""
        self._x, self._y, self._height, self._left, self._bottom = x, y, height, left, bottom
        self._parts: list[Markup] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Position of a data point in the chart, in pixels."""
        width = WIDTH - self._left - RIGHT
        across = (x - self._x[0]) / (self._x[1] - self._x[0])
        up = (y - self._y[0]) / (self._y[1] - self._y[0])
        return round(self._left + across * width, 1), round(TOP + (1 - up) * self._height, 1)

    def axes(self, x: Ticks = (), y: Ticks = (), name: str = "") -> None:
        """Draw both axes with ticks; `name` is the label of the x axis."""
        for value, label in y:
            self.line([(self._x[0], value), (self._x[1], value)], PALE, 1)
            self.text(self._x[0], value, label, dx=-6, dy=4, anchor="end")
        for value, label in x:
            self.text(value, self._y[0], label, dy=16)
        self.line([(self._x[0], self._y[0]), (self._x[1], self._y[0])], GRAY, 1)
        if name:
            self.text(sum(self._x) / 2, self._y[0], name, dy=33)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 2, dash: str = "") -> None:
        """Draw a polyline."""
        positions = " ".join("{},{}".format(*self.at(*point)) for point in points)
        self._add(
            '<polyline points="{}" fill="none" stroke="{}" stroke-width="{}" stroke-dasharray="{}"/>',
            positions,
            color,
            width,
            dash or "none",
        )

    def bar(self, x: Range, y: Range, color: str, tip: str, inset: float = 0) -> None:
        """Draw a rectangle with a tooltip, `inset` pixels narrower on both sides."""
        (left, bottom), (right, top) = self.at(x[0], y[0]), self.at(x[1], y[1])
        self._add(
            '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"><title>{}</title></rect>',
            left + inset,
            top,
            max(0.0, right - left - 2 * inset),
            bottom - top,
            color,
            tip,
        )

    def dot(self, x: float, y: float, radius: float, color: str, tip: str) -> None:
        """Draw a disc with a tooltip."""
        self._add(
            '<circle cx="{}" cy="{}" r="{:.1f}" fill="{}"><title>{}</title></circle>',
            *self.at(x, y),
            radius,
            color,
            tip,
        )

    def text(
        self, x: float, y: float, text: str, dx: float = 0, dy: float = 0, anchor: str = "middle", color: str = GRAY
    ) -> None:
        """Draw text at a data point, shifted by (dx, dy) pixels."""
        left, top = self.at(x, y)
        self._add(
            '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" fill="{}">{}</text>', left + dx, top + dy, anchor, color, text
        )

    def svg(self, description: str) -> Markup:
        """The chart as an SVG element; `description` is its text for screen readers."""
        box = f"0 0 {WIDTH} {TOP + self._height + self._bottom}"
        start = Markup('<svg viewBox="{}" role="img" aria-label="{}" font-size="12">').format(box, description)
        return start + Markup("\n").join(self._parts) + Markup("</svg>")

    def _add(self, shape: str, *values: object) -> None:
        self._parts.append(Markup(shape).format(*values))


def histogram(values: Sequence[float], name: str, ticks: Ticks, *, of: str, written: Callable[[float], str]) -> Markup:
    """Histogram of values in `BINS` bins from 0 to the last tick, with a line at the mean.

    `written` formats a value; `of` names the measured objects (`masks`). Without values the plot is empty.
    """
    most = ticks[-1][0]
    counts, edges = np.histogram(values, bins=BINS, range=(0, most))
    top = max(1, int(counts.max()))
    plot = Plot((0, most), (0, top), height=110)
    plot.axes(ticks, [(0, "0"), (top, f"{top}")], name)
    for count, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            ends = translate("{low} to {high}", low=written(low), high=written(high))
            plot.bar((low, high), (0, count), BLUE, f"{ends}: {count}", inset=0.75)
    if not len(values):
        return plot.svg(translate("{name}: no values", name=name))
    mean = float(np.mean(values))
    plot.line([(mean, 0), (mean, top)], INK, 2, "5 4")
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return plot.svg(
        translate(
            "Histogram of {name} of {n} {of}: mean {mean}, median {middle}, half of them between {low} and {high}",
            name=name,
            n=len(values),
            of=of,
            mean=written(mean),
            middle=written(middle),
            low=written(low),
            high=written(high),
        )
    )


def ticks_to(most: float) -> Ticks:
    """About four to eight ticks from 0 to at least `most`, in steps of 1, 2 or 5 times a power of ten."""
    size = 10.0 ** math.floor(math.log10(max(most, 1) / 4))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= max(most, 1) / 5)
    return [(k * step, f"{k * step:g}") for k in range(math.ceil(max(most, 1) / step) + 1)]
