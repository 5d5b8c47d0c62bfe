"""The curves of a run as one picture: losses, learning rate and validation over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vesalius.evaluation.metrics import METRICS
from vesalius.files import replacing
from vesalius.training.early_stopping import best_line

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of Okabe & Ito 2008, as in `visualization.py`; each line has a dash or a mark of its own as well."""
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 1)))
MARKS = "osD^vP*Xh"
GRAY = "#777777"
RATES = {
    "seg_rate": "[SEG] rate",
    "absent_seg_rate": "[SEG] rate, absent",
    "prediction_similarity": "Dice of two answers",
}
SMOOTHED = 25
"""A line is smoothed over that part of the run."""
SPANS_LOG = 5
"""From this ratio of the largest to the smallest on, a loss is drawn on a logarithmic axis."""

Lines = Sequence[Mapping[str, Any]]


def draw_curves(steps: Lines, validations: Lines, path: Path, metric: str = "dice") -> None:
    """Write a PNG with four panels: loss, its parts, learning rate with the gradient's norm, and validation.

    `steps` and `validations` are the lines of `log.jsonl` and `validation.jsonl`, whose losses may have any names;
    `metric` is the one whose best is marked. A panel without anything to draw says so.
    """
    figure = Figure(figsize=(14, 8.5))
    FigureCanvasAgg(figure)
    # fixed: a layout that fits itself takes as long as drawing, at each validation
    figure.subplots_adjust(left=0.06, right=0.94, bottom=0.12, top=0.95, wspace=0.22, hspace=0.44)
    ((loss, parts), (rate, scores)) = figure.subplots(2, 2)
    _draw_loss(loss, steps)
    _draw_parts(parts, steps)
    _draw_rate(rate, steps)
    _draw_scores(scores, validations, metric)
    for axes in (loss, parts, rate, scores):
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        if len(steps) > 1:
            axes.set_xlim(0, steps[-1]["step"] * 1.01)
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def _draw_loss(axes: Axes, steps: Lines) -> None:
    at, values = _points(steps, "loss")
    axes.plot(at, values, color=GRAY, alpha=0.35, linewidth=0.8)
    axes.plot(at, _smooth(values), color=COLORS[0], linewidth=2, label=f"loss, {_how_smooth(values)}")
    _finish(axes, "training loss", values)


def _draw_parts(axes: Axes, steps: Lines) -> None:
    names = dict.fromkeys(name for line in steps for name in line if name.startswith("loss_"))
    drawn: list[float] = []
    for index, name in enumerate(names):
        at, values = _points(steps, name)
        if values:
            smooth = _smooth(values)
            style: dict[str, Any] = {
                "color": COLORS[index % len(COLORS)],
                "linestyle": DASHES[index % len(DASHES)],
            }
            axes.plot(at, smooth, linewidth=1.8, label=name.removeprefix("loss_"), **style)
            drawn += smooth
    title = f"parts of the loss before weighting, {_how_smooth(_points(steps, 'loss')[1])}"
    _finish(axes, title, drawn)


def _draw_rate(axes: Axes, steps: Lines) -> None:
    axes.plot(*_points(steps, "lr"), color=COLORS[0], linewidth=2, label="learning rate")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.tick_params(axis="y", labelcolor=COLORS[0])
    other = axes.twinx()
    at, norms = _points(steps, "grad_norm")
    other.plot(at, _smooth(norms), color=COLORS[1], linewidth=1.2, linestyle="--")
    other.tick_params(axis="y", labelcolor=COLORS[1])
    other.set_ylim(bottom=0)
    axes.plot([], [], color=COLORS[1], linestyle="--", label="gradient's norm before clipping (right)")
    _finish(axes, "learning rate and gradient")


def _draw_scores(axes: Axes, validations: Lines, metric: str) -> None:
    names = dict.fromkeys(name for line in validations for name in line if name in METRICS or name in RATES)
    other: Axes | None = None
    for index, name in enumerate(names):
        at, values = _points(validations, name)
        if not values:
            continue
        share = name in RATES or METRICS[name].better == "higher"
        if not share and other is None:
            other = axes.twinx()
        target = axes if share or other is None else other
        style: dict[str, Any] = {
            "color": COLORS[index % len(COLORS)],
            "linestyle": DASHES[index % len(DASHES)],
        }
        label = RATES.get(name) or METRICS[name].title
        width = 2.6 if name == metric else 1.3
        target.plot(at, values, marker=MARKS[index % len(MARKS)], markersize=4, linewidth=width, **style)
        axes.plot(
            [], [], marker=MARKS[index % len(MARKS)], label=label + ("" if share else " (right)"), **style
        )
    axes.set_ylim(-0.02, 1.02)
    best = best_line(validations, metric)
    if best is not None:
        axes.axvline(best["step"], color=GRAY, linewidth=1, zorder=0)
        title = f"validation: best {METRICS[metric].title} {best[metric]:.4g} at step {best['step']}"
    else:
        title = "validation" if validations else "validation: no data for it"
    _finish(axes, title)


def _points(lines: Lines, name: str) -> tuple[list[int], list[float]]:
    """Steps and values, where there is one."""
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _span(values: Sequence[float]) -> int:
    return max(1, len(values) // SMOOTHED)


def _how_smooth(values: Sequence[float]) -> str:
    around = _span(values) // 2 * 2 + 1
    return f"mean of {around} steps" if around > 1 else "each step"


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean of each value and its neighbors on both sides, which does not lag behind; fewer of them at the ends."""
    sums = np.cumsum([0.0, *values])
    reach = _span(values) // 2
    ends = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [float(sums[high] - sums[low]) / (high - low) for low, high in ends]


def _finish(axes: Axes, title: str, values: Sequence[float] = ()) -> None:
    """Title, legend below, and a logarithmic axis where the positive `values` span it."""
    axes.set_title(title, fontsize=12)
    if values and min(values) > 0 and max(values) > SPANS_LOG * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5, fontsize=9, frameon=False)
