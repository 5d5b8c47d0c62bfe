"""evaluate: predict, score, draw and report, one batch after the other.

    samples -> items -> predictions -> one row each (samples.jsonl) and one figure each -> metrics.json,
    report.html

The model gets the items without their masks. A sample that cannot be read or predicted becomes a row that
says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vesalius.data.dataset import DataSet, load_item
from vesalius.errors import DataError, OutputError, SettingError
from vesalius.evaluation.overlap import METRICS, score
from vesalius.evaluation.statistics import summarise
from vesalius.files import prepare_folder, replacing, to_json, write_json
from vesalius.lineage import fingerprint_samples, versions
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
Progress = Callable[[int, int], None]
"""Called with the images done and all images."""


class Segmenter(Protocol):
    """What evaluate needs of a model, whatever its kind."""

    @property
    def card(self) -> dict[str, Any]:
        """`name`, `kind`, `fingerprint` and `step` (None where nobody trained it), for strict JSON."""

    @property
    def threshold(self) -> float:
        """Probability above which a pixel belongs to a mask."""

    @property
    def batch(self) -> int:
        """Images in one call of `predict`."""

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        """One prediction for each item and each of its prompts, in order."""


def evaluate(
    segmenter: Segmenter,
    data_set: DataSet,
    out: Path,
    *,
    limit: int | None = None,
    figures: bool = True,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the segmenter on a data set, write the evaluation folder `out`, and return what metrics.json holds.

    Where `coverage.failed` is above 0 the caller exits with 1. `limit` takes the first samples only. `took_s`
    is the time of all; `images_per_s` counts the time in `predict` alone, without reading, scoring and
    drawing, and is None when no image was predicted. An evaluation folder at `out` is replaced when the new
    one is complete. Raises OutputError where `out` is anything else or cannot be written, SettingError for a
    limit below 1, DataError for samples without masks, or when most predictions equal their ground truth to
    the pixel.
    """
    out = out.resolve()
    check_folder(out)
    samples = _chosen(data_set, limit)
    started = time.perf_counter()
    tally = _Tally()
    with replacing(out) as folder:
        prepare_folder(folder / "figures" if figures else folder)
        with (folder / "samples.jsonl").open("w", encoding="utf-8") as lines:
            for done, sample_rows in enumerate(
                _score(segmenter, samples, folder if figures else None, tally), 1
            ):
                tally.rows += sample_rows
                lines.writelines(to_json(row) + "\n" for row in sample_rows)
                if on_progress is not None:
                    on_progress(done, len(samples))
        _refuse_copies(tally)
        metrics = {
            "model": segmenter.card,
            "data": {
                "name": data_set.name,
                "format": data_set.format,
                "fingerprint": fingerprint_samples(samples),
                "n_samples": len(samples),
                "n_groups": len({_group(sample) for sample in samples}),
            },
            "threshold": segmenter.threshold,
            **summarise(tally.rows, METRICS),
            "prompts": _by_prompt(tally.rows),
            "took_s": time.perf_counter() - started,
            "images_per_s": tally.predicted / tally.predict_s if tally.predicted else None,
            "notes": [*_notes(samples, data_set, tally), *data_set.notes],
            "settings": {"limit": limit, "figures": figures, "batch": segmenter.batch},
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
            f"{out}: has no metrics.json, so it is not an evaluation to replace; name another folder"
        )


@dataclass
class _Tally:
    """What is known of the evaluation so far; numbers and texts only, never pixels."""

    rows: list[Row] = field(default_factory=list)
    predicted: int = 0
    """Images that the model answered."""
    predict_s: float = 0.0
    present: int = 0
    """Scored rows whose truth is not empty."""
    identical: int = 0
    """Those of them whose prediction is the truth to the pixel."""
    missing_font: str | None = None


