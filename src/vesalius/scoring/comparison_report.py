"""Report of a comparison: JSON, CSV, Markdown, a figure, and self-contained HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from PIL import Image

from vesalius.files import replacing, to_json, write_csv, write_json, write_text
from vesalius.fonts import drawable, fit_fonts, label
from vesalius.language import speaking, translate
from vesalius.pages import as_data_url, render
from vesalius.scoring.tables import cell

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "D", "^", "v", "P")
"""Evaluations differ in marker as well as color, for color-blind readers. Okabe & Ito 2008."""
INK, GRAY, LIGHT = "#18181b", "#5f5f68", "#dcdce2"
GROUPS_HEIGHT = 5.0
"""Height of the plot by group in inches; independent of the number of metrics, since height changes slopes."""
LINES_MAX = 200
"""Maximum number of groups drawn as lines; more would hide each other and are drawn as box plots."""
NAME_LENGTH = 40
"""Maximum length of a name in the figure."""
VERDICTS = {
    "better": "better",
    "worse": "worse",
    "different": "different",
    "unclear": "not significant",
    None: "not tested",
}

ABOUT = (
    "Difference: mean over the pairs, with a cluster bootstrap interval. p: Wilcoxon signed-rank test on the group means; "
    "Holm: corrected for all tests on this page. r: matched-pairs rank-biserial correlation. d: Cohen's d of paired "
    "groups. Pairs are left out if the metric is undefined in any evaluation. Better and worse: corrected p below {alpha}."
)

Result = Mapping[str, Any]
"""Content of comparison.json."""
Comparison = dict[str, Any]
"""One entry of `comparisons`: an evaluation, a prompt (None: all prompts) and a metric."""


def write_comparison(folder: Path, result: Result, headline: str, by_group: np.ndarray) -> None:
    """Write the files of a comparison: JSON, CSV, PNG, Markdown and HTML.

    `result` is the content of comparison.json; `by_group` (g, k) is the mean of the metric `headline` in each group
    and evaluation, the reference first.
    """
    write_json(folder / "comparison.json", result)
    write_csv(folder / "comparison.csv", [_flat(each) for each in result["comparisons"]])
    draw_comparison(folder / "comparison.png", result, headline, by_group)
    with Image.open(folder / "comparison.png") as figure:
        picture = as_data_url(figure, format="png")
    with speaking("en"):
        write_text(folder / "comparison.md", _render("comparison.md.jinja", result, headline, picture))
    write_text(folder / "report.html", _render("comparison.html.jinja", result, headline, picture))


def summarize(result: Result, headline: str) -> list[str]:
    """One sentence for each evaluation: its difference from the reference in the metric `headline`, over all prompts."""
    title = translate(result["metrics"][headline]["title"])
    sentences = []
    for row in result["comparisons"]:
        if row["prompt"] is None and row["metric"] == headline and row["n"]:
            interval = "" if row["ci95"] is None else translate(" (95 % CI {bounds})", bounds=_interval(row["ci95"]))
            sentences.append(
                translate(
                    "{name} against {reference}: {metric} {mean} instead of {before}, difference {difference}{interval}: "
                    "{verdict}.",
                    name=row["evaluation"],
                    reference=result["reference"],
                    metric=title,
                    mean=_number(row["mean"]),
                    before=_number(row["mean_reference"]),
                    difference=_signed(row["difference"]),
                    interval=interval,
                    verdict=translate(VERDICTS[row["verdict"]]),
                )
            )
    return sentences


def _render(template: str, result: Result, headline: str, picture: str) -> str:
    n_failed = result["coverage"]["failed"]
    values = {
        "r": result,
        "summary": summarize(result, headline),
        "tables": [
            (name, prompt, list(rows))
            for (name, prompt), rows in groupby(result["comparisons"], key=itemgetter("evaluation", "prompt"))
        ],
        "verdicts": {verdict: translate(text) for verdict, text in VERDICTS.items()},
        "failed": translate(
            "{n} predictions failed in at least one evaluation and are left out of all numbers below.", n=n_failed
        ),
        "about": translate(ABOUT, alpha=result["settings"]["alpha"]),
        "picture": picture,
    }
    path = Path(__file__).with_name(template)
    return render(
        path, values, number=_number, signed=_signed, bounds=_interval, p_value=_p_value, cell=cell, json=to_json
    )


def _flat(comparison: Comparison) -> dict[str, Any]:
    """A row of comparison.csv: the interval in two columns; the prompt is empty for all prompts."""
    row = dict(comparison)
    row["ci95_low"], row["ci95_high"] = row.pop("ci95") or (None, None)
    return row


def draw_comparison(path: Path, result: Result, headline: str, by_group: np.ndarray) -> None:
    """Write a PNG: differences with intervals, one axis per unit, beside one metric by group.

    At least one metric must be defined. All prompts are pooled. Characters without a font are drawn as codes.
    """
    figure = _figure(result, headline, by_group)
    FigureCanvasAgg(figure)
    fit_fonts(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _figure(result: Result, headline: str, by_group: np.ndarray) -> Figure:
    panels = _by_unit(result)
    reference, *others = (_plain(each["name"]) for each in result["evaluations"])
    rows = [len({each["metric"] for each in panel}) * (1 + 0.5 * len(others)) for panel in panels.values()]
    height = max(GROUPS_HEIGHT, 0.28 * sum(rows) + 0.8 * len(rows) + 1.2)
    figure = Figure(figsize=(13, height), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=(1.6, 1))
    left, right = (figure.add_subfigure(grid[0, column]) for column in (0, 1))
    axes = left.subplots(len(panels), 1, height_ratios=[row + 1 for row in rows], squeeze=False)[:, 0]
    for axis, (unit, panel) in zip(axes, panels.items(), strict=True):
        _draw_differences(axis, unit, panel, result)
    scope = label(", all prompts") if len(result["prompts"]) > 1 else ""
    left.suptitle(
        label("Difference from {reference}, with 95 % interval", reference=reference) + scope, parse_math=False
    )
    _draw_legend(left, others)
    upper = right.add_gridspec(2, 1, height_ratios=(GROUPS_HEIGHT, max(0.01, height - GROUPS_HEIGHT)))[0, 0]
    _draw_groups(right.add_subplot(upper), result["metrics"][headline]["title"], [reference, *others], by_group)
    return figure


def _by_unit(result: Result) -> dict[str, list[Comparison]]:
    """Unit of an axis -> pooled comparisons drawn on it; ratios and counts have separate axes."""
    panels: dict[str, list[Comparison]] = {}
    shown = [each for each in result["comparisons"] if each["prompt"] is None and each["n"]]
    counts = {each["metric"] for each in shown if max(each["mean_reference"], each["mean"]) > 1}
    for each in shown:
        unit = result["metrics"][each["metric"]]["unit"] or ("count" if each["metric"] in counts else "ratio")
        panels.setdefault(unit, []).append(each)
    return panels


def _draw_differences(axis: Axes, unit: str, panel: Sequence[Comparison], result: Result) -> None:
    others = [each["name"] for each in result["evaluations"][1:]]
    metrics = list(dict.fromkeys(each["metric"] for each in panel))
    step = 0.6 / len(others)
    for each in panel:
        index = others.index(each["evaluation"])
        height = metrics.index(each["metric"]) + step * (index - (len(others) - 1) / 2)
        color = COLORS[index % len(COLORS)]
        if each["ci95"]:
            axis.plot(each["ci95"], [height, height], color=color, linewidth=2, solid_capstyle="butt")
        significant = each["verdict"] in ("better", "worse", "different")
        axis.plot(
            [each["difference"]],
            [height],
            marker=MARKERS[index % len(MARKERS)],
            markersize=7,
            color=color,
            markerfacecolor=color if significant else "white",
            markeredgewidth=1.5,
        )
    axis.axvline(0, color=INK, linewidth=1, zorder=0)
    axis.set_yticks(range(len(metrics)), [_label(result["metrics"][metric]) for metric in metrics])
    axis.set_ylim(len(metrics) - 0.5, -0.5)
    names = {"ratio": label("difference of ratios"), "count": label("difference of counts")}
    axis.set_xlabel(names.get(unit) or label("difference, {unit}", unit=unit))
    _tidy(axis, "x")


def _label(metric: Mapping[str, Any]) -> str:
    title = label(metric["title"])
    return title + label(" (lower is better)") if metric["better"] == "lower" else title


def _draw_legend(figure: SubFigure, others: Sequence[str]) -> None:
    handles = [
        Line2D([], [], color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], label=name)
        for i, name in enumerate(others)
    ]
    handles.append(
        Line2D([], [], color=GRAY, marker="o", markerfacecolor="white", label=label("hollow: not significant"))
    )
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_groups(axis: Axes, title: str, names: Sequence[str], by_group: np.ndarray) -> None:
    positions = range(len(names))
    if len(by_group) <= LINES_MAX:
        axis.plot(positions, by_group.T, color=GRAY, alpha=0.5, linewidth=1, marker=".", markersize=5)
    else:
        axis.boxplot(by_group, positions=positions, widths=0.3, manage_ticks=False, sym=".")
    if len(by_group):
        axis.plot(positions, by_group.mean(axis=0), color=INK, linewidth=3, marker="o", markersize=8)
    axis.set_xticks(positions, ["\n".join(wrap(name, 18)) for name in names], parse_math=False)
    axis.set_xlim(-0.3, len(names) - 0.7)
    axis.set_title(label("{metric} of {n} groups; thick line: mean", metric=label(title), n=len(by_group)))
    _tidy(axis, "y")


def _tidy(axis: Axes, direction: Literal["x", "y"]) -> None:
    axis.grid(axis=direction, color=LIGHT)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _plain(name: str) -> str:
    """The name as the figure shows it; a long name is shortened in the middle."""
    text = drawable(name)
    half = NAME_LENGTH // 2
    return text if len(text) <= NAME_LENGTH else f"{text[:half]}…{text[-half:]}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float | None, digits: int = 3) -> str:
    """The number with its sign; a minus sign (U+2212) is as wide as a plus."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _interval(ends: Sequence[float]) -> str:
    return translate("{low} to {high}", low=_signed(ends[0]), high=_signed(ends[1]))


def _p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
