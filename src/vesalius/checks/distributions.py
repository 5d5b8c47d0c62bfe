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
from vesalius.plots import BLUE, INK, VERMILLION, Plot, ticks_to

MAX_ROWS = 24
"""Phrases or sizes in one chart; the caption says how many there are."""
LABEL_WIDTH = 36
"""Maximum width of a row's label, in characters; a Chinese character counts as two."""
SHARES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1)
"""Ticks of the axis of shares; smaller shares are drawn at the first tick."""


def draw_distributions(
    measurements: Sequence[Measurement], phrases: Mapping[str, int]
) -> list[tuple[str, Markup, str]]:
    """(title, SVG, caption) of each chart; `phrases` are image counts by phrase, in falling order."""
    sizes = Counter(each.size for each in measurements if each.size is not None)
    by_size = {f"{size[0]} x {size[1]}": n for size, n in sizes.most_common()}
    shares: dict[str, list[float]] = {phrase: [] for phrase in phrases}
    for target in (target for each in measurements for target in each.targets):
        shares.setdefault(target.phrase, []).append(target.share)
    drawn = {phrase: [share for share in its if share] for phrase, its in shares.items()}
    drawn = {phrase: its for phrase, its in drawn.items() if its}
    widths = [target.width_px for each in measurements for target in each.targets if target.width_px]
    middle = [width[1] for width in widths]
    top = ticks_to(max(middle, default=1.0))
    return [
        ("Images by phrase", _counts(phrases, "phrases"), _more(phrases, "phrases")),
        (
            "Mask area as a share of the image",
            _shares(drawn),
            "Dot: median; line: 5th to 95th percentile. The axis is logarithmic; empty masks are excluded."
            + _more(drawn, "phrases"),
        ),
        (
            "Mask width along the skeleton",
            plots.histogram(
                middle, "median width, px", top, of="masks", written=lambda value: f"{value:.1f}"
            ),
            "One value per mask; the dashed line is the mean.",
        ),
        ("Images by size, h x w", _counts(by_size, "sizes"), _more(by_size, "sizes")),
    ]


def _counts(counts: Mapping[str, int], of: str) -> Markup:
    """A horizontal bar with its count for each name."""
    rows = list(counts.items())[:MAX_ROWS]
    most = max(counts.values(), default=1)
    plot = Plot((0, max(1, most)), (max(1, len(rows)), 0), height=34 * max(1, len(rows)), left=12, bottom=8)
    for row, (name, n) in enumerate(rows):
        plot.text(0, row, f"{_short(name)}: {n}", dy=14, anchor="start", color=INK)
        plot.bar((0, n), (row + 0.85, row + 0.5), BLUE, f"{name}: {n}")
    return plot.svg("; ".join(f"{name}: {n}" for name, n in rows) or f"no {of}")


def _shares(shares: Mapping[str, Sequence[float]]) -> Markup:
    """For each phrase, a line from the 5th to the 95th percentile and a dot at the median."""
    rows = list(shares.items())[:MAX_ROWS]
    low, high = (math.log10(SHARES[end]) for end in (0, -1))
    plot = Plot((low, high), (max(1, len(rows)), 0), height=34 * max(1, len(rows)), left=12, bottom=24)
    plot.axes([(math.log10(share), f"{100 * share:g} %") for share in SHARES[1:-1]])
    words = []
    for row, (name, values) in enumerate(rows):
        least, middle, most = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
        words.append(
            f"{name}: median {100 * middle:.3g} %, 90 % from {100 * least:.3g} to {100 * most:.3g} %"
        )
        plot.text(low, row, f"{_short(name)}: {100 * middle:.3g} %", dy=14, anchor="start", color=INK)
        ends = [max(low, math.log10(value)) for value in (least, middle, most)]
        plot.line([(ends[0], row + 0.68), (ends[2], row + 0.68)], BLUE, 3)
        plot.dot(ends[1], row + 0.68, 4.5, VERMILLION, words[-1])
    return plot.svg("; ".join(words) or "no masks")


def _more(names: Mapping[str, object], of: str) -> str:
    return f" {MAX_ROWS} of {len(names)} {of} are shown." if len(names) > MAX_ROWS else ""


def _short(name: str) -> str:
    """The name, truncated to `LABEL_WIDTH`."""
    wide = 0
    for index, character in enumerate(name):
        wide += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if wide > LABEL_WIDTH:
            return name[:index] + "…"
    return name
