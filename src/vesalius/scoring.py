"""evaluate: predict, score, draw and report, one batch after the other.

    samples -> items -> predictions -> a row (samples.jsonl) and a figure each -> metrics.json, report.html

The model never sees the masks. A sample that cannot be read or predicted becomes a row that says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.data.dataset import DataSet
from vesalius.data.images import read_image
from vesalius.errors import DataError, ImageError, OutputError, SettingError
from vesalius.evaluation.overlap import METRICS, score
from vesalius.evaluation.statistics import summarise
from vesalius.files import prepare_folder, replacing, to_json, write_json
from vesalius.inference.folder import Segmenter, predict_samples
from vesalius.lineage import fingerprint_samples, hash_pixels, versions
from vesalius.names import result_stems, short_hash
from vesalius.report import write_report
from vesalius.types import Item, Prediction, Sample, Status
from vesalius.visualisation import missing_font, six_panels

log = logging.getLogger(__name__)

FILES = frozenset({"metrics.json", "samples.jsonl", "figures", "report.html"})
"""All that an evaluation folder holds; a folder with anything else is somebody's, and is not replaced."""
SYSTEM_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
PROMPTS_APART = 50
"""With more different prompts than this, means by prompt are left out, and a note says so."""
FEW_GROUPS = 10
IDENTICAL_MIN = 5
"""So many predictions that are their ground truth to the pixel, and most of all, are no chance."""

Row = dict[str, Any]


