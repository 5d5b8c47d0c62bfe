"""Figures of a run: sample predictions at each validation, and curves of losses and metrics over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from vesalius.colors import phrase_colors
from vesalius.evaluation.metrics import METRICS
from vesalius.files import replacing
from vesalius.fonts import fit_fonts, label
from vesalius.training.early_stopping import best_line
from vesalius.types import Item, Prediction, Sample
from vesalius.visualization import WHITE, six_panels

PANELS_WIDTH = 960
"""Width in pixels of one prediction's six panels."""
COLUMNS = 2
"""Predictions per row of a validation figure."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Colorblind-safe palette of Okabe & Ito 2008, as in `colors.py`; curves also differ in dashes and markers."""
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 1)))
MARKS = "osD^vP*Xh"
GRAY = "#777777"
RATES = {
    "seg_rate": "[SEG] rate",
    "absent_seg_rate": "[SEG] rate, absent",
    "prediction_similarity": "Dice between phrases",
}
SMOOTHING = 25
"""Curves are smoothed by a moving average over 1/25 of the run."""
LOG_RATIO = 5
"""Losses have a logarithmic axis if their maximum is more than 5 times their minimum."""

Lines = Sequence[Mapping[str, Any]]


class ValidationFigures:
    """Six-panel figures of up to `count` predictions, drawn while predictions are scored and kept in memory."""

    def __init__(self, samples: Sequence[Sample], count: int, step: int) -> None:
        """Choose `count` evenly spaced samples, because neighbors may be frames of one patient; each with its first phrase."""
        indices = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int).tolist()
        self._wanted = {(samples[i].id, samples[i].prompts[0]): None for i in indices}
        self._pictures: dict[tuple[str, str], Image.Image] = {}
        self._colors = phrase_colors(prompt for sample in samples for prompt in sample.prompts)
        self._step = step

    def __call__(
        self, item: Item, prediction: Prediction, target: np.ndarray, scores: Mapping[str, float | None]
    ) -> None:
        """Draw a prediction if its sample and phrase were chosen; the interface of `OnAnswer`."""
        asked = item.id, prediction.prompt
        if asked not in self._wanted:
            return
        title = f"{item.id} · {label('step {n}', n=self._step)}" + (
            "" if prediction.says_seg else label(" · would not say [SEG]")
        )
        color = self._colors[asked[1]]
        picture = six_panels(
            item.frames[0], target, prediction.mask, title=title, prompt=asked[1], scores=scores, color=color
        )
        height = round(picture.height * PANELS_WIDTH / picture.width)
        self._pictures[asked] = picture.resize((PANELS_WIDTH, height), Image.Resampling.LANCZOS)

    def picture(self) -> Image.Image | None:
        """All drawn predictions in one image, two per row; None if nothing was drawn."""
        drawn = [self._pictures[asked] for asked in self._wanted if asked in self._pictures]
        rows = [drawn[i : i + COLUMNS] for i in range(0, len(drawn), COLUMNS)]
        if not rows:
            return None
        heights = [max(panels.height for panels in row) for row in rows]
        picture = Image.new("RGB", (PANELS_WIDTH * len(rows[0]), sum(heights)), WHITE)
        for number, row in enumerate(rows):
            for column, panels in enumerate(row):
                picture.paste(panels, (column * PANELS_WIDTH, sum(heights[:number])))
        return picture

    def write(self, folder: Path) -> Image.Image | None:
        """Write the figure as `step-NNNNNN.png` into `folder` and return it; None, without a file, if nothing was drawn."""
        picture = self.picture()
        if picture is not None:
            with replacing(folder / f"step-{self._step:06d}.png") as aside:
                # level 3 takes half the time of the default 6; the file is slightly larger
                picture.save(aside, format="PNG", compress_level=3)
        return picture


