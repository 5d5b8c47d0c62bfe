"""evaluate: predict, score, draw and report, one batch after the other.

    samples -> items -> predictions -> a row (samples.jsonl) and a figure each -> metrics.json, reports

The model never sees the masks. A sample that cannot be read or predicted becomes a row that says so. Scoring and drawing
run in other processes.
"""

from __future__ import annotations

import logging
import os
import time
from bisect import bisect_right as bisect
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.data.dataset import DataSet
from vesalius.data.images import read_mask
from vesalius.errors import DataError, ImageError, OutputError, SettingError
from vesalius.evaluation.calibration import (
    average_precision,
    brier_score,
    expected_calibration_error,
    reliability,
)
from vesalius.evaluation.metrics import METRICS
from vesalius.evaluation.statistics import FEW_GROUPS, summarise
from vesalius.files import replacing, write_json
from vesalius.inference.folder import Segmenter, predict_samples
from vesalius.lineage import fingerprint_samples, versions
from vesalius.masks import Size
from vesalius.names import result_stems, short_hash
from vesalius.scoring.leaks import Leaks, find_leaks
from vesalius.scoring.report import write_report
from vesalius.scoring.tally import Tally
from vesalius.scoring.task import Row, Task, perform
from vesalius.scoring.workers import map_in_order
from vesalius.types import Item, Prediction, Sample

log = logging.getLogger(__name__)

FILES = frozenset(
    {"metrics.json", "samples.jsonl", "samples.csv", "groups.csv", "figures", "report.html", "report.md"}
)
"""All that an evaluation folder holds; a folder with anything else is somebody's, and is not replaced."""
SYSTEM_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
PROMPTS_APART = 50
"""With more different prompts than this, means by prompt are left out, and a note says so."""


