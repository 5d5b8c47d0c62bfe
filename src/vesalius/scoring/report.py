"""Report of an evaluation: self-contained HTML, Markdown and CSV.

metrics.json + samples.jsonl -> report.html, report.md, samples.csv, groups.csv
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from vesalius.colors import as_css, phrase_colors
from vesalius.evaluation.centerline import WIDTHS
from vesalius.files import write_csv, write_text
from vesalius.language import speaking, translate
from vesalius.pages import as_data_url, render
from vesalius.scoring import charts
from vesalius.scoring.examples import choose_examples, draw_example, verdict
from vesalius.scoring.results import ResultRow
from vesalius.scoring.tables import by_kind, cell, group_table, interval, number, title
from vesalius.visualization import LEGEND

WORST, MEDIAN, BEST = 12, 4, 4
"""Number of cases shown with a figure."""
ROWS_SHOWN, GROUPS_SHOWN = 300, 200
"""Length limits of tables, so that a browser on a phone can scroll them; the page names the complete CSV file."""
GROUPS_OPEN = 12
"""Maximum number of groups in an expanded table; a longer one starts collapsed."""
THUMBNAIL_WIDTH = 960
"""Width of embedded figures in pixels: six panels stay legible, and twenty figures take about 2 MB."""
HEADLINE = ("dice", "iou", "precision", "recall", "cldice", "hd95_px")
"""Metrics at the top. Accuracy is left out, because an empty mask of a thin structure scores high."""
DRAWN = ("dice", "cldice", "precision", "recall", "hd95_px", "breaks")
"""Metrics with a histogram."""
OF_GROUPS = ("dice", "cldice", "hd95_px")
GAIN = 0.01
"""Minimum gain in Dice to mention a better threshold."""
EMPTY_MASKS = (
    ("ground truth and prediction", "both", "its metrics"),
    ("ground truth only", "total_miss", "total miss: Dice 0, distances the image diagonal"),
    ("prediction only", "false_alarm", "false alarm: Dice 0, recall undefined"),
    ("neither", "both_empty", "correct: Dice 1, distances undefined"),
)
"""Rows of the table of empty masks: title, case in metrics.json, score."""
TEXTS = {
    "about_metrics": (
        "The mean counts a prediction without [SEG] as an empty mask; mean with [SEG] leaves it out. "
        "Intervals resample whole groups (cluster bootstrap). Undefined: number of predictions without a value, "
        "left out of the mean. If one mask is empty, a distance is the image diagonal."
    ),
    "about_calibration": (
        "Thresholds: mean over predictions. Reliability: fraction of foreground pixels by predicted probability; a "
        "calibrated model follows the dashed line, and larger dots stand for more pixels. Background pixels dominate Brier "
        "score and calibration error of thin structures: compare them on the same data only."
    ),
    "unscored": "No prediction has a score.",
    "uncalibrated": "The predictions have no probabilities, so calibration and threshold curves are missing.",
}
"""Sentences of the HTML and the Markdown report."""

Metrics = Mapping[str, Any]


def write_report(folder: Path, metrics: Metrics, rows: Sequence[ResultRow]) -> Path:
    """Write report.html, report.md, samples.csv and groups.csv into an evaluation folder; return the path of the HTML.

    `metrics` and `rows` are the content of metrics.json and samples.jsonl. Figures of the worst, median and best
    rows are read from the folder, reduced and embedded.
    """
    groups = group_table(metrics["groups"], rows, list(metrics["mean"]))
    write_csv(folder / "samples.csv", rows)
    write_csv(folder / "groups.csv", groups, ("group", "predictions", "failed", *metrics["mean"]))
    with speaking("en"):
        write_text(folder / "report.md", _render("report.md.jinja", _values(metrics, rows, groups)))
    widths = [f"skeleton_recall_{width}" for width in WIDTHS]
    known = metrics["calibration"]
    curves = _curves(metrics)
    drawn = {name: [row[name] for row in rows if row[name] is not None] for name in DRAWN}
    pictures = {
        "histograms": [charts.histogram(drawn[name], name) for name in DRAWN],
        "width_chart": charts.bars(metrics["mean"], metrics["ci95"], widths),
        "threshold_chart": curves and charts.thresholds(*curves),
        "reliability_chart": known and charts.reliability(known["reliability"]),
        "picture": lambda row: _picture(folder / row["figure"]),
        "example": lambda row: draw_example(folder / row["figure"]),
        "colors": {name: as_css(color) for name, color in phrase_colors(row["prompt"] for row in rows).items()},
        "legend": [(translate(text), as_css(color)) for text, color in LEGEND],
    }
    path = folder / "report.html"
    write_text(path, _render("report.html.jinja", _values(metrics, rows, groups) | pictures))
    return path


def _curves(metrics: Metrics) -> tuple[Sequence[float], charts.Curves, float] | None:
    """Arguments of `charts.thresholds`; None without probabilities."""
    known = metrics["calibration"]
    return (known["thresholds"], known["curves"], metrics["threshold"]) if known else None


def _values(metrics: Metrics, rows: Sequence[ResultRow], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of both templates, with sentences in the current language."""
    curves = _curves(metrics)
    return {
        **{name: translate(text) for name, text in TEXTS.items()},
        "m": metrics,
        "rows": sorted(rows, key=_rank),
        "groups": groups,
        "kinds": by_kind(metrics["mean"]),
        "headline": HEADLINE,
        "of_groups": OF_GROUPS,
        "better": _better_threshold(*curves) if curves else "",
        "verdict": verdict(metrics, len(rows)),
        "examples": choose_examples(rows),
        "n_phrases": len({row["prompt"] for row in rows}),
        "failures": [row for row in rows if row["status"] == "failed"],
        "sections": sections(rows),
        "empty": [(translate(name), case, translate(score)) for name, case, score in EMPTY_MASKS],
        "facts": [*metrics["settings"].items(), *metrics["versions"].items()],
        "rows_shown": ROWS_SHOWN,
        "groups_shown": GROUPS_SHOWN,
        "groups_open": GROUPS_OPEN,
    }


