"""One answer against its ground truth: the numbers and the picture. It runs in other processes and knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.errors import OutputError
from vesalius.evaluation.calibration import Histogram, histogram
from vesalius.evaluation.metrics import METRICS, score
from vesalius.evaluation.overlap import confusion
from vesalius.types import Prediction
from vesalius.visualization import six_panels

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


def perform(task: Task) -> Outcome:
    """Score one answer and draw it. What cannot be scored becomes a failed row with the reason.

    OutputError where the picture cannot be written.
    """
    prediction, truth, within = task.prediction, task.truth, task.within
    if prediction.status == "failed" or truth is None or task.image is None:
        return _failed(task, prediction.error or "no answer, and no reason given")
    try:
        guess = prediction.mask
        scores = score(truth, guess, spacing_mm=task.spacing_mm, within=within)
        probability = prediction.probability
        counts = None if probability is None else histogram(probability, truth, within=within)
    except (ValueError, MemoryError) as error:  # a mask of another size, or one too large
        return _failed(task, f"cannot be scored: {error}")
    if within is not None:  # what does not count is not shown as right or wrong either
        truth, guess = truth & within, guess & within
    figure = None
    if task.folder is not None:
        figure = _draw(task, task.image, truth, guess, scores)
    counted = confusion(truth, guess)
    pixels = {
        "target_pixels": counted.tp + counted.fn,
        "prediction_pixels": counted.tp + counted.fp,
        "intersection": counted.tp,
    }
    return Outcome(_row(task, prediction.status, scores, figure, pixels), counts)


def _draw(
    task: Task, image: np.ndarray, truth: np.ndarray, guess: np.ndarray, scores: Mapping[str, float | None]
) -> str:
    title = task.about["id"] + (" · no [SEG]" if task.prediction.status == "no_seg" else "")
    picture = six_panels(image, truth, guess, title=title, prompt=task.about["prompt"], scores=scores)
    assert task.folder is not None
    path = task.folder / task.figure
    try:
        picture.save(path, compress_level=1)  # a third of the time, for a third more bytes
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    return task.figure


def _failed(task: Task, error: str) -> Outcome:
    nothing = dict.fromkeys(METRICS)
    pixels = dict.fromkeys(("target_pixels", "prediction_pixels", "intersection"))
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
        "answered": task.prediction.answered,
        "figure": figure,
        **scores,
        **pixels,
        "text": task.prediction.text,
        "error": error,
    }