def evaluate(
    segmenter: Segmenter,
    data: DataSet | Sequence[Sample],
    out: str | Path,
    *,
    limit: int | None = None,
    figures: bool = True,
    roi: str | Path | None = None,
    workers: int | None = None,
    allow_training_samples: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Score the segmenter on a data set, write the evaluation folder `out`, return what metrics.json holds.

    Where `coverage.failed` is above 0 the caller exits with 1. `limit` takes the first samples only; `roi` is a
    folder of masks named by id, outside of which nothing counts; `workers` processes score and draw (default: one
    a core but one; 0: none apart); `on_progress` gets the number of samples done. `took_s` is the time of all;
    `images_per_s` counts the time in `predict` alone, and is None when no image was predicted. An evaluation folder
    at `out` is replaced when the new one is complete. One that was interrupted is continued.

    Raises OutputError where `out` is anything else or cannot be written; SettingError for a limit below 1;
    DataError for samples without masks, for images that the segmenter was trained on unless they are allowed, for
    images that its threshold was tuned on, and when most predictions equal their ground truth.
    """
    out = Path(out).resolve()
    check_folder(out)
    data_set = _checked(data if isinstance(data, DataSet) else DataSet.of(data), limit)
    samples, started = data_set.samples, time.perf_counter()
    regions = None if roi is None else _Regions(Path(roi), samples)
    leaks = find_leaks(segmenter, samples, allow_training_samples)
    fingerprint, more = _fingerprint(samples)
    settings = {
        **segmenter.settings,
        "limit": limit,
        "figures": figures,
        "roi": None if roi is None else str(roi),
    }
    state = {
        "model": segmenter.card,
        "threshold": segmenter.threshold,
        "data": fingerprint,
        "settings": settings,
        "versions": versions(),
    }
    ends = list(accumulate(len(sample.prompts) for sample in samples))
    tally = Tally(out.with_name(f".{out.name}.unfinished"), state, ends)
    done = ends.index(len(tally.rows)) + 1 if tally.rows else 0
    if done:
        log.warning("%s: continues an evaluation that was interrupted: %d samples are done", out, done)
    watched = Watched(segmenter)
    tasks = _tasks(watched, samples[done:], tally.folder if figures else None, regions)
    processes = max(0, (os.cpu_count() or 1) - 1) if workers is None else workers
    _score_all(tally, tasks, processes, lambda rows: on_progress(bisect(ends, rows)))
    metrics = {
        "model": segmenter.card,
        "data": _about_data(data_set, fingerprint, leaks),
        "threshold": segmenter.threshold,
        "threshold_origin": segmenter.threshold_origin,
        **_numbers(tally, samples),
        "took_s": time.perf_counter() - started,
        "images_per_s": watched.images / watched.predict_s if watched.images else None,
        "notes": [*leaks.notes, *more, *_notes(samples, tally), *data_set.notes],
        "settings": {**settings, "batch": segmenter.batch, "workers": processes},
        "versions": versions(),
    }
    tally.finish()
    with replacing(out) as folder:
        write_json(tally.folder / "metrics.json", metrics)
        write_report(tally.folder, metrics, tally.rows)
        tally.folder.replace(folder)
    return metrics


def check_folder(out: Path) -> None:
    """Raise OutputError unless `out` is absent, empty, or an evaluation folder and nothing else."""
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is a file; name a folder for the evaluation")
    names = {entry.name for entry in out.iterdir()} - SYSTEM_FILES
    foreign = sorted(names - FILES)
    if foreign:
        raise OutputError(f"{out}: holds {foreign[0]}, which is not of an evaluation; name another folder")
    if names and "metrics.json" not in names:
        raise OutputError(
            f"{out}: has no metrics.json, so it is no evaluation to replace; name another folder"
        )


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


class _Regions:
    """Masks of regions of interest, by the ids of samples."""

    def __init__(self, folder: Path, samples: Sequence[Sample]) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: is no folder of region masks")
        found = {path.stem: path for path in sorted(folder.iterdir()) if path.is_file()}
        missing = [sample.id for sample in samples if sample.id not in found]
        if missing:
            raise DataError(
                f"{folder}: has no region for {len(missing)} of {len(samples)} images (first: {missing[0]}); "
                "a region is a mask file named by the image's id"
            )
        self._paths = found

    def of(self, sample: Sample, size: Size) -> np.ndarray:
        """bool (h, w); DataError where it cannot be read, or has another size."""
        return read_mask(self._paths[sample.id], size)


def _tasks(
    segmenter: Watched, samples: Sequence[Sample], folder: Path | None, regions: _Regions | None
) -> Iterator[Task]:
    names: set[str] = set()
    for sample, item, predictions in predict_samples(segmenter, samples):
        stems = result_stems(sample.id, sample.prompts)
        for index, prediction in enumerate(predictions):
            about = {"id": sample.id, "group": group_of(sample), "prompt": prediction.prompt}
            if item is None or item.masks is None or prediction.status == "failed":
                yield Task(about, prediction)
                continue
            figure = f"figures/{stems[index]}.png"
            if figure in names:  # `a--b` may be an id, or the prompt b of the id a
                figure = f"figures/{stems[index]}-{short_hash(prediction.prompt)}.png"
            names.add(figure)
            try:
                within = None if regions is None else regions.of(sample, item.size)
            except DataError as error:
                yield Task(about, failed(prediction, str(error)))
                continue
            image, truth = item.frames[0], item.masks[index, 0]
            yield Task(about, prediction, image, truth, within, sample.spacing_mm, folder, figure)


def failed(prediction: Prediction, error: str) -> Prediction:
    """The same question without an answer."""
    nothing = np.zeros((0, 1, 1), dtype=np.float32)
    return Prediction(
        prediction.id, prediction.prompt, "failed", prediction.size, nothing, says_seg=False, error=error
    )


def _checked(data_set: DataSet, limit: int | None) -> DataSet:
    """The data set, cut to `limit` samples; an error where it cannot be scored against."""
    if limit is not None and limit < 1:
        raise SettingError(f"limit must be 1 or more; got {limit}")
    data_set = data_set if limit is None else data_set.first(limit)
    samples = data_set.samples
    if not samples:
        raise DataError(f"{data_set.name}: has no samples to evaluate")
    bare = [sample.id for sample in samples if sample.masks is None]
    if bare:
        raise DataError(
            f"{data_set.name}: {len(bare)} of {len(samples)} samples have no masks (first: {bare[0]})"
        )
    for sample in samples:
        try:
            result_stems(sample.id, sample.prompts)
        except ValueError as error:
            raise DataError(f"{sample.source or sample.id}: {error}") from error
    return data_set


def _fingerprint(samples: Sequence[Sample]) -> tuple[str | None, list[str]]:
    try:
        return fingerprint_samples(samples), []
    except ImageError as error:  # that sample fails and is counted; it must not cost the others' results
        return None, [f"The data have no fingerprint: {error}"]


def group_of(sample: Sample) -> str:
    """Patient or sequence; an image of which nobody said any is its own group."""
    return sample.group or sample.id


def _score_all(tally: Tally, tasks: Iterator[Task], processes: int, on_rows: Callable[[int], None]) -> None:
    """Perform the tasks and keep what comes of them; nothing is kept of predictions that are the ground truth."""
    for outcome in map_in_order(perform, tasks, processes):
        tally.add(outcome)
        row = outcome.row
        if row["error"]:
            log.warning("%s, %s: failed: %s", row["id"], row["prompt"], row["error"])
        on_rows(len(tally.rows))
    try:
        tally.refuse_copies()
    except DataError:
        tally.discard()
        raise


def _about_data(data_set: DataSet, fingerprint: str | None, leaks: Leaks) -> dict[str, Any]:
    return {
        "name": data_set.name,
        "format": data_set.format,
        "fingerprint": fingerprint,
        "n_samples": len(data_set.samples),
        "n_groups": len({group_of(sample) for sample in data_set.samples}),
        "n_training_samples": leaks.n_training,
        "near_training_samples": list(leaks.near),
    }


def _numbers(tally: Tally, samples: Sequence[Sample]) -> dict[str, Any]:
    """All numbers of metrics.json that come from rows and counts."""
    spaced = any(sample.spacing_mm for sample in samples)
    names = [name for name, metric in METRICS.items() if spaced or not name.endswith("mm")]
    rows, scored = tally.rows, tally.scored
    numbers = {
        **summarise(rows, names),
        "seg_rate": sum(row["says_seg"] for row in scored) / len(scored) if scored else None,
        "empty": tally.empty,
        "referring": tally.referring,
        "prompts": _apart(rows, "prompt", names),
        "groups": _by_group(rows),
        "calibration": None,
    }
    if tally.knows_probabilities:
        counts = tally.counts
        numbers["calibration"] = {
            "average_precision": average_precision(counts),
            "brier": brier_score(counts),
            "ece": expected_calibration_error(counts),
            "reliability": [vars(each) for each in reliability(counts)],
            "curves": {
                name: [None if np.isnan(value) else float(value) for value in curve[9::10]]
                for name, curve in tally.mean_curves.items()
            },
        }
    return numbers


def _apart(rows: Sequence[Row], by: str, names: Sequence[str]) -> dict[str, Any]:
    """The summary of the rows of each value; empty where there are more than `PROMPTS_APART`."""
    apart: dict[str, list[Row]] = {}
    for row in rows:
        apart.setdefault(row[by], []).append(row)
    if len(apart) > PROMPTS_APART:
        return {}
    return {value: summarise(its, names) for value, its in apart.items()}


def _by_group(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each group's number of answers and mean Dice, the lowest first."""
    apart: dict[str, list[Row]] = {}
    for row in rows:
        apart.setdefault(row["group"], []).append(row)
    table = []
    for group, its in apart.items():
        values = [row["dice"] for row in its if row["dice"] is not None]
        mean = float(np.mean(values)) if values else None
        table.append({"group": group, "answers": len(its), "failed": len(its) - len(values), "dice": mean})
    return sorted(table, key=lambda each: (each["dice"] is not None, each["dice"] or 0.0, each["group"]))


def _notes(samples: Sequence[Sample], tally: Tally) -> list[str]:
    """What a reader of the numbers must know beyond the notes of the data set, a sentence each."""
    notes = []
    if all(sample.group is None for sample in samples):
        notes.append(
            "The intervals take each image for a group of its own; where several images show one patient "
            "they are too narrow."
        )
    groups = len({group_of(sample) for sample in samples})
    if 2 <= groups < FEW_GROUPS:
        notes.append(f"With {groups} groups the intervals are rough and too narrow (docs/metrics.md).")
    prompts = len({row["prompt"] for row in tally.rows})
    if prompts > PROMPTS_APART:
        notes.append(f"{prompts} different prompts: means by prompt are left out (at most {PROMPTS_APART}).")
    if not tally.knows_probabilities and tally.scored:
        notes.append("There are no probabilities, so nothing is said of calibration and of other thresholds.")
    return notes + ([tally.missing_font] if tally.missing_font else [])
