"""evaluate: predict, score, draw and report, one batch after the other.

    samples -> items -> predictions -> a row (samples.jsonl) and a figure each -> metrics.json, reports

The model never sees the masks. A sample that cannot be read or predicted becomes a row that says so. Scoring and drawing
run in other processes.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.data.dataset import Dataset
from vesalius.errors import DataError, ImageError, SettingError
from vesalius.files import check_replaceable, prepare_folder, write_json
from vesalius.jobs.folder import Segmenter, check_prompts, predict_samples
from vesalius.lineage import fingerprint_samples, versions
from vesalius.names import result_stems, short_hash
from vesalius.parallel import map_in_order
from vesalius.scoring.leaks import Leaks, find_leaks
from vesalius.scoring.regions import Regions
from vesalius.scoring.report import write_report
from vesalius.scoring.results_log import COUNTS, STATE, ResultsLog
from vesalius.scoring.summary import group_of, notes, numbers
from vesalius.scoring.task import Task, perform
from vesalius.types import Item, Prediction, Sample

log = logging.getLogger(__name__)

FILES = frozenset(
    {"metrics.json", "samples.jsonl", "samples.csv", "groups.csv", "figures", "report.html", "report.md"}
    | {STATE, COUNTS}  # left by one that was killed in its last moment
)
"""All that an evaluation folder holds; a folder with anything else is somebody's, and is not replaced."""


def evaluate(
    segmenter: Segmenter,
    data: Dataset | Sequence[Sample],
    out: str | Path,
    *,
    limit: int | None = None,
    figures: bool = True,
    roi: str | Path | None = None,
    workers: int | None = None,
    allow_training_samples: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Score the segmenter on a dataset, write the evaluation folder `out`, return what metrics.json holds.

    Where `coverage.failed` is above 0 the caller exits with 1. `limit` takes the first samples only; `roi` is a
    folder of masks named by id, outside of which nothing counts; `workers` processes score and draw (default: one
    a core; 0: none apart); `on_progress` gets the number of samples done. `took_s` is the time of all;
    `images_per_s` counts the time in `predict` alone, and is None when no image was predicted. An evaluation folder
    at `out` is replaced when the new one is complete. One that was interrupted is continued.

    Raises OutputError where `out` is anything else or cannot be written; SettingError for a limit below 1, workers below
    0 and prompts that the segmenter refuses; DataError for samples without masks, for images that it was trained on unless
    they are allowed, for images that its threshold was tuned on, and when most predictions equal their ground truth.
    """
    out, started = Path(out).resolve(), time.perf_counter()
    check_replaceable(out, "evaluation", FILES, "metrics.json")
    processes = _processes(workers)
    dataset = _checked(segmenter, data if isinstance(data, Dataset) else Dataset.of(data), limit)
    samples = dataset.samples
    regions = None if roi is None else Regions(Path(roi), samples)
    leaks = find_leaks(segmenter, samples, allow_training_samples)
    settings = {**segmenter.settings, "limit": limit, "figures": figures, **_about_regions(regions)}
    fingerprint, missing = _fingerprint(samples)
    watched = Watched(segmenter)
    with ResultsLog(out, _state(segmenter, samples, settings), _ends(samples)) as tally:
        _score_all(tally, watched, samples, regions, figures, processes, on_progress)
        metrics = {
            "model": segmenter.card,
            "data": _about_data(dataset, fingerprint, leaks),
            "threshold": segmenter.threshold,
            "threshold_origin": dict(segmenter.threshold_origin),
            **numbers(tally, samples),
            "took_s": time.perf_counter() - started,
            "images_per_s": watched.images / watched.predict_s if watched.images else None,
            "notes": [
                *leaks.notes,
                *missing,
                *_on_memory(segmenter),
                *_on_cache(segmenter),
                *notes(tally, samples),
                *dataset.notes,
            ],
            "settings": {**settings, "batch": segmenter.batch, "workers": processes},
            "versions": versions(),
        }
        write_json(tally.folder / "metrics.json", metrics)
        write_report(tally.folder, metrics, tally.rows)
        tally.finish()
    return metrics


class Watched:
    """A segmenter whose answers are checked and whose time in `predict` is measured."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.images, self.predict_s = 0, 0.0
        self._segmenter = segmenter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._segmenter, name)

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        started = time.perf_counter()
        try:
            predictions = self._segmenter.predict(items)
        except Exception as error:  # out of memory, or a bug in any kind of model: a failure, counted as one
            log.debug("predict failed", exc_info=True)
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        self.predict_s += time.perf_counter() - started
        self.images += len(items)
        expected = [(item.id, prompt) for item in items for prompt in item.prompts]
        came = [(prediction.id, prediction.prompt) for prediction in predictions]
        if came != expected:  # the score of one image must never be that of another
            raise ValueError(f"predict must answer {expected} in this order; it answered {came}")
        return predictions


def _score_all(
    tally: ResultsLog,
    watched: Watched,
    samples: Sequence[Sample],
    regions: Regions | None,
    figures: bool,
    processes: int,
    on_progress: Callable[[int], None],
) -> None:
    """Score what is not scored yet; nothing is kept of predictions that are the ground truth."""
    done = tally.samples_done
    if done:
        log.warning("%s: continues where it was interrupted, after %d samples", tally.out, done)
    names = _figures(samples) if figures else {}
    if figures:
        prepare_folder(tally.folder / "figures")
    tasks = _tasks(watched, samples[done:], tally.folder, names, regions)
    with closing(map_in_order(perform, tasks, processes)) as outcomes:
        for outcome in outcomes:
            tally.add(outcome)
            row = outcome.row
            if row["error"]:
                log.warning("%s, %s: failed: %s", row["id"], row["prompt"], row["error"])
            on_progress(tally.samples_done)
    try:
        tally.refuse_copies()
    except DataError:
        tally.discard()
        raise


