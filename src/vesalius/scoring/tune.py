"""tune: the threshold that scores best on validation data, found in one pass and stored with where it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vesalius.data.dataset import DataSet, load_image
from vesalius.errors import DataError, SettingError
from vesalius.evaluation.calibration import curves, histogram
from vesalius.inference.folder import Segmenter, predict_samples
from vesalius.lineage import fingerprint_samples, hash_pixels
from vesalius.scoring.evaluate import Watched
from vesalius.scoring.summary import group_of
from vesalius.scoring.tally import PLACES, TRIED
from vesalius.types import Sample

METRICS = ("dice", "iou")


@dataclass(frozen=True)
class Tuned:
    """A threshold, and what it gives on the data it was found on."""

    threshold: float
    metric: str
    value: float
    at_default: float
    """The same metric at 0.5."""
    curve: tuple[tuple[float, float], ...]
    """(threshold, mean of the metric) of all that were tried."""
    data: str
    data_fingerprint: str
    n_samples: int
    n_groups: int
    images: tuple[str, ...]
    """SHA-256 of the pixels of each image."""


def find_threshold(
    segmenter: Segmenter,
    data_set: DataSet,
    metric: str = "dice",
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tuned:
    """The threshold with the highest mean of the metric over all answers; of equal ones that nearest to 0.5.

    Each image is predicted once; its histogram of probabilities gives the metric at all thresholds. An answer
    without [SEG] has the empty mask at each. SettingError for an unknown metric; DataError where an image cannot be
    read or predicted, for samples without masks, and for images that the model was trained on.
    """
    if metric not in METRICS:
        raise SettingError(f"metric {metric!r} cannot be tuned; choose from {', '.join(METRICS)}")
    samples = data_set.annotated().samples
    images = _hash_images(segmenter, samples)
    total, rows = np.zeros(len(TRIED)), 0
    for done, (sample, item, predictions) in enumerate(predict_samples(Watched(segmenter), samples), start=1):
        for index, prediction in enumerate(predictions):
            if prediction.status == "failed" or item is None or item.masks is None:
                raise DataError(f"{sample.id}: {prediction.error or 'has no mask'}; no threshold was found")
            probability = prediction.probability
            if probability is None:
                raise DataError(f"{sample.id}: there are no probabilities to find a threshold in")
            total += getattr(curves(histogram(probability, item.masks[index, 0])), metric)[PLACES]
            rows += 1
        on_progress(done)
    mean = total / rows
    best = max(range(len(mean)), key=lambda k: (round(float(mean[k]), 12), -abs(TRIED[k] - 0.5)))
    return Tuned(
        threshold=float(TRIED[best]),
        metric=metric,
        value=float(mean[best]),
        at_default=float(mean[TRIED.searchsorted(0.5)]),
        curve=tuple(zip(TRIED.tolist(), mean.tolist(), strict=True)),
        data=data_set.name,
        data_fingerprint=fingerprint_samples(samples),
        n_samples=len(samples),
        n_groups=len({group_of(sample) for sample in samples}),
        images=tuple(images),
    )


def _hash_images(segmenter: Segmenter, samples: Sequence[Sample]) -> list[str]:
    if not samples:
        raise DataError("there are no samples to find a threshold on")
    images = [hash_pixels(load_image(sample)) for sample in samples]
    trained = set(segmenter.training_images or ())
    seen = [sample.id for sample, name in zip(samples, images, strict=True) if name in trained]
    if seen:
        raise DataError(
            f"{len(seen)} of {len(samples)} images are among those the model was trained on (first: {seen[0]}); "
            "find the threshold on others"
        )
    return images
