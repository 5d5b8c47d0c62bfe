"""Predict, score, draw and report a dataset, one batch at a time.

    samples -> items -> predictions -> a row (samples.jsonl) and a figure each -> metrics.json, reports

The model never sees the masks. A sample that cannot be read or predicted gets a failed row. Scoring and drawing run
in worker processes.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from vesalius.calls import check_callable, check_kind, checked, describe
from vesalius.colors import Color, phrase_colors
from vesalius.data.dataset import Dataset, open_dataset
from vesalius.data.grouping import group_of
from vesalius.data.images import with_window
from vesalius.errors import DataError, ImageError, SettingError
from vesalius.files import check_replaceable, prepare_folder, write_json
from vesalius.jobs.folder import predict_samples
from vesalius.jobs.opening import load_predictor
from vesalius.language import note
from vesalius.lineage import fingerprint_samples, versions
from vesalius.names import result_stems, short_hash
from vesalius.parallel import map_in_processes
from vesalius.scoring.leaks import Leaks, find_leaks
from vesalius.scoring.report import write_report
from vesalius.scoring.results import METRICS_FILE, ROWS, ResultKey
from vesalius.scoring.results_log import HISTOGRAMS, STATE, ResultsLog
from vesalius.scoring.roi import RoiMasks
from vesalius.scoring.scored_prediction import ScoringInput, score_prediction
from vesalius.scoring.summary import notes, numbers
from vesalius.segmenter import ModelDescription, Segmenter, Usage
from vesalius.types import Item, Prediction, Sample
from vesalius.window import ShownRanges, describe_ranges

log = logging.getLogger(__name__)

FILES = frozenset(
    {METRICS_FILE, ROWS, "samples.csv", "groups.csv", "figures", "report.html", "report.md"}
    | {STATE, HISTOGRAMS}  # left behind if an evaluation was killed while it finished
)
"""Files of an evaluation folder; a folder with any other file is not replaced."""


@checked
def evaluate(
    model: Segmenter | str | Path,
    data: Dataset | Sequence[Sample] | str | Path,
    out: str | Path,
    *,
    limit: int | None = None,
    figures: bool = True,
    roi: str | Path | None = None,
    num_workers: int | None = None,
    allow_training_samples: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Score a model on a dataset, write the evaluation folder `out`, and return the content of metrics.json.

    `model` is a predictor, or the name or path of a model; `data` a list of samples, or the path of a dataset. If
    `coverage.failed` is above 0 the caller exits with 1. `limit` takes the first samples only; `roi` is a folder of
    region-of-interest masks named by id, and pixels outside the region are not scored; `num_workers` is the number of
    processes that score and draw (default: one per core; 0: this process does); `on_progress` gets the number of
    samples done. `took_s` is the total time; `images_per_s` counts time in `predict` alone, None if no image was
    predicted. An evaluation at `out` is replaced when the new one is complete; an interrupted evaluation continues.

    OutputError if `out` exists and is not an evaluation, or cannot be written; SettingError for a limit below 1,
    num_workers below 0 and prompts that the segmenter refuses; DataError for samples without masks, for images that the
    model was trained on unless allowed, for images that its threshold was tuned on, and if most predictions equal their
    ground truth.

    >>> from vesalius.synth import write_dataset
    >>> _ = write_dataset("angiograms", 2, size=64, num_workers=0)
    >>> metrics = evaluate("frangi", "angiograms", "evaluation", figures=False, num_workers=0)
    >>> metrics["coverage"]
    {'ok': 4, 'failed': 0, 'no_seg': 0}
    """
    out, started = _result_folder(out), time.perf_counter()
    processes = _processes(num_workers)
    check_callable(on_progress, "on_progress", "a function of the number of samples done")
    segmenter = _open_model(model)
    dataset = _checked(segmenter, _open_data(data), limit)
    samples = dataset.samples
    check_kind(roi, str | Path | None, "roi", "the path of a folder")
    rois = None if roi is None else RoiMasks(Path(roi), samples)
    described = segmenter.description
    leaks = find_leaks(described, samples, allow_training_samples)
    settings = {**described.settings, "limit": limit, "figures": figures, **_describe_roi(rois)}
    measured = MeasuredSegmenter(segmenter)
    ends = list(accumulate(len(sample.prompts) for sample in samples))
    with ResultsLog(out, _state(described, samples, settings), ends) as results:
        _score_all(results, measured, samples, rois, figures, processes, on_progress)
        used = settings | {"batch_size": measured.description.batch_size, "num_workers": processes}
        metrics = _metrics(results, measured, dataset, leaks, used, started)
        write_json(results.folder / METRICS_FILE, metrics)
        write_report(results.folder, metrics, results.rows)
        results.finish()
    return metrics