def _chosen(data_set: DataSet, limit: int | None) -> tuple[Sample, ...]:
    if limit is not None and limit < 1:
        raise SettingError(f"limit must be 1 or more; got {limit}")
    samples = data_set.samples[:limit]
    if not samples:
        raise DataError(f"{data_set.name}: has no samples to evaluate")
    bare = [sample.id for sample in samples if sample.masks is None]
    if bare:
        raise DataError(
            f"{data_set.name}: {len(bare)} of {len(samples)} samples have no masks, the first is {bare[0]}"
        )
    return samples


def _group(sample: Sample) -> str:
    return sample.group or sample.id


def _score(
    segmenter: Segmenter, samples: Sequence[Sample], folder: Path | None, tally: _Tally
) -> Iterator[list[Row]]:
    """The rows of each sample in turn; figures go into `folder` where there is one."""
    for start in range(0, len(samples), segmenter.batch):
        chunk = samples[start : start + segmenter.batch]
        loaded = [_load(sample) for sample in chunk]
        questions = [replace(item, masks=None) for item in loaded if isinstance(item, Item)]
        answers = iter(_predict(segmenter, questions, tally))
        for sample, item in zip(chunk, loaded, strict=True):
            if isinstance(item, str):
                yield [_failed_row(sample, prompt, item) for prompt in sample.prompts]
                continue
            answer = next(answers)
            if isinstance(answer, str):
                yield [_failed_row(sample, prompt, answer) for prompt in sample.prompts]
                continue
            yield [
                _row(sample, item, index, prediction, folder, tally)
                for index, prediction in enumerate(answer)
            ]


def _load(sample: Sample) -> Item | str:
    """The item with its masks, or why there is none."""
    try:
        item = load_item(sample)
        if item.masks is None or len(item.frames) != 1:
            raise DataError(
                f"one image with masks is needed; got {len(item.frames)} frames, masks {item.masks is not None}"
            )
        result_stems(sample.id, sample.prompts)  # now, and not after the time that a prediction takes
    except (
        Exception
    ) as error:  # whatever is wrong with one sample is its own failure, counted; the others go on
        return _reason("cannot be read", sample.id, error)
    return item


def _predict(segmenter: Segmenter, items: Sequence[Item], tally: _Tally) -> list[list[Prediction] | str]:
    """For each item its predictions, one a prompt, or why there are none.

    When a batch fails its items are tried one by one, so that one image too many or too large costs itself
    only.
    """
    if not items:
        return []
    started = time.perf_counter()
    try:
        predictions = segmenter.predict(items)
        _check_order(items, predictions)
    except Exception as error:  # out of memory, a bug in a model: counted as failed, never scored
        if len(items) > 1:
            return [answer for item in items for answer in _predict(segmenter, [item], tally)]
        return [_reason("cannot be predicted", items[0].id, error)]
    tally.predict_s += time.perf_counter() - started
    tally.predicted += len(items)
    rest = iter(predictions)
    return [[next(rest) for _ in item.prompts] for item in items]


def _check_order(items: Sequence[Item], predictions: Sequence[Prediction]) -> None:
    """Scores of one image must never be those of another."""
    expected = [(item.id, prompt) for item in items for prompt in item.prompts]
    came = [(prediction.id, prediction.prompt) for prediction in predictions]
    if came != expected:
        raise ValueError(f"predict must answer {expected} in this order; it answered {came}")


