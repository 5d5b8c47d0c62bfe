"""The opening of a report: one sentence, and the worst, median and best prediction of each phrase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vesalius.language import translate
from vesalius.pages import as_data_url, counted
from vesalius.scoring.results import ResultRow
from vesalius.scoring.tables import interval, number
from vesalius.visualization import crop_panels

PHRASES_SHOWN = 6
"""Maximum number of phrases with pictures at the top of a report."""
PANELS = (0, 5)
"""Panels of the six that are shown: original and difference."""
WIDTH = 640
"""Width of an example in pixels."""

Examples = list[tuple[str, list[tuple[str, ResultRow]]]]
"""(phrase, [(label, row), ...]) of each phrase."""


def verdict(metrics: Mapping[str, Any], n_rows: int) -> str:
    """The result of an evaluation in one sentence: mean Dice with its interval, and the highest and lowest phrase."""
    dice, bounds = metrics["mean"]["dice"], metrics["ci95"]["dice"]
    if dice is None:
        return translate("No prediction has a score.")
    means = {prompt: part["mean"]["dice"] for prompt, part in metrics["prompts"].items()}
    scored = {prompt: value for prompt, value in means.items() if value is not None}
    extremes = ""
    if len(scored) >= 2:
        low, high = min(scored, key=scored.__getitem__), max(scored, key=scored.__getitem__)
        extremes = translate(
            ": highest for “{high}” ({best}), lowest for “{low}” ({worst})",
            high=high,
            best=number(scored[high]),
            low=low,
            worst=number(scored[low]),
        )
    return translate(
        "Mean Dice {dice}{interval} over {predictions}{extremes}.",
        dice=number(dice),
        interval=translate(" (95 % CI {bounds})", bounds=interval(bounds)) if bounds else "",
        predictions=counted(n_rows - metrics["coverage"]["failed"], "prediction"),
        extremes=extremes,
    )


def choose_examples(rows: Sequence[ResultRow]) -> Examples:
    """The worst, median and best row by Dice of up to `PHRASES_SHOWN` phrases, none twice; failed rows are left out.

    Phrases are in the order of the rows; of more phrases, those with the lowest mean Dice are chosen, lowest first.
    """
    by_phrase: dict[str, list[ResultRow]] = {}
    for row in sorted((row for row in rows if row["dice"] is not None), key=lambda row: (row["dice"], row["id"])):
        by_phrase.setdefault(row["prompt"], []).append(row)
    order = [phrase for phrase in dict.fromkeys(row["prompt"] for row in rows) if phrase in by_phrase]
    if len(order) > PHRASES_SHOWN:
        order = sorted(order, key=lambda phrase: _mean(by_phrase[phrase]))[:PHRASES_SHOWN]
    return [(phrase, _three(by_phrase[phrase])) for phrase in order]


def _mean(rows: Sequence[ResultRow]) -> float:
    return sum(row["dice"] for row in rows) / len(rows)


def _three(ranked: Sequence[ResultRow]) -> list[tuple[str, ResultRow]]:
    if len(ranked) == 1:
        return [(translate("Only prediction"), ranked[0])]
    cases = [
        (translate("Worst"), ranked[0]),
        (translate("Median"), ranked[len(ranked) // 2]),
        (translate("Best"), ranked[-1]),
    ]
    return cases if len(ranked) > 2 else [cases[0], cases[2]]


def draw_example(figure: Path) -> str:
    """The original and the difference panel of a figure, as a `data:` URL."""
    with Image.open(figure) as opened:
        return as_data_url(crop_panels(opened, PANELS), WIDTH)