def draw_curves(steps: Lines, validations: Lines, path: Path, metric: str = "dice") -> None:
    """Write a PNG with four panels: loss, loss terms, learning rate with gradient norm, and validation.

    `steps` and `validations` are the lines of `log.jsonl` and `validation.jsonl`; each key `loss_*` is a loss term. A
    vertical line marks the best value of `metric`. Without validations the title of their panel says "no data".
    """
    figure = Figure(figsize=(14, 8.5))
    FigureCanvasAgg(figure)
    # fixed: matplotlib's automatic layout takes as long as the drawing itself
    figure.subplots_adjust(left=0.06, right=0.94, bottom=0.12, top=0.95, wspace=0.22, hspace=0.44)
    ((loss, terms), (rate, scores)) = figure.subplots(2, 2)
    _draw_loss(loss, steps)
    _draw_terms(terms, steps)
    _draw_rate(rate, steps)
    _draw_scores(scores, validations, metric)
    for axes in (loss, terms, rate, scores):
        axes.set_xlabel(label("step"))
        axes.grid(alpha=0.25)
        if len(steps) > 1:
            axes.set_xlim(0, steps[-1]["step"] * 1.01)
    fit_fonts(figure)
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def _draw_loss(axes: Axes, steps: Lines) -> None:
    at, values = _points(steps, "loss")
    axes.plot(at, values, color=GRAY, alpha=0.35, linewidth=0.8)
    axes.plot(
        at, _smooth(values), color=COLORS[0], linewidth=2, label=label("loss, {window}", window=_window_text(values))
    )
    _decorate(axes, label("training loss"), values)


def _draw_terms(axes: Axes, steps: Lines) -> None:
    names = dict.fromkeys(name for line in steps for name in line if name.startswith("loss_"))
    drawn: list[float] = []
    for index, name in enumerate(names):
        at, values = _points(steps, name)
        if values:
            smooth = _smooth(values)
            style = _style(index)
            axes.plot(at, smooth, linewidth=1.8, label=name.removeprefix("loss_"), **style)
            drawn += smooth
    title = label("loss terms before weighting, {window}", window=_window_text(_points(steps, "loss")[1]))
    _decorate(axes, title, drawn)


def _draw_rate(axes: Axes, steps: Lines) -> None:
    axes.plot(*_points(steps, "lr"), color=COLORS[0], linewidth=2, label=label("learning rate"))
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.tick_params(axis="y", labelcolor=COLORS[0])
    other = axes.twinx()
    at, norms = _points(steps, "grad_norm")
    other.plot(at, _smooth(norms), color=COLORS[1], linewidth=1.2, linestyle="--")
    other.tick_params(axis="y", labelcolor=COLORS[1])
    other.set_ylim(bottom=0)
    axes.plot([], [], color=COLORS[1], linestyle="--", label=label("gradient norm before clipping (right)"))
    _decorate(axes, label("learning rate and gradient"))


def _draw_scores(axes: Axes, validations: Lines, metric: str) -> None:
    names = dict.fromkeys(name for line in validations for name in line if name in METRICS or name in RATES)
    other: Axes | None = None
    for index, name in enumerate(names):
        at, values = _points(validations, name)
        if not values:
            continue
        bounded = name in RATES or METRICS[name].better == "higher"
        if not bounded and other is None:
            other = axes.twinx()
        target = axes if bounded or other is None else other
        style = _style(index)
        shown = label(RATES.get(name) or METRICS[name].title) + ("" if bounded else label(" (right)"))
        width = 2.6 if name == metric else 1.3
        target.plot(at, values, marker=MARKS[index % len(MARKS)], markersize=4, linewidth=width, **style)
        axes.plot([], [], marker=MARKS[index % len(MARKS)], label=shown, **style)
    axes.set_ylim(-0.02, 1.02)
    best = best_line(validations, metric)
    if best is not None:
        axes.axvline(best["step"], color=GRAY, linewidth=1, zorder=0)
        title = label(
            "validation: best {metric} {value} at step {step}",
            metric=label(METRICS[metric].title),
            value=f"{best[metric]:.4g}",
            step=best["step"],
        )
    else:
        title = label("validation") if validations else label("validation: no data")
    _decorate(axes, title)


def _style(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index % len(DASHES)]}


def _points(lines: Lines, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines in which `name` has a value."""
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _span(values: Sequence[float]) -> int:
    return max(1, len(values) // SMOOTHING)


def _window_text(values: Sequence[float]) -> str:
    around = _span(values) // 2 * 2 + 1
    return label("mean of {n} steps", n=around) if around > 1 else label("each step")


def _smooth(values: Sequence[float]) -> list[float]:
    """Centered moving average, with a shorter window at both ends."""
    sums = np.cumsum([0.0, *values])
    reach = _span(values) // 2
    ends = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [float(sums[high] - sums[low]) / (high - low) for low, high in ends]


def _decorate(axes: Axes, title: str, values: Sequence[float] = ()) -> None:
    """Add title and legend; use a logarithmic axis if positive `values` span a ratio above `LOG_RATIO`."""
    axes.set_title(title, fontsize=12)
    if values and min(values) > 0 and max(values) > LOG_RATIO * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5, fontsize=9, frameon=False)
