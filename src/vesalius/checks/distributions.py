"""Charts of a dataset: images by phrase, mask area, vessel width, and image size."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from vesalius import plots
from vesalius.checks.measurements import Measurement
from vesalius.language import translate
from vesalius.plots import BLUE, INK, VERMILLION, Plot, ticks_to

MAX_ROWS = 24
"""Maximum number of phrases or sizes in one chart; the caption gives their total number."""
LABEL_WIDTH = 36
"""Maximum width of a label in characters; a Chinese character counts as two."""
AREA_FRACTIONS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1)
"""Axis ticks of area fractions; smaller fractions are drawn at the first tick."""


def draw_distributions(
    measurements: Sequence[Measurement], phrases: Mapping[str, int]
) -> list[tuple[str, Markup, str]]:
    """(title, SVG, caption) of each chart; `phrases` maps each phrase to its number of images, in descending order."""
    sizes = Counter(each.size for each in measurements if each.size is not None)
    by_size = {f"{size[0]} x {size[1]}": n for size, n in sizes.most_common()}
    fractions: dict[str, list[float]] = {phrase: [] for phrase in phrases}
    for target in (target for each in measurements for target in each.targets):
        fractions.setdefault(target.phrase, []).append(target.area_fraction)
    drawn = {phrase: [fraction for fraction in its if fraction] for phrase, its in fractions.items()}
    drawn = {phrase: its for phrase, its in drawn.items() if its}
    widths = [target.width_px for each in measurements for target in each.targets if target.width_px]
    middle = [width[1] for width in widths]
    top = ticks_to(max(middle, default=1.0))
    return [
        (translate("Images by phrase"), _counts(phrases), _more(phrases)),
        (
            translate("Mask area as a fraction of the image"),
            _fractions(drawn),
            translate("Dot: median; line: 5th to 95th percentile. The axis is logarithmic; empty masks are excluded.")
            + _more(drawn),
        ),
        (
            translate("Mask width along the skeleton"),
            plots.histogram(
                middle, translate("median width, px"), top, of=translate("masks"), written=lambda value: f"{value:.1f}"
            ),
            translate("One value per mask; the dashed line is the mean."),
        ),
        (translate("Images by size, h x w"), _counts(by_size), _more(by_size)),
    ]


def _counts(counts: Mapping[str, int]) -> Markup:
    """Horizontal bar chart of the count of each name."""
    rows = list(counts.items())[:MAX_ROWS]
    most = max(counts.values(), default=1)
    plot = Plot((0, max(1, most)), (max(1, len(rows)), 0), height=34 * max(1, len(rows)), left=12, bottom=8)
    for row, (name, n) in enumerate(rows):
        plot.text(0, row, f"{_short(name)}: {n}", dy=14, anchor="start", color=INK)
        plot.bar((0, n), (row + 0.85, row + 0.5), BLUE, f"{name}: {n}")
    return plot.svg("; ".join(f"{name}: {n}" for name, n in rows) or translate("none"))


def _fractions(fractions: Mapping[str, Sequence[float]]) -> Markup:
    """Chart of area fractions: per phrase, a line from the 5th to the 95th percentile and a dot at the median."""
    rows = list(fractions.items())[:MAX_ROWS]
    low, high = (math.log10(AREA_FRACTIONS[end]) for end in (0, -1))
    plot = Plot((low, high), (max(1, len(rows)), 0), height=34 * max(1, len(rows)), left=12, bottom=24)
    plot.axes([(math.log10(fraction), f"{100 * fraction:g} %") for fraction in AREA_FRACTIONS[1:-1]])
    words = []
    for row, (name, values) in enumerate(rows):
        least, middle, most = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
        words.append(
            translate(
                "{name}: median {middle} %, 90 % from {least} to {most} %",
                name=name,
                middle=f"{100 * middle:.3g}",
                least=f"{100 * least:.3g}",
                most=f"{100 * most:.3g}",
            )
        )
        plot.text(low, row, f"{_short(name)}: {100 * middle:.3g} %", dy=14, anchor="start", color=INK)
        ends = [max(low, math.log10(value)) for value in (least, middle, most)]
        plot.line([(ends[0], row + 0.68), (ends[2], row + 0.68)], BLUE, 3)
        plot.dot(ends[1], row + 0.68, 4.5, VERMILLION, words[-1])
    return plot.svg("; ".join(words) or translate("no masks"))


def _more(names: Mapping[str, object]) -> str:
    return translate(" {shown} of {n} are shown.", shown=MAX_ROWS, n=len(names)) if len(names) > MAX_ROWS else ""


def _short(name: str) -> str:
    wide = 0
    for index, character in enumerate(name):
        wide += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if wide > LABEL_WIDTH:
            return name[:index] + "…"
    return name