def evaluate(
    segmenter: Segmenter,
    data: DataSet | Sequence[Sample],
    out: str | Path,
    *,
    limit: int | None = None,
    figures: bool = True,
    allow_training_samples: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Score the segmenter on a data set, write the evaluation folder `out`, return what metrics.json holds.

    Where `coverage.failed` is above 0 the caller exits with 1. `limit` takes the first samples only;
    `on_progress` gets the number of samples done. `took_s` is the time of all; `images_per_s` counts the time
    in `predict` alone, without reading, scoring and drawing, and is None when no image was predicted. An
    evaluation folder at `out` is replaced when the new one is complete.

    Raises OutputError where `out` is anything else or cannot be written; SettingError for a limit below 1;
    DataError for samples without masks, for images that the segmenter was trained on (its `training_images`,
    hashes of their pixels) unless they are allowed, and when most predictions equal their ground truth.
    """
    out = Path(out).resolve()
    check_folder(out)
    data_set = _checked(data if isinstance(data, DataSet) else DataSet.of(data), limit)
    samples, started = data_set.samples, time.perf_counter()
    notes, n_training = _training_note(segmenter, samples, allow_training_samples)
    watched, tally = _Watched(segmenter), _Tally()
    with replacing(out) as folder:
        prepare_folder(folder / "figures" if figures else folder)
        with (folder / "samples.jsonl").open("w", encoding="utf-8") as lines:
            for done, (sample, item, predictions) in enumerate(predict_samples(watched, samples), start=1):
                rows = _rows(sample, item, predictions, folder if figures else None, tally)
                lines.writelines(to_json(row) + "\n" for row in rows)
                tally.rows += rows
                on_progress(done)
        _refuse_copies(tally)
        fingerprint, more = _fingerprint(samples)
        metrics = {
            "model": segmenter.card,
            "data": {
                "name": data_set.name,
                "format": data_set.format,
                "fingerprint": fingerprint,
                "n_samples": len(samples),
                "n_groups": len({_group(sample) for sample in samples}),
                "n_training_samples": n_training,
            },
            "threshold": segmenter.threshold,
            **summarise(tally.rows, METRICS),
            "prompts": _by_prompt(tally.rows),
            "took_s": time.perf_counter() - started,
            "images_per_s": watched.images / watched.predict_s if watched.images else None,
            "notes": [*notes, *more, *_notes(samples, tally), *data_set.notes],
            "settings": {**segmenter.settings, "limit": limit, "figures": figures, "batch": segmenter.batch},
            "versions": versions(),
        }
        write_json(folder / "metrics.json", metrics)
        write_report(folder, metrics, tally.rows)
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


@dataclass
class _Tally:
    """What is known of the evaluation so far: numbers and texts, never pixels."""

    rows: list[Row] = field(default_factory=list)
    present: int = 0
    """Scored rows whose truth is not empty."""
    identical: int = 0
    """Those of them whose prediction is the truth to the pixel."""
    missing_font: str | None = None

    def note_font(self, text: str) -> None:
        """Keep, and say once, what is missing to write such texts in figures."""
        if self.missing_font is None:
            self.missing_font = missing_font(text)
            if self.missing_font is not None:
                log.warning(self.missing_font)


class _Watched:
    """A segmenter whose answers are checked and whose time in `predict` is measured."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.card, self.batch, self.threshold = segmenter.card, segmenter.batch, segmenter.threshold
        self.settings, self.training_images = segmenter.settings, segmenter.training_images
        self.images, self.predict_s = 0, 0.0
        self._segmenter = segmenter

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


def _training_note(
    segmenter: Segmenter, samples: Sequence[Sample], allowed: bool
) -> tuple[list[str], int | None]:
    """What to note on samples the segmenter was trained on, and how many; None where it does not say.

    Looked for before anything is predicted, so that a refusal comes at once. An image that cannot be read is
    passed over here; it fails by itself.
    """
    trained: Collection[str] | None = segmenter.training_images
    if trained is None:
        return [
            "The model does not say which images it was trained on; none could be looked for among these."
        ], None
    seen = [sample.id for sample in samples if trained and _hash_image(sample) in trained]
    if not seen:
        return [], 0
    found = f"{len(seen)} of {len(samples)} images are among those the model was trained on"
    if not allowed:
        raise DataError(f"{found} (first: {seen[0]}); evaluate on others, or add --allow-training-samples")
    return [f"{found}: the numbers do not tell how it does on images that it has not seen."], len(seen)


def _hash_image(sample: Sample) -> str | None:
    try:
        return hash_pixels(read_image(sample.image))
    except ImageError:
        return None


def _fingerprint(samples: Sequence[Sample]) -> tuple[str | None, list[str]]:
    try:
        return fingerprint_samples(samples), []
    except ImageError as error:  # that sample has failed and is counted; it must not cost the others' results
        return None, [f"The data have no fingerprint: {error}"]


def _group(sample: Sample) -> str:
    return sample.group or sample.id


def _rows(
    sample: Sample, item: Item | None, predictions: Sequence[Prediction], folder: Path | None, tally: _Tally
) -> list[Row]:
    """One row a prompt; figures go into `folder` where there is one."""
    rows = []
    for index, prediction in enumerate(predictions):
        if prediction.status == "failed" or item is None or item.masks is None:
            rows.append(_failed_row(sample, prediction, prediction.error or "no answer, and no reason given"))
            continue
        image, truth = item.frames[0], item.masks[index, 0]
        try:
            guess = prediction.mask
            scores = score(truth, guess)
        except (ValueError, MemoryError) as error:  # a mask of another size, or one too large
            rows.append(_failed_row(sample, prediction, f"cannot be scored: {error}"))
            continue
        if truth.any():
            tally.present += 1
            tally.identical += np.array_equal(truth, guess)
        figure = None
        if folder is not None:
            figure = _draw(folder, sample, prediction, image, truth, guess, scores)
            tally.note_font(sample.id + prediction.prompt)
        rows.append(_row(sample, prediction, prediction.status, scores, figure))
    return rows


def _draw(
    folder: Path,
    sample: Sample,
    prediction: Prediction,
    image: np.ndarray,
    truth: np.ndarray,
    guess: np.ndarray,
    scores: Mapping[str, float | None],
) -> str:
    """Save the six panels; their path in the evaluation folder."""
    stem = result_stems(sample.id, sample.prompts)[sample.prompts.index(prediction.prompt)]
    path = folder / "figures" / f"{stem}.png"
    if path.exists():  # `a--b` may be an id, or the prompt b of the id a
        path = path.with_name(f"{stem}-{short_hash(prediction.prompt)}.png")
    title = sample.id + (" · no [SEG]" if prediction.status == "no_seg" else "")
    picture = six_panels(image, truth, guess, title=title, prompt=prediction.prompt, scores=scores)
    picture.save(path, compress_level=1)  # a third of the time of the default, for a third more bytes
    return f"figures/{path.name}"


def _failed_row(sample: Sample, prediction: Prediction, error: str) -> Row:
    log.warning("%s, %s: failed: %s", sample.id, prediction.prompt, error)
    return _row(sample, prediction, "failed", dict.fromkeys(METRICS), None, error)


def _row(
    sample: Sample,
    prediction: Prediction,
    status: Status,
    scores: Mapping[str, float | None],
    figure: str | None,
    error: str | None = None,
) -> Row:
    return {
        "id": sample.id,
        "group": _group(sample),
        "prompt": prediction.prompt,
        "status": status,
        "figure": figure,
        **scores,
        "text": prediction.text,
        "error": error,
    }


def _refuse_copies(tally: _Tally) -> None:
    """Raise DataError when most predictions are the ground truth to the pixel: no model does that."""
    if tally.identical >= IDENTICAL_MIN and 2 * tally.identical > tally.present:
        raise DataError(
            f"{tally.identical} of {tally.present} predictions equal the ground truth exactly; none should: "
            "the ground truth was copied, or was made by this model; nothing was written"
        )


def _by_prompt(rows: Sequence[Row]) -> dict[str, Any]:
    """The summary of each prompt's rows; empty where there are more than `PROMPTS_APART`."""
    apart: dict[str, list[Row]] = {}
    for row in rows:
        apart.setdefault(row["prompt"], []).append(row)
    if len(apart) > PROMPTS_APART:
        return {}
    return {prompt: summarise(its, METRICS) for prompt, its in apart.items()}


def _notes(samples: Sequence[Sample], tally: _Tally) -> list[str]:
    """What a reader of the numbers must know beyond the notes of the data set, a sentence each."""
    notes = []
    if all(sample.group is None for sample in samples):
        notes.append(
            "The intervals take each image for a group of its own; where several images show one patient "
            "they are too narrow."
        )
    groups = len({_group(sample) for sample in samples})
    if 2 <= groups < FEW_GROUPS:
        notes.append(f"With {groups} groups the intervals are rough and too narrow (docs/metrics.md).")
    prompts = len({row["prompt"] for row in tally.rows})
    if prompts > PROMPTS_APART:
        notes.append(f"{prompts} different prompts: means by prompt are left out (at most {PROMPTS_APART}).")
    return notes + ([tally.missing_font] if tally.missing_font else [])