class MeasuredSegmenter(Segmenter):
    """A segmenter that checks the order of its predictions and measures the time in `predict`."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.images, self.predict_s = 0, 0.0
        self._segmenter = segmenter

    @property
    def description(self) -> ModelDescription:
        return self._segmenter.description

    @property
    def usage(self) -> Usage:
        return self._segmenter.usage

    def prepare(self, item: Item) -> Item:
        return self._segmenter.prepare(item)

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        started = time.perf_counter()
        try:
            predictions = self._segmenter.predict(items)
        except Exception as error:  # out of memory, or a bug in any kind of model: counted as a failure
            log.debug("predict failed", exc_info=True)
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        self.predict_s += time.perf_counter() - started
        self.images += len(items)
        expected = [(item.id, prompt) for item in items for prompt in item.prompts]
        found = [(prediction.id, prediction.prompt) for prediction in predictions]
        if found != expected:  # each prediction must be scored on its own image
            raise ValueError(f"predict must return predictions for {expected} in this order; got {found}")
        return predictions


def _score_all(
    results: ResultsLog,
    segmenter: MeasuredSegmenter,
    samples: Sequence[Sample],
    rois: RoiMasks | None,
    figures: bool,
    processes: int,
    on_progress: Callable[[int], None],
) -> None:
    """Score the remaining samples; DataError, and no results, if the predictions are copies of the ground truth."""
    done = results.samples_done
    if done:
        log.warning("%s: continues an interrupted evaluation after %d samples", results.out, done)
    paths = _figure_paths(samples) if figures else {}
    colors = phrase_colors(prompt for sample in samples for prompt in sample.prompts)
    if figures:
        prepare_folder(results.folder / "figures")
    inputs = _inputs(segmenter, samples[done:], results.folder, paths, colors, rois)
    with closing(map_in_processes(score_prediction, inputs, processes)) as scored:
        for each in scored:
            results.add(each)
            row = each.row
            if row["error"]:
                log.warning("%s, %s: failed: %s", row["id"], row["prompt"], row["error"])
            on_progress(results.samples_done)
    try:
        results.refuse_copies()
    except DataError:
        results.discard()
        raise


def _inputs(
    segmenter: MeasuredSegmenter,
    samples: Sequence[Sample],
    folder: Path,
    figures: dict[ResultKey, str],
    colors: Mapping[str, Color],
    rois: RoiMasks | None,
) -> Iterator[ScoringInput]:
    for sample, item, predictions in predict_samples(segmenter, samples):
        roi, error = None, ""
        if item is not None and rois is not None:
            try:
                roi = rois.read(sample, item.size)
            except DataError as reason:
                error = str(reason)
        for index, answer in enumerate(predictions):
            prediction = _failed(answer, error) if error else answer
            identity: dict[str, Any] = {"id": sample.id, "group": group_of(sample), "prompt": prediction.prompt}
            if item is not None and item.window is not None:
                identity["window"] = list(item.window)
            if item is None or item.masks is None or prediction.status == "failed":
                yield ScoringInput(identity, prediction)
                continue
            figure = figures.get((sample.id, prediction.prompt), "")
            yield ScoringInput(
                identity,
                prediction,
                image=item.frames[0],
                target=item.masks[index, 0],
                roi=roi,
                spacing_mm=sample.spacing_mm,
                folder=folder if figure else None,
                figure=figure,
                compared=len(predictions) > 1,
                color=colors[prediction.prompt],
            )


def _failed(prediction: Prediction, error: str) -> Prediction:
    """The prediction as failed, with its own error if it has one, else with `error`."""
    failed = Prediction.failure(prediction.id, prediction.prompt, prediction.size, prediction.error or error)
    return replace(failed, phrase=prediction.phrase, unknown_phrase=prediction.unknown_phrase)


def _figure_paths(samples: Sequence[Sample]) -> dict[ResultKey, str]:
    """Unique figure path of each row: `a--b` may be an id, or prompt b of id a."""
    paths: dict[ResultKey, str] = {}
    taken: set[str] = set()
    for sample in samples:
        for prompt, stem in zip(sample.prompts, result_stems(sample.id, sample.prompts), strict=True):
            name = f"{stem}-{short_hash(prompt)}" if stem in taken else stem
            taken.add(name)
            paths[sample.id, prompt] = f"figures/{name}.png"
    return paths


def _processes(num_workers: int | None) -> int:
    check_kind(num_workers, int | None, "num_workers", "a number of processes")
    if num_workers is not None and num_workers < 0:
        raise SettingError(f"num_workers must be 0 or more; got {num_workers}", code="bad_value", field="num_workers")
    return os.cpu_count() or 1 if num_workers is None else num_workers


def _result_folder(out: str | Path) -> Path:
    check_kind(out, str | Path, "out", "a path")
    folder = Path(out).resolve()
    check_replaceable(folder, "evaluation", FILES, METRICS_FILE)
    return folder


def _open_model(model: Segmenter | str | Path) -> Segmenter:
    if isinstance(model, str | Path):
        return load_predictor(model)
    if not isinstance(model, Segmenter):
        raise SettingError(
            f"model is a predictor, or the name or path of a model; got {describe(model)}",
            code="bad_value",
            field="model",
        )
    return model


def _open_data(data: Dataset | Sequence[Sample] | str | Path) -> Dataset:
    if isinstance(data, str | Path):
        return open_dataset(data)
    if isinstance(data, Dataset):
        return data
    samples: list[Any] = list(data) if isinstance(data, Sequence) else []
    if not isinstance(data, Sequence) or not all(isinstance(each, Sample) for each in samples):
        raise SettingError(
            f"data is a list of samples, or the path of a dataset; got {describe(data)}", code="bad_value", field="data"
        )
    return Dataset.of(samples)


def _checked(segmenter: Segmenter, dataset: Dataset, limit: int | None) -> Dataset:
    """The first `limit` samples, under the window of the model unless they have their own.

    DataError or SettingError if they cannot be scored or the segmenter refuses them.
    """
    check_kind(limit, int | None, "limit", "a number of samples")
    if limit is not None and limit < 1:
        raise SettingError(f"limit must be 1 or more; got {limit}", code="bad_value", field="limit")
    dataset = dataset if limit is None else dataset.first(limit)
    samples = dataset.samples
    if not samples:
        raise DataError(f"{dataset.name}: has no samples to evaluate", code="no_samples")
    dataset.annotated()
    name, times = Counter(sample.id for sample in samples).most_common(1)[0]
    if times > 1:
        raise DataError(
            f"{dataset.name}: {times} samples have the id {name}; give each its own id", code="duplicate_id", field=name
        )
    for sample in samples:
        try:
            result_stems(sample.id, sample.prompts)
        except ValueError as error:
            raise DataError(
                f"{sample.source or sample.id}: {error}", code="duplicate_prompt", field=sample.id
            ) from error
    segmenter.note_prompts(dict.fromkeys(prompt for sample in samples for prompt in sample.prompts))
    return replace(dataset, samples=tuple(with_window(samples, segmenter.description.window)))


def _state(model: ModelDescription, samples: Sequence[Sample], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that determines the rows; an interrupted evaluation continues only if its state is equal."""
    return {
        "model": model.card,
        "threshold": model.threshold,
        "settings": settings,
        "samples": [
            [sample.id, _fingerprint([sample])[0], sample.group, sample.spacing_mm, sample.size] for sample in samples
        ],
        "versions": versions(),
    }


