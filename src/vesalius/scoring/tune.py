"""Tune the threshold on validation data, and measure the gain of test-time augmentation.

One pass over the images does both. The gain is the mean difference of the metric between predictions with and without
augmented views, each at its own best threshold; it is significant if its whole interval is above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.data.dataset import Dataset, load_image
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.grouping import group_of
from vesalius.data.images import with_window
from vesalius.errors import DataError, SettingError
from vesalius.evaluation.calibration import curves, histogram
from vesalius.evaluation.statistics import paired_bootstrap
from vesalius.jobs.folder import predict_samples
from vesalius.lineage import fingerprint_samples, hash_pixels
from vesalius.mask_maps import LowRes
from vesalius.models.cards import ThresholdOrigin, TtaGain
from vesalius.phrases import list_phrases, unknown_prompts
from vesalius.scoring.evaluate import MeasuredSegmenter
from vesalius.scoring.results_log import CURVE_INDICES, CURVE_THRESHOLDS
from vesalius.segmenter import Segmenter
from vesalius.types import Item, Prediction, Sample

TUNABLE = ("dice", "iou")
LEVEL = 0.95
"""Joint confidence level of the intervals of all gains."""

Views = tuple[str, ...]
"""Augmented views that are averaged with the plain (unaugmented) image; () is the plain image alone."""


@dataclass(frozen=True)
class TtaTrial:
    """Threshold and gain of one combination of augmented views."""

    views: Views
    threshold: float
    """Best threshold with the views of this trial."""
    value: float
    """Mean of the metric at `threshold`."""
    gain: float
    """Mean difference to predictions on plain images at their own best threshold."""
    interval: tuple[float, float] | None
    """Cluster bootstrap interval of the gain; None if all images belong to one group."""
    level: float
    """Confidence level of the interval: `LEVEL`, corrected for the number of trials (Bonferroni)."""

    @property
    def is_significant(self) -> bool:
        """True if the whole interval is above 0."""
        return self.interval is not None and self.interval[0] > 0


@dataclass(frozen=True)
class TuningResult:
    """A tuned threshold, and its score on the data it was tuned on."""

    threshold: float
    metric: str
    value: float
    at_default: float
    """Mean of the metric at the default threshold 0.5."""
    curve: tuple[tuple[float, float], ...]
    """(threshold, mean of the metric) at each of 0.01 to 0.99."""
    data: str
    data_fingerprint: str
    n_samples: int
    n_groups: int
    images: tuple[str, ...]
    """SHA-256 of the pixels of each image."""
    unknown_phrases: tuple[str, ...] = ()
    """Phrases of the data that the model does not know; the threshold may not fit its own phrases."""
    trials: tuple[TtaTrial, ...] = ()
    """One trial for each non-empty subset of the given views."""

    @property
    def gain(self) -> TtaTrial | None:
        """The significant trial with the highest value, on ties the one with the fewest views; None without one."""
        gains = [trial for trial in self.trials if trial.is_significant]
        return max(gains, key=lambda trial: round(trial.value, 12), default=None)

    @property
    def origin(self) -> ThresholdOrigin:
        """Origin of the threshold, for a model card."""
        return ThresholdOrigin(how="tuned", value=self.value, **self._data())

    @property
    def tta_gain(self) -> TtaGain | None:
        """Gain of test-time augmentation with its origin, for a model card; None if no trial is significant."""
        if self.gain is None:
            return None
        return TtaGain(**asdict(self.gain), **self._data(), n_groups=self.n_groups)

    def _data(self) -> dict[str, Any]:
        names = ("data", "data_fingerprint", "metric", "n_samples")
        return {name: getattr(self, name) for name in names}


def find_threshold(
    segmenter: Segmenter,
    dataset: Dataset,
    metric: str = "dice",
    on_progress: Callable[[int], None] = lambda done: None,
    *,
    tta: Sequence[str] = (),
) -> TuningResult:
    """Find the threshold with the highest mean of the metric over all predictions; on ties, the nearest to 0.5.

    Each image is predicted once; its histogram of probabilities gives the metric at all thresholds. A prediction
    without [SEG] is an empty mask at every threshold. With `tta`, each subset of its views is tried as well
    (`Segmenter.with_views`). SettingError for an unknown metric, for prompts that the segmenter refuses, and for views
    that it or a prompt does not allow; DataError if an image cannot be read or predicted, for samples without masks,
    and for images that the model was trained on.
    """
    if metric not in TUNABLE:
        raise SettingError(
            f"metric {metric!r} cannot be tuned; choose from {', '.join(TUNABLE)}", code="unknown_metric"
        )
    samples = with_window(dataset.annotated().samples, segmenter.description.window)
    prompts = [prompt for sample in samples for prompt in sample.prompts]
    segmenter.note_prompts(dict.fromkeys(prompts))
    images = _hash_images(segmenter, samples)
    if tta:
        segmenter, tta = segmenter.with_views(tta, prompts)
    choices = [some for count in range(len(tta) + 1) for some in combinations(tta, count)]
    values: dict[Views, list[np.ndarray]] = {choice: [] for choice in choices}
    groups: list[str] = []
    predicted = predict_samples(MeasuredSegmenter(segmenter), samples)
    for done, (sample, item, predictions) in enumerate(predicted, start=1):
        for index, prediction in enumerate(predictions):
            if prediction.status == "failed" or item is None or item.masks is None:
                raise DataError(
                    f"{sample.id}: {prediction.error or 'has no mask'}; the threshold was not tuned",
                    code="prediction_failed",
                    field=sample.id,
                )
            for choice in choices:
                seen = _through(prediction, choice) if tta else prediction
                values[choice].append(_curve(seen, item, index, metric))
            groups.append(group_of(sample))
        on_progress(done)
    plain = np.stack(values[()])
    best, mean = _best(plain), plain.mean(axis=0)
    return TuningResult(
        threshold=float(CURVE_THRESHOLDS[best]),
        metric=metric,
        value=float(mean[best]),
        at_default=float(mean[CURVE_THRESHOLDS.searchsorted(0.5)]),
        curve=tuple(zip(CURVE_THRESHOLDS.tolist(), mean.tolist(), strict=True)),
        data=dataset.name,
        data_fingerprint=fingerprint_samples(samples),
        n_samples=len(samples),
        n_groups=len(set(groups)),
        unknown_phrases=tuple(unknown_prompts(prompts, segmenter.description.phrases)),
        images=tuple(images),
        trials=_compare(plain[:, best], {choice: np.stack(values[choice]) for choice in choices[1:]}, groups),
    )


def summarize(tuned: TuningResult, target: Path, had_gain: bool) -> list[str]:
    """The result as text lines for the terminal; `had_gain`: this tuning replaces a gain in the model card."""
    lines = [
        f"threshold {tuned.threshold:.2f}: mean {tuned.metric} {tuned.value:.4f} on {tuned.n_samples} images "
        f"({tuned.at_default:.4f} at 0.50)"
    ]
    for trial in tuned.trials:
        interval = "one group, no interval"
        if trial.interval is not None:
            interval = f"{trial.level * 100:.3g} % interval {trial.interval[0]:+.4f} to {trial.interval[1]:+.4f}"
        verdict = "significant gain" if trial.is_significant else "no significant gain"
        lines.append(
            f"views {', '.join(trial.views)}: mean {tuned.metric} {trial.value:.4f} at {trial.threshold:.2f}, "
            f"{trial.gain:+.4f} ({interval}): {verdict}"
        )
    if tuned.gain is not None:
        lines.append(f"--tta is enabled for predict and evaluate, with the views {', '.join(tuned.gain.views)}")
    elif tuned.trials:
        lines.append("no significant gain: --tta stays disabled")
    elif had_gain:
        lines.append("--tta is disabled: its gain was measured at another threshold; tune with --tta again")
    if tuned.unknown_phrases:
        lines.append(
            f"tuned on phrases that the model does not know: {list_phrases(tuned.unknown_phrases)}; the threshold may not "
            "fit the phrases that it knows"
        )
    return [*lines, f"{target}: evaluate it on images other than these"]


def as_json(tuned: TuningResult) -> dict[str, Any]:
    """The result as JSON, with the number of images instead of their hashes."""
    gain = None if tuned.gain is None else asdict(tuned.gain)
    return {**asdict(tuned), "images": len(tuned.images), "gain": gain}


def _through(prediction: Prediction, views: Views) -> Prediction:
    """The prediction averaged over the plain image and the given views only."""
    assert isinstance(prediction.maps, LowRes)
    return replace(prediction, maps=prediction.maps.through(views))


def _curve(prediction: Prediction, item: Item, index: int, metric: str) -> np.ndarray:
    """float64 (99,): the metric of a prediction at each of `CURVE_THRESHOLDS`."""
    probability = prediction.probability
    if probability is None or item.masks is None:
        raise DataError(
            f"{item.id}: the prediction has no probabilities, which tuning a threshold needs",
            code="missing_probabilities",
            field=item.id,
        )
    curve: np.ndarray = getattr(curves(histogram(probability, item.masks[index, 0])), metric)[CURVE_INDICES]
    return curve


def _best(values: np.ndarray) -> int:
    """Index in `CURVE_THRESHOLDS` of the highest mean of `values` (rows, 99); on ties, the nearest to 0.5."""
    mean = values.mean(axis=0)
    return max(range(len(mean)), key=lambda k: (round(float(mean[k]), 12), -abs(CURVE_THRESHOLDS[k] - 0.5)))


def _compare(plain: np.ndarray, tried: dict[Views, np.ndarray], groups: Sequence[str]) -> tuple[TtaTrial, ...]:
    """One trial per combination of views; `plain` (rows,) has the values without views at their best threshold."""
    bests = {views: _best(values) for views, values in tried.items()}
    differences = {views: (values[:, bests[views]] - plain).tolist() for views, values in tried.items()}
    level = 1 - (1 - LEVEL) / max(1, len(tried))
    intervals = paired_bootstrap([(each, groups) for each in differences.values()], level=level)
    return tuple(
        TtaTrial(
            views=views,
            threshold=float(CURVE_THRESHOLDS[bests[views]]),
            value=float(values[:, bests[views]].mean()),
            gain=float(np.mean(differences[views])),
            interval=None if interval is None else (interval.low, interval.high),
            level=level,
        )
        for (views, values), interval in zip(tried.items(), intervals, strict=True)
    )


def _hash_images(segmenter: Segmenter, samples: Sequence[Sample]) -> list[str]:
    if not samples:
        raise DataError("there are no samples to tune the threshold on", code="no_samples")
    model = segmenter.description
    with FrameReader() as reader:
        images = [hash_pixels(load_image(model.as_trained(sample), reader)) for sample in samples]
    trained = set(model.training_images or ())
    seen = [sample.id for sample, name in zip(samples, images, strict=True) if name in trained]
    if seen:
        raise DataError(
            f"the model was trained on {len(seen)} of {len(samples)} images (first: {seen[0]}); tune the threshold "
            "on others",
            code="training_leak",
            field=seen[0],
        )
    return images