def sections(rows: Sequence[ResultRow]) -> list[tuple[str, list[ResultRow]]]:
    """Cases by Dice: worst first, median, best first, without duplicates and without failed rows.

    Up to 12 rows are all shown, worst first. With fewer than 28 rows, fewer worst cases are shown, so that the median
    cases remain.
    """
    ranked = sorted((row for row in rows if row["dice"] is not None), key=_rank)
    if len(ranked) <= WORST:
        return [(translate("All predictions, worst first"), ranked)] if ranked else []
    middle = (len(ranked) - MEDIAN) // 2
    worst = min(WORST, middle)
    return [
        (translate("Worst {n}", n=worst), ranked[:worst]),
        (translate("Median {n}", n=MEDIAN), ranked[middle : middle + MEDIAN]),
        (translate("Best {n}", n=BEST), ranked[-BEST:][::-1]),
    ]


def _better_threshold(tried: Sequence[float], curves: charts.Curves, threshold: float) -> str:
    """Sentence on the threshold with the highest Dice; empty unless it gains more than `GAIN`."""
    found = charts.better_threshold(tried, curves, threshold, gain=GAIN)
    if found is None:
        return ""
    best, dice, now = found
    return translate(
        "At a threshold of {best} the mean Dice would be {dice} instead of {now} at {threshold}. "
        "It was chosen on the evaluated images, so that Dice is too optimistic: tune the threshold on validation data "
        "(vesalius tune).",
        best=f"{best:.2f}",
        dice=number(dice),
        now=number(now),
        threshold=threshold,
    )


def _render(template: str, values: Mapping[str, Any]) -> str:
    path = Path(__file__).with_name(template)
    return render(path, values, number=number, interval=interval, title_of=title, link=quote, cell=cell)


def _rank(row: ResultRow) -> tuple[bool, float, str, str]:
    """Failed rows first, then by Dice; ties by id and prompt, so that reports are reproducible."""
    dice = row["dice"]
    return dice is not None, dice or 0.0, row["id"], row["prompt"]


def _picture(figure: Path) -> str:
    with Image.open(figure) as opened:
        return as_data_url(opened, THUMBNAIL_WIDTH)