def _fingerprint(samples: Sequence[Sample]) -> tuple[str | None, list[str]]:
    try:
        return fingerprint_samples(samples), []
    except ImageError as error:  # the unreadable sample fails later, and the others are scored
        return None, [note("The data have no fingerprint: {error}", error=error)]


def _notes_on_windows(model: ModelDescription, shown: ShownRanges) -> list[str]:
    described = [describe_ranges(shown.as_json(), model.window)] if shown.n else []
    return [*described, *([model.window_note] if model.window_note else [])]


def _notes_on_usage(usage: Usage) -> list[str]:
    notes = []
    if usage.batch_halved:
        notes.append(note("Memory ran out, and the batch size was halved {n} times.", n=usage.batch_halved))
    if cache := usage.cache:
        notes.append(
            note(
                "Embeddings of {read} images were read from the cache; {encoded} were encoded.",
                read=cache["read"],
                encoded=cache["encoded"],
            )
        )
        if cache["damaged"]:
            notes.append(note("Damaged entries of the cache that were encoded again: {n}.", n=cache["damaged"]))
    return notes


def _metrics(
    results: ResultsLog,
    measured: MeasuredSegmenter,
    dataset: Dataset,
    leaks: Leaks,
    settings: dict[str, Any],
    started: float,
) -> dict[str, Any]:
    """The content of metrics.json."""
    samples, described = dataset.samples, measured.description
    fingerprint, missing = _fingerprint(samples)
    return {
        **_describe(described, dataset, fingerprint, leaks),
        **numbers(results, samples),
        "took_s": time.perf_counter() - started,
        "images_per_s": measured.images / measured.predict_s if measured.images else None,
        "notes": [
            *_notes_on_windows(described, results.shown_ranges),
            *leaks.notes,
            *missing,
            *_notes_on_usage(measured.usage),
            *notes(results, samples),
            *dataset.notes,
        ],
        "settings": settings,
        "versions": versions(),
    }


def _describe_roi(rois: RoiMasks | None) -> dict[str, str | None]:
    if rois is None:
        return {"roi": None}
    return {"roi": str(rois.folder), "roi_fingerprint": rois.fingerprint}


def _describe(model: ModelDescription, dataset: Dataset, fingerprint: str | None, leaks: Leaks) -> dict[str, Any]:
    return {
        "model": model.card,
        "threshold": model.threshold,
        "threshold_origin": dict(model.threshold_origin),
        "data": {
            "name": dataset.name,
            "format": dataset.format,
            "fingerprint": fingerprint,
            "n_samples": len(dataset.samples),
            "n_groups": len({group_of(sample) for sample in dataset.samples}),
            "n_training_samples": leaks.n_training,
            "near_training_samples": list(leaks.near),
        },
    }
