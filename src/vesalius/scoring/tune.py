"""tune: the threshold that scores best on validation data, and whether test-time augmentation is worth its time.

One pass over the images finds both. A gain is the mean difference of the metric between an image in several views and
the same image in one, each at the best threshold of its kind, and is one where its whole interval is above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from vesalius.data.dataset import Dataset, load_image
from vesalius.errors import DataError, SettingError
from vesalius.evaluation.calibration import curves, histogram
from vesalius.evaluation.statistics import paired_bootstrap
from vesalius.jobs.folder import Segmenter, check_prompts, predict_samples
from vesalius.lineage import fingerprint_samples, hash_pixels
from vesalius.models.cards import ThresholdOrigin, TtaGain
from vesalius.scoring.evaluate import Watched
from vesalius.scoring.results_log import PLACES, TRIED
from vesalius.scoring.summary import group_of
from vesalius.types import Item, Prediction, Sample

METRICS = ("dice", "iou")
LEVEL = 0.95
"""Of all intervals of gains together."""

Views = tuple[str, ...]
"""What the segmenter sees of an image beside the plain view; () is that alone."""


@dataclass(frozen=True)
class Trial:
    """What a choice of views gave."""

    views: Views
    threshold: float
    """The best with these views."""
    value: float
    """Mean of the metric there."""
    gain: float
    """Mean difference to the plain view at its own best threshold."""
    interval: tuple[float, float] | None
    """Of the gain, by the cluster bootstrap; None where all images are of one group."""
    level: float
    """Of the interval: `LEVEL`, corrected for the number of trials (Bonferroni)."""

    @property
    def is_gain(self) -> bool:
        """Whether all of the interval is above 0."""
        return self.interval is not None and self.interval[0] > 0


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
    trials: tuple[Trial, ...] = ()
    """Of each choice of the views that were to be tried."""

    @property
    def gain(self) -> Trial | None:
        """The trial that is a gain and has the highest value, of equal ones that of fewest views; None without one."""
        gains = [trial for trial in self.trials if trial.is_gain]
        return max(gains, key=lambda trial: round(trial.value, 12), default=None)

    @property
    def origin(self) -> ThresholdOrigin:
        """Where the threshold comes from, for a card."""
        return ThresholdOrigin(how="tuned", value=self.value, **self._data())

    @property
    def view_gain(self) -> TtaGain | None:
        """The gain and where it comes from, for a card."""
        if self.gain is None:
            return None
        return TtaGain(**asdict(self.gain), **self._data(), n_groups=self.n_groups)

    def _data(self) -> dict[str, Any]:
        names = ("data", "data_fingerprint", "metric", "n_samples")
        return {name: getattr(self, name) for name in names}


class Viewed(Protocol):
    """A prediction that can be seen through fewer views."""

    def through(self, views: Views) -> Prediction:
        """The prediction as these views beside the plain one make it."""


def find_threshold(
    segmenter: Segmenter,
    dataset: Dataset,
    metric: str = "dice",
    on_progress: Callable[[int], None] = lambda done: None,
    *,
    views: Sequence[str] = (),
) -> Tuned:
    """The threshold with the highest mean of the metric over all answers; of equal ones that nearest to 0.5.

    Each image is predicted once; its histogram of probabilities gives the metric at all thresholds. An answer
    without [SEG] has the empty mask at each. With `views` each choice of them is tried too, by the segmenter's method
    `trying` (`Predictor`), whose predictions are `Viewed`. SettingError for an unknown metric, for prompts that
    the segmenter refuses, and for views that it or a prompt does not allow; DataError where an image cannot be
    read or predicted, for samples without masks, and for images that the model was trained on.
    """
    if metric not in METRICS:
        raise SettingError(f"metric {metric!r} cannot be tuned; choose from {', '.join(METRICS)}")
    samples = dataset.annotated().samples
    prompts = [prompt for sample in samples for prompt in sample.prompts]
    check_prompts(segmenter, prompts)
    images = _hash_images(segmenter, samples)
    if views:
        if not hasattr(segmenter, "trying"):
            raise SettingError(
                f"{segmenter.card['name']}: test-time augmentation is for text-prompted models"
            )
        segmenter = cast(Any, segmenter).trying(views, prompts)
        views = cast(Any, segmenter).views
    choices = [some for count in range(len(views) + 1) for some in combinations(views, count)]
    values: dict[Views, list[np.ndarray]] = {choice: [] for choice in choices}
    groups: list[str] = []
    for done, (sample, item, predictions) in enumerate(predict_samples(Watched(segmenter), samples), start=1):
        for index, prediction in enumerate(predictions):
            if prediction.status == "failed" or item is None or item.masks is None:
                raise DataError(f"{sample.id}: {prediction.error or 'has no mask'}; no threshold was found")
            for choice in choices:
                seen = cast(Viewed, prediction).through(choice) if views else prediction
                values[choice].append(_curve(seen, item, index, metric))
            groups.append(group_of(sample))
        on_progress(done)
    plain = np.stack(values[()])
    best, mean = _best(plain), plain.mean(axis=0)
    return Tuned(
        threshold=float(TRIED[best]),
        metric=metric,
        value=float(mean[best]),
        at_default=float(mean[TRIED.searchsorted(0.5)]),
        curve=tuple(zip(TRIED.tolist(), mean.tolist(), strict=True)),
        data=dataset.name,
        data_fingerprint=fingerprint_samples(samples),
        n_samples=len(samples),
        n_groups=len(set(groups)),
        images=tuple(images),
        trials=_compare(plain[:, best], {choice: np.stack(values[choice]) for choice in choices[1:]}, groups),
    )


def summarize(tuned: Tuned, target: Path, had_gain: bool) -> list[str]:
    """Lines for a terminal; `had_gain` where the card told of a gain before, which this tuning replaces."""
    lines = [
        f"threshold {tuned.threshold:.2f}: mean {tuned.metric} {tuned.value:.4f} on {tuned.n_samples} images "
        f"({tuned.at_default:.4f} at 0.50)"
    ]
    for trial in tuned.trials:
        interval = "one group, no interval"
        if trial.interval is not None:
            interval = (
                f"{trial.level * 100:.3g} % interval {trial.interval[0]:+.4f} to {trial.interval[1]:+.4f}"
            )
        verdict = "a gain" if trial.is_gain else "no gain"
        lines.append(
            f"views {', '.join(trial.views)}: mean {tuned.metric} {trial.value:.4f} at {trial.threshold:.2f}, "
            f"{trial.gain:+.4f} ({interval}): {verdict}"
        )
    if tuned.gain is not None:
        lines.append(f"predict and evaluate with --tta see {', '.join(tuned.gain.views)} too")
    elif tuned.trials:
        lines.append("no gain is sure: --tta stays refused")
    elif had_gain:
        lines.append(
            "the gain of --tta was measured on other images and is no longer known; tune with --tta again"
        )
    return [*lines, f"{target}: evaluate it on other images than these"]


def as_json(tuned: Tuned) -> dict[str, Any]:
    """What was found, for a program; the number of images in place of their hashes."""
    gain = None if tuned.gain is None else asdict(tuned.gain)
    return {**asdict(tuned), "images": len(tuned.images), "gain": gain}


def _curve(prediction: Prediction, item: Item, index: int, metric: str) -> np.ndarray:
    """float64 (99,): the metric at each of `TRIED`."""
    probability = prediction.probability
    if probability is None or item.masks is None:
        raise DataError(f"{item.id}: there are no probabilities to find a threshold in")
    curve: np.ndarray = getattr(curves(histogram(probability, item.masks[index, 0])), metric)[PLACES]
    return curve


def _best(values: np.ndarray) -> int:
    """Which of `TRIED` has the highest mean of (rows, 99); of equal ones that nearest to 0.5."""
    mean = values.mean(axis=0)
    return max(range(len(mean)), key=lambda k: (round(float(mean[k]), 12), -abs(TRIED[k] - 0.5)))


def _compare(plain: np.ndarray, tried: dict[Views, np.ndarray], groups: Sequence[str]) -> tuple[Trial, ...]:
    """Each choice of views against the plain view at its best threshold (rows,)."""
    bests = {views: _best(values) for views, values in tried.items()}
    differences = {views: (values[:, bests[views]] - plain).tolist() for views, values in tried.items()}
    level = 1 - (1 - LEVEL) / max(1, len(tried))
    intervals = paired_bootstrap([(each, groups) for each in differences.values()], level=level)
    return tuple(
        Trial(
            views=views,
            threshold=float(TRIED[bests[views]]),
            value=float(values[:, bests[views]].mean()),
            gain=float(np.mean(differences[views])),
            interval=None if interval is None else (interval.low, interval.high),
            level=level,
        )
        for (views, values), interval in zip(tried.items(), intervals, strict=True)
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
