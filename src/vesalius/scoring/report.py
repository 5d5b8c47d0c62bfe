"""The report of an evaluation: one HTML file that needs no network and no other file to be read."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from vesalius.files import write_text

WORST, BEST = 6, 3
BINS = 20
ROWS_SHOWN = 300
"""A browser on a phone still scrolls a table of this length; the report says where the others are."""
THUMBNAIL_WIDTH = 960
"""Pixels: six panels are still legible, and nine figures take about a megabyte."""
HEADLINE = ("dice", "iou", "precision", "recall")
"""Accuracy stands in the table only: it is high for an empty mask wherever little is to be found."""
NAMES = {"dice": "Dice", "iou": "IoU", "precision": "Precision", "recall": "Recall", "accuracy": "Accuracy"}

Row = Mapping[str, Any]


def write_report(folder: Path, metrics: Mapping[str, Any], rows: Sequence[Row]) -> Path:
    """Write `report.html` into an evaluation folder and return its path.

    `metrics` and `rows` are what metrics.json and samples.jsonl hold. Figures of the worst and best rows are
    read from the folder, made smaller and embedded; rows without a figure are named in the table only.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # ids and prompts come from outside and may hold HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, interval=_interval, title_of=_title_of, link=_link)
    worst, best = extremes(rows)
    ranked = sorted(rows, key=_rank)
    page = environment.get_template("report.html.jinja").render(
        m=metrics,
        headline=[name for name in HEADLINE if name in metrics["mean"]],
        histogram=histogram([row["dice"] for row in rows if row["dice"] is not None]),
        cases=[
            ("Worst", [_case(folder, row) for row in worst]),
            ("Best", [_case(folder, row) for row in best]),
        ],
        failures=[row for row in rows if row["status"] == "failed"][:ROWS_SHOWN],
        rows=ranked[:ROWS_SHOWN],
        row_count=len(rows),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def extremes(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The worst rows by Dice, worst first, and the best, best first; none is in both, none failed."""
    ranked = sorted((row for row in rows if row["dice"] is not None), key=_rank)
    worst = ranked[:WORST]
    return worst, ranked[len(worst) :][::-1][:BEST]


def histogram(values: Sequence[float]) -> dict[str, Any]:
    """`counts` in `BINS` equal bins of [0, 1] (1 is in the last), `top` (the largest or 1) and `mean`."""
    counts, _ = np.histogram(values, bins=BINS, range=(0, 1))
    mean = float(np.mean(values)) if len(values) else None
    return {"counts": counts.tolist(), "top": max(1, int(counts.max())), "mean": mean}


def _rank(row: Row) -> tuple[bool, float, str, str]:
    """Failed rows first, then by Dice; ties by id and prompt, so that a report can be made again."""
    dice = row["dice"]
    return dice is not None, dice or 0.0, row["id"], row["prompt"]


def _case(folder: Path, row: Row) -> dict[str, Any]:
    return {"row": row, "picture": _thumbnail(folder / row["figure"]) if row["figure"] else None}


def _thumbnail(path: Path) -> str:
    """The picture as a `data:` address of a JPEG no wider than `THUMBNAIL_WIDTH`."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((THUMBNAIL_WIDTH, 4 * THUMBNAIL_WIDTH), Image.Resampling.LANCZOS)
    memory = io.BytesIO()
    picture.save(memory, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode("ascii")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(value: Sequence[float] | None) -> str:
    return "–" if value is None else f"{value[0]:.3f} – {value[1]:.3f}"


def _title_of(metric: str) -> str:
    return NAMES.get(metric, metric)


def _link(path: str) -> str:
    return quote(path)
