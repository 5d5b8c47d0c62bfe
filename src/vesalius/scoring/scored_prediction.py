"""Score and draw one prediction against its ground truth; runs in worker processes and needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.colors import PHRASE_COLORS, Color
from vesalius.errors import OutputError
from vesalius.evaluation.calibration import Histogram, histogram
from vesalius.evaluation.metrics import METRICS, score
from vesalius.evaluation.overlap import confusion
from vesalius.evaluation.same_masks import PackedMask
from vesalius.fonts import label
from vesalius.scoring.results import ResultRow
from vesalius.types import Prediction
from vesalius.visualization import six_panels

PIXEL_COUNTS = ("target_pixels", "prediction_pixels", "intersection")


@dataclass(frozen=True)
class ScoringInput:
    """A prediction, its ground truth, and the path of its figure."""

    identity: Mapping[str, str]
    """`id`, `group` and `prompt` of the row."""
    prediction: Prediction
    image: np.ndarray | None = None
    """uint8 (h, w, 3), for the figure; None if the image could not be read."""
    target: np.ndarray | None = None
    """Ground truth, bool (h, w); None if the image could not be read."""
    roi: np.ndarray | None = None
    """Region of interest, bool (h, w); None: the whole image."""
    spacing_mm: tuple[float, float] | None = None
    folder: Path | None = None
    """The evaluation folder; None: no figure is drawn."""
    figure: str = ""
    """Path of the figure, relative to `folder`."""
    compared: bool = False
    """Whether the image has several prompts, so that their masks are compared with each other."""
    color: Color = PHRASE_COLORS[0]
    """Color of the phrase in the figure."""


@dataclass(frozen=True)
class ScoredPrediction:
    """Result row of one prediction, and its histogram for the calibration of the whole evaluation."""

    row: ResultRow
    histogram: Histogram | None
    """Pixel counts by probability and ground truth; None without probabilities."""
    packed: PackedMask | None = None
    """The predicted mask, if it is compared with those of other prompts."""


def score_prediction(given: ScoringInput) -> ScoredPrediction:
    """Score one prediction and draw its figure; a prediction that cannot be scored gets a failed row with the reason.

    OutputError if the figure cannot be written.
    """
    prediction, target, roi = given.prediction, given.target, given.roi
    if prediction.status == "failed" or target is None or given.image is None:
        return _failed(given, prediction.error or "the prediction failed without a reason")
    try:
        mask = prediction.mask
        packed = PackedMask.of(mask) if given.compared and prediction.status == "ok" else None
        scores = score(target, mask, spacing_mm=given.spacing_mm, within=roi)
        probability = prediction.probability
        counts = None if probability is None else histogram(probability, target, within=roi)
    except (ValueError, MemoryError) as error:  # a mask of wrong size, or out of memory
        return _failed(given, f"cannot be scored: {error}")
    if roi is not None:  # pixels outside the region are drawn as background
        target, mask = target & roi, mask & roi
    figure = None
    if given.folder is not None:
        figure = _draw(given, given.folder / given.figure, given.image, target, mask, scores)
    counted = confusion(target, mask)
    sizes = (counted.tp + counted.fn, counted.tp + counted.fp, counted.tp)
    pixels = dict(zip(PIXEL_COUNTS, sizes, strict=True))
    return ScoredPrediction(_row(given, prediction.status, figure, scores | pixels), counts, packed)


def _draw(
    given: ScoringInput,
    path: Path,
    image: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray,
    scores: Mapping[str, float | None],
) -> str:
    title = given.identity["id"]
    if given.prediction.status == "no_seg":
        title += " · " + label("no [SEG]")
    if given.prediction.unknown_phrase:
        title += " · " + label("unknown phrase")
    picture = six_panels(
        image, target, mask, title=title, prompt=given.identity["prompt"], scores=scores, color=given.color
    )
    try:
        picture.save(path, compress_level=1)  # takes a third of the time and a third more bytes
    except OSError as error:
        raise OutputError.at(path, f"cannot be written ({error.strerror or error})", code="write_failed") from error
    return given.figure


def _failed(given: ScoringInput, error: str) -> ScoredPrediction:
    nothing = dict.fromkeys((*METRICS, *PIXEL_COUNTS))
    return ScoredPrediction(_row(given, "failed", None, nothing, error), None)


def _row(
    given: ScoringInput, status: str, figure: str | None, values: Mapping[str, Any], error: str | None = None
) -> ResultRow:
    return {
        **given.identity,
        "status": status,
        **({"phrase": given.prediction.phrase} if given.prediction.phrase else {}),
        **({"unknown_phrase": True} if given.prediction.unknown_phrase else {}),
        "says_seg": given.prediction.says_seg,
        "answered": given.prediction.answered,
        "figure": figure,
        **values,
        "text": given.prediction.text,
        "error": error,
    }
