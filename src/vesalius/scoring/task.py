"""One answer against its ground truth: the numbers and the picture. It runs in other processes and knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.evaluation.calibration import Histogram, histogram
from vesalius.evaluation.metrics import METRICS, score
from vesalius.evaluation.overlap import confusion
from vesalius.types import Prediction
from vesalius.visualisation import missing_font, six_panels

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What is needed to score one answer."""

    about: Row
    """`id`, `group` and `prompt`."""
    prediction: Prediction
    image: np.ndarray | None = None
    """uint8 (h, w, 3), for the picture; None where the image could not be read."""
    truth: np.ndarray | None = None
    """bool (h, w); None as well."""
    within: np.ndarray | None = None
    """bool (h, w): the region of interest."""
    spacing_mm: tuple[float, float] | None = None
    folder: Path | None = None
    """The evaluation folder; None where no picture is wanted."""
    figure: str = ""
    """Its path in that folder."""


@dataclass(frozen=True)
class Outcome:
    """The row of one answer, and what the whole needs of it."""

    row: Row
    counts: Histogram | None
    """Pixels by probability; None where nobody knows any."""
    missing_font: str | None = None


def perform(task: Task) -> Outcome:
    """Score one answer and draw it. What cannot be scored becomes a failed row with the reason."""
    prediction = task.prediction
    if prediction.status == "failed" or task.truth is None or task.image is None:
        return _failed(task, prediction.error or "no answer, and no reason given")
    try:
        guess, truth = prediction.mask, task.truth
        scores = score(truth, guess, spacing_mm=task.spacing_mm, within=task.within)
        probability = prediction.probability
        counts = None if probability is None else histogram(probability, truth, within=task.within)
    except (ValueError, MemoryError) as error:  # a mask of another size, or one too large
        return _failed(task, f"cannot be scored: {error}")
    figure = _draw(task, guess, scores) if task.folder is not None else None
    counted = confusion(truth, guess, task.within)
    pixels = {
        "truth_pixels": counted.tp + counted.fn,
        "guess_pixels": counted.tp + counted.fp,
        "shared_pixels": counted.tp,
    }
    font = missing_font(task.about["id"] + task.about["prompt"]) if figure else None
    return Outcome(_row(task, prediction.status, scores, figure, pixels), counts, font)


def _draw(task: Task, guess: np.ndarray, scores: Mapping[str, float | None]) -> str:
    title = task.about["id"] + (" · no [SEG]" if task.prediction.status == "no_seg" else "")
    assert task.image is not None and task.truth is not None and task.folder is not None
    picture = six_panels(
        task.image, task.truth, guess, title=title, prompt=task.about["prompt"], scores=scores
    )
    picture.save(task.folder / task.figure, compress_level=1)  # a third of the time, for a third more bytes
    return task.figure


def _failed(task: Task, error: str) -> Outcome:
    nothing = dict.fromkeys(METRICS)
    pixels = dict.fromkeys(("truth_pixels", "guess_pixels", "shared_pixels"))
    return Outcome(_row(task, "failed", nothing, None, pixels, error), None)


def _row(
    task: Task,
    status: str,
    scores: Mapping[str, float | None],
    figure: str | None,
    pixels: Mapping[str, int | None],
    error: str | None = None,
) -> Row:
    return {
        **task.about,
        "status": status,
        "says_seg": task.prediction.says_seg,
        "figure": figure,
        **scores,
        **pixels,
        "text": task.prediction.text,
        "error": error,
    }
