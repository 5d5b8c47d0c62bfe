"""The report of an evaluation: one HTML file that needs no network and no other file to be read; Markdown; CSV.

metrics.json + samples.jsonl -> report.html, report.md, samples.csv, groups.csv
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from vesalius.evaluation.centerline import WIDTHS
from vesalius.files import write_text
from vesalius.scoring import charts
from vesalius.scoring.tables import Row, by_kind, cell, group_table, interval, number, title, write_csv

WORST, MEDIAN, BEST = 12, 4, 4
ROWS_SHOWN, GROUPS_SHOWN = 300, 200
"""A browser on a phone still scrolls tables of this length; the report says where the others are."""
GROUPS_OPEN = 12
"""A table of more groups than this is folded."""
THUMBNAIL_WIDTH = 960
"""Pixels: six panels are still legible, and twenty figures take about two megabytes."""
HEADLINE = ("dice", "iou", "precision", "recall", "cldice", "hd95_px")
"""Accuracy stands in the table only: it is high for an empty mask wherever little is to be found."""
DRAWN = ("dice", "cldice", "precision", "recall", "hd95_px", "breaks")
"""Metrics whose distributions are drawn."""
OF_GROUPS = ("dice", "cldice", "hd95_px")
GAIN = 0.01
"""Dice: another threshold that gives so much more is worth a sentence."""

Metrics = Mapping[str, Any]


def write_report(folder: Path, metrics: Metrics, rows: Sequence[Row]) -> Path:
    """Write report.html, report.md, samples.csv and groups.csv into an evaluation folder; the path of the first.

    `metrics` and `rows` are what metrics.json and samples.jsonl hold. Figures of the worst, median and best
    rows are read from the folder, made smaller and embedded.
    """
    groups = group_table(metrics["groups"], rows, list(metrics["mean"]))
    write_csv(folder / "samples.csv", rows)
    write_csv(folder / "groups.csv", groups, ("group", "answers", "failed", *metrics["mean"]))
    widths = [f"skeleton_recall_{width}" for width in WIDTHS]
    known = metrics["calibration"]
    curves = known and (known["thresholds"], known["curves"], metrics["threshold"])
    told = {
        "m": metrics,
        "rows": sorted(rows, key=_rank),
        "groups": groups,
        "kinds": by_kind(metrics["mean"]),
        "headline": HEADLINE,
        "of_groups": OF_GROUPS,
        "widths": widths,
        "better": curves and charts.better_threshold(*curves, gain=GAIN),
        "failures": [row for row in rows if row["status"] == "failed"],
        "sections": sections(rows),
        "rows_shown": ROWS_SHOWN,
        "groups_shown": GROUPS_SHOWN,
        "groups_open": GROUPS_OPEN,
    }
    write_text(folder / "report.md", _render("report.md.jinja", told))
    values = {name: [row[name] for row in rows if row[name] is not None] for name in DRAWN}
    drawn = {
        "histograms": [charts.histogram(values[name], name) for name in DRAWN],
        "width_chart": charts.bars(metrics["mean"], metrics["ci95"], widths),
        "threshold_chart": curves and charts.thresholds(*curves),
        "reliability_chart": known and charts.reliability(known["reliability"]),
        "picture": lambda row: _picture(folder, row),
    }
    path = folder / "report.html"
    write_text(path, _render("report.html.jinja", told | drawn))
    return path


def sections(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Which rows to look at, by Dice: worst first, those in the middle, best first; none twice, none that failed.

    Few rows are all shown, the worst first. With fewer than 28 there are fewer worst, as the middle is kept.
    """
    ranked = sorted((row for row in rows if row["dice"] is not None), key=_rank)
    if len(ranked) <= WORST:
        return [("All answers, the worst first", ranked)] if ranked else []
    middle = (len(ranked) - MEDIAN) // 2
    worst = min(WORST, middle)
    return [
        (f"Worst {worst}", ranked[:worst]),
        (f"Median {MEDIAN}", ranked[middle : middle + MEDIAN]),
        (f"Best {BEST}", ranked[-BEST:][::-1]),
    ]


def _render(template: str, told: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.jinja"),  # ids and prompts come from outside and may hold HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=number, interval=interval, title_of=title, link=quote, cell=cell)
    return environment.get_template(template).render(told)


def _rank(row: Row) -> tuple[bool, float, str, str]:
    """Failed rows first, then by Dice; ties by id and prompt, so that a report can be made again."""
    dice = row["dice"]
    return dice is not None, dice or 0.0, row["id"], row["prompt"]


def _picture(folder: Path, row: Row) -> str:
    """The row's figure as a `data:` address of a JPEG no wider than `THUMBNAIL_WIDTH`."""
    with Image.open(folder / row["figure"]) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((THUMBNAIL_WIDTH, 4 * THUMBNAIL_WIDTH), Image.Resampling.LANCZOS)
    memory = io.BytesIO()
    picture.save(memory, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode("ascii")