def _tasks(
    segmenter: Watched,
    samples: Sequence[Sample],
    folder: Path,
    figures: dict[tuple[str, str], str],
    regions: Regions | None,
) -> Iterator[Task]:
    for sample, item, predictions in predict_samples(segmenter, samples):
        region, error = None, ""
        if item is not None and regions is not None:
            try:
                region = regions.of(sample, item.size)
            except DataError as reason:
                error = str(reason)
        for index, answer in enumerate(predictions):
            prediction = _failed(answer, error) if error else answer
            about = {"id": sample.id, "group": group_of(sample), "prompt": prediction.prompt}
            if item is None or item.masks is None or prediction.status == "failed":
                yield Task(about, prediction)
                continue
            figure = figures.get((sample.id, prediction.prompt), "")
            yield Task(
                about,
                prediction,
                image=item.frames[0],
                truth=item.masks[index, 0],
                within=region,
                spacing_mm=sample.spacing_mm,
                folder=folder if figure else None,
                figure=figure,
            )


def _failed(prediction: Prediction, error: str) -> Prediction:
    """The same question without an answer; why it had none before comes first."""
    nothing = np.zeros((0, 1, 1), dtype=np.float32)
    reason = prediction.error or error
    return Prediction(
        prediction.id, prediction.prompt, "failed", prediction.size, nothing, says_seg=False, error=reason
    )


def _figures(samples: Sequence[Sample]) -> dict[tuple[str, str], str]:
    """Id and prompt -> path of the picture, no two the same: `a--b` may be an id, or the prompt b of the id a."""
    names: dict[tuple[str, str], str] = {}
    taken: set[str] = set()
    for sample in samples:
        for prompt, stem in zip(sample.prompts, result_stems(sample.id, sample.prompts), strict=True):
            name = f"{stem}-{short_hash(prompt)}" if stem in taken else stem
            taken.add(name)
            names[sample.id, prompt] = f"figures/{name}.png"
    return names


def _processes(workers: int | None) -> int:
    if workers is not None and workers < 0:
        raise SettingError(f"workers must be 0 or more; got {workers}")
    return os.cpu_count() or 1 if workers is None else workers


def _checked(segmenter: Segmenter, dataset: Dataset, limit: int | None) -> Dataset:
    """The dataset, cut to `limit` samples; an error where it cannot be scored against, or asked about."""
    if limit is not None and limit < 1:
        raise SettingError(f"limit must be 1 or more; got {limit}")
    dataset = dataset if limit is None else dataset.first(limit)
    samples = dataset.samples
    if not samples:
        raise DataError(f"{dataset.name}: has no samples to evaluate")
    dataset.annotated()
    name, times = Counter(sample.id for sample in samples).most_common(1)[0]
    if times > 1:
        raise DataError(f"{dataset.name}: {times} samples have the id {name}; each needs its own")
    for sample in samples:
        try:
            result_stems(sample.id, sample.prompts)
        except ValueError as error:
            raise DataError(f"{sample.source or sample.id}: {error}") from error
    check_prompts(segmenter, (prompt for sample in samples for prompt in sample.prompts))
    return dataset


def _state(segmenter: Segmenter, samples: Sequence[Sample], settings: dict[str, Any]) -> dict[str, Any]:
    """All that decides about rows: an evaluation that was interrupted is continued where this is the same."""
    return {
        "model": segmenter.card,
        "threshold": segmenter.threshold,
        "settings": settings,
        "samples": [
            [sample.id, _fingerprint([sample])[0], sample.group, sample.spacing_mm, sample.size]
            for sample in samples
        ],
        "versions": versions(),
    }


def _ends(samples: Sequence[Sample]) -> list[int]:
    """For each sample, how many rows there are when it is done."""
    return list(accumulate(len(sample.prompts) for sample in samples))


def _fingerprint(samples: Sequence[Sample]) -> tuple[str | None, list[str]]:
    try:
        return fingerprint_samples(samples), []
    except ImageError as error:  # that sample fails and is counted; it must not cost the others' results
        return None, [f"The data have no fingerprint: {error}"]


def _on_memory(segmenter: Segmenter) -> list[str]:
    times = getattr(segmenter, "times_halved", 0)
    return [f"Memory ran out, and the batch was halved {times} times."] if times else []


def _on_cache(segmenter: Segmenter) -> list[str]:
    cache = getattr(segmenter, "cache", None)
    if cache is None:
        return []
    use = cache.use
    damaged = f", of {use.damaged} because the entry was damaged" if use.damaged else ""
    return [f"Features of {use.read} images were read from a cache; {use.encoded} were encoded{damaged}."]


def _about_regions(regions: Regions | None) -> dict[str, str | None]:
    if regions is None:
        return {"roi": None}
    return {"roi": str(regions.folder), "roi_fingerprint": regions.fingerprint}


def _about_data(dataset: Dataset, fingerprint: str | None, leaks: Leaks) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "format": dataset.format,
        "fingerprint": fingerprint,
        "n_samples": len(dataset.samples),
        "n_groups": len({group_of(sample) for sample in dataset.samples}),
        "n_training_samples": leaks.n_training,
        "near_training_samples": list(leaks.near),
    }