def _row(
    sample: Sample, item: Item, index: int, prediction: Prediction, folder: Path | None, tally: _Tally
) -> Row:
    """The row of one answer, its figure drawn."""
    prompt = sample.prompts[index]
    if prediction.status == "failed":
        return _failed_row(sample, prompt, prediction.error or "the model gave no answer and no reason")
    assert item.masks is not None
    image, truth = item.frames[0], item.masks[index, 0]
    try:
        guess = prediction.mask
        scores = score(truth, guess)
    except Exception as error:  # a mask of the wrong size, or too large for the memory
        return _failed_row(sample, prompt, _reason("cannot be scored", sample.id, error))
    if truth.any():
        tally.present += 1
        tally.identical += np.array_equal(truth, guess)
    figure = None
    if folder is not None:
        title = sample.id + (" · no [SEG]" if prediction.status == "no_seg" else "")
        tally.missing_font = tally.missing_font or missing_font(title + prompt)
        path = _free(folder / "figures" / f"{result_stems(sample.id, sample.prompts)[index]}.png", prompt)
        picture = six_panels(image, truth, guess, title=title, prompt=prompt, scores=scores)
        picture.save(path, compress_level=1)  # a third of the time of the default, for a third more bytes
        figure = f"figures/{path.name}"
    return _make_row(sample, prompt, prediction.status, scores, figure=figure, text=prediction.text)


def _free(path: Path, prompt: str) -> Path:
    """The path, or one with a hash where another sample has that name: `a--b` may be an id, or a prompt of `a`."""
    return path.with_name(f"{path.stem}-{short_hash(prompt)}{path.suffix}") if path.exists() else path


def _failed_row(sample: Sample, prompt: str, error: str) -> Row:
    log.warning("%s, %s: failed: %s", sample.id, prompt, error)
    return _make_row(sample, prompt, "failed", dict.fromkeys(METRICS), error=error)


def _make_row(
    sample: Sample,
    prompt: str,
    status: Status,
    scores: Mapping[str, float | None],
    *,
    figure: str | None = None,
    text: str = "",
    error: str | None = None,
) -> Row:
    row = {"id": sample.id, "group": _group(sample), "prompt": prompt, "status": status, "figure": figure}
    return {**row, **scores, "text": text, "error": error}


def _reason(what: str, name: str, error: Exception) -> str:
    log.debug("%s %s", name, what, exc_info=error)
    return f"{what} ({type(error).__name__}: {error})"


def _refuse_copies(tally: _Tally) -> None:
    """Raise DataError when most predictions are the ground truth to the pixel: no model does that."""
    if tally.identical >= IDENTICAL_MIN and 2 * tally.identical > tally.present:
        raise DataError(
            f"{tally.identical} of {tally.present} predictions equal the ground truth to the pixel, as no model's do: "
            "the ground truth was copied, or was made by this model; nothing was written"
        )


def _by_prompt(rows: Sequence[Row]) -> dict[str, Any]:
    """The summary of each prompt's rows; empty where there are more than `PROMPTS_APART`."""
    apart: dict[str, list[Row]] = {}
    for row in rows:
        apart.setdefault(row["prompt"], []).append(row)
    return (
        {prompt: summarise(its, METRICS) for prompt, its in apart.items()}
        if len(apart) <= PROMPTS_APART
        else {}
    )


def _notes(samples: Sequence[Sample], data_set: DataSet, tally: _Tally) -> list[str]:
    """What a reader of the numbers must know, a sentence each."""
    notes = []
    if len(samples) < len(data_set.samples):
        notes.append(f"Only the first {len(samples)} of {len(data_set.samples)} samples were evaluated.")
    alone = sum(sample.group is None for sample in samples)
    if alone == len(samples):
        notes.append(
            "No patient or sequence is named, so each image is its own group: if several images show one patient, "
            "the intervals are too narrow."
        )
    elif alone:
        notes.append(f"{alone} of {len(samples)} samples name no patient or sequence; each is its own group.")
    groups = len({_group(sample) for sample in samples})
    if 2 <= groups < FEW_GROUPS:
        notes.append(f"With {groups} groups the intervals are rough and too narrow (docs/metrics.md).")
    prompts = len({row["prompt"] for row in tally.rows})
    if prompts > PROMPTS_APART:
        notes.append(f"{prompts} different prompts: means by prompt are left out (at most {PROMPTS_APART}).")
    return notes + ([tally.missing_font] if tally.missing_font else [])
