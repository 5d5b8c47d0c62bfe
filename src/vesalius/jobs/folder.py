"""A prediction folder: one line of JSON a question, masks and whatever else was asked for, as files.

samples -> items, in threads -> predictions -> files and a line each, in threads -> predictions.jsonl
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from vesalius.data.dataset import load_item
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.errors import DataError, SettingError
from vesalius.files import replacing, to_json
from vesalius.jobs.dicom_segmentations import SegmentationFolder
from vesalius.jobs.pipeline import map_in_threads
from vesalius.jobs.prediction_log import Line, PredictionLog
from vesalius.lineage import versions
from vesalius.masks import encode_rle
from vesalius.names import result_stems
from vesalius.types import Item, Prediction, Sample
from vesalius.visualization import GUESS_COLOR, overlay

SAVES = ("masks", "probs", "overlay", "rle", "dicom", "films")
"""masks: PNG 0/255; probs: float32 .npz; overlay: PNG on the image; rle: COCO RLE in `predictions.jsonl`; dicom: a
segmentation object for each DICOM file; films: for each clip an overlay as MP4 and the masks as MKV."""

MOST_CHARACTERS = 2000
"""Of a prompt, which is a phrase or a question."""
REASONS = (RuntimeError, ValueError, MemoryError, SettingError)
"""What makes an item, or its batch, fail; anything else is a fault of the job."""


Answered = tuple[Sample, Item | None, list[Prediction]]
"""A sample, its item or None if unreadable, one prediction a prompt."""


class Described(Protocol):
    """What reports say of a model, whatever its kind."""

    @property
    def batch(self) -> int:
        """Images in one call of `predict`."""

    @property
    def threshold(self) -> float | None:
        """Probability above which a pixel belongs to a mask; None where masks are given and nobody says."""

    @property
    def card(self) -> dict[str, Any]:
        """`name`, `kind`, `fingerprint`, `step` (None where nobody trained it): what reports say of the model."""

    @property
    def settings(self) -> dict[str, Any]:
        """What else decides the numbers, for reports: how it is asked, and how it answers."""

    @property
    def threshold_origin(self) -> dict[str, Any]:
        """Where the threshold comes from, for reports."""

    @property
    def training_images(self) -> Collection[str] | None:
        """SHA-256 of the pixels of each image it was trained on; None where that is not known."""

    @property
    def trained_on_unknown(self) -> bool:
        """Whether it was, or may have been, trained on other images that nobody knows."""

    @property
    def training_perceptual_hashes(self) -> Collection[str]:
        """Perceptual hash of each of them (`lineage.perceptual_hash`), as far as they are known."""

    @property
    def tuning_images(self) -> Collection[str]:
        """SHA-256 of the pixels of each image that its threshold was found on."""


class Segmenter(Described, Protocol):
    """What prediction and evaluation need of a model, whatever its kind.

    One that has a method `prepare(item) -> item`, as `Predictor`, is given items that went through it in another
    thread. One that has a method `check_prompts(prompts)` is asked once, before anything is predicted, and raises one
    SettingError that names all those that it cannot answer.
    """

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        """One prediction for each (item, prompt), in order."""


def check_prompts(segmenter: Described, prompts: Iterable[str]) -> None:
    """Raise SettingError for prompts that the segmenter knows it cannot answer."""
    check = getattr(segmenter, "check_prompts", None)
    if check is not None:
        check(tuple(dict.fromkeys(prompts)))


def predict_samples(
    segmenter: Segmenter, samples: Iterable[Sample]
) -> Generator[tuple[Sample, Item | None, list[Prediction]], None, None]:
    """Read and predict, a batch at a time: (sample, its item or None if unreadable, one prediction a prompt).

    What cannot be read or predicted comes out as `failed` with the reason, never as an empty mask. The segmenter
    does not see the masks of the items. Images are read, in other threads, while the ones before are predicted.
    """
    size = segmenter.batch
    prepare = getattr(segmenter, "prepare", None)
    with (
        FrameReader() as reader,
        closing(map_in_threads(partial(_read, prepare, reader), samples, 2 * size, _bytes_of_item)) as loaded,
    ):
        while some := list(islice(loaded, size)):
            items = [item for _, _, item in some if isinstance(item, Item)]
            predicted = iter(_predict_or_fail(segmenter, items))
            for sample, seen, item in some:
                if isinstance(item, Item):
                    yield sample, seen, [next(predicted) for _ in item.prompts]
                else:
                    size_of = sample.size or (0, 0)
                    yield (
                        sample,
                        None,
                        [failure(sample.id, prompt, size_of, item) for prompt in sample.prompts],
                    )


Loaded = tuple[Sample, Item | None, Item | DataError]
"""A sample, its item with masks, and what the segmenter is to see, or why there is nothing."""


def _read(prepare: Callable[[Item], Item] | None, reader: FrameReader, sample: Sample) -> Loaded:
    try:
        item = load_item(sample, reader)
    except DataError as error:
        return sample, None, error
    unseen = Item(item.id, item.frames, item.prompts)
    if prepare is not None:
        with suppress(*REASONS):  # `predict` meets it again, and says so
            unseen = prepare(unseen)
    return sample, item, unseen


def _bytes_of_item(each: Sample | Loaded) -> int:
    """Bytes of an image that was read, roughly: prepared for the model it takes a few times as many."""
    return 0 if isinstance(each, Sample) or each[1] is None else each[1].frames.nbytes


def _predict_or_fail(segmenter: Segmenter, items: Sequence[Item]) -> list[Prediction]:
    """Predictions of a batch; where it fails, of each half of it, so that one item cannot take others with it."""
    try:
        return segmenter.predict(items) if items else []
    except REASONS as error:
        if len(items) == 1:
            item = items[0]
            return [failure(item.id, prompt, item.size, error) for prompt in item.prompts]
    middle = len(items) // 2
    return _predict_or_fail(segmenter, items[:middle]) + _predict_or_fail(segmenter, items[middle:])


def failure(name: str, prompt: str, size: tuple[int, int], error: Exception) -> Prediction:
    """The prediction of what could not be read or predicted."""
    nothing = np.zeros((0, 1, 1), dtype=np.float32)
    reason = " ".join(str(error).split()) or type(error).__name__
    return Prediction(name, prompt, "failed", size, nothing, says_seg=False, error=reason)


Answering = Callable[[Iterable[Sample], Path, Sequence[str]], Generator[list[Line], None, None]]
"""Samples, the folder and what to save -> the lines of each sample, in order, whose files are written."""


def write_predictions(
    segmenter: Described,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    out: Path,
    *,
    save: Sequence[str] = ("masks", "rle"),
    answer: Answering | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Predict every prompt on every image into a new folder, and return its summary.

    `predictions.jsonl` appears when all is done: a folder without it is unfinished, and the same request continues it
    where it stopped. `answer` does the work (`processes.py`); without it `segmenter` does, by `answer_samples`. Refuses a folder that is not empty and the unfinished job of
    another request (OutputError), what `check_request` and the segmenter's `check_prompts` refuse, and, to save DICOM, any other image and what else
    `SegmentationFolder` refuses.
    """
    check_request(prompts, save)
    check_prompts(segmenter, prompts)
    by_file = "dicom" in save
    objects = SegmentationFolder(out, samples, prompts, segmenter.card) if by_file else None
    answer = answer or partial(answer_samples, cast(Segmenter, segmenter))
    request = _request(segmenter, samples, prompts, save)
    with PredictionLog(out, request, samples, prompts, whole_files=by_file) as ledger:
        if objects is not None and ledger.done:
            objects = SegmentationFolder(out, samples[ledger.done :], prompts, segmenter.card)
        asked = (
            replace(sample, prompts=tuple(prompts), masks=None)
            for sample in islice(samples, ledger.done, None)
        )
        with closing(answer(asked, out, save)) as answered:
            for lines in answered:
                sample = samples[ledger.done]
                for line in lines:
                    if objects is not None:
                        line.update(objects.add(sample, line["prompt"], line.get("rle")))
                    if "rle" not in save:
                        line.pop("rle", None)
                    line["model"] = segmenter.card["fingerprint"]
                ledger.add(lines)
                on_progress(ledger.done)
        counts = ledger.counts
        summary = {
            "model": segmenter.card,
            "coverage": dict(counts.coverage),
            "answers": dict(counts.answers),
            "batch_halved": getattr(segmenter, "times_halved", 0),
            **({"cache": cached} if (cached := count_cached(segmenter)) else {}),
            "n_images": len(samples),
        }
        ledger.finish({**summary, **_about(segmenter, prompts, save)})
    return {**summary, "out": str(out), "failures": counts.failures}


def count_cached(segmenter: Described) -> dict[str, int]:
    """What came of the segmenter's cache so far, in images (`CacheUse`); empty without a cache."""
    cache = getattr(segmenter, "cache", None)
    return dict(getattr(segmenter, "cached", {})) if cache is None else dict(vars(cache.use))


def answer_samples(
    segmenter: Segmenter, samples: Iterable[Sample], out: Path, save: Sequence[str]
) -> Generator[list[Line], None, None]:
    """Predict samples and write the files of their answers into `out`, in threads; the lines of each, in order.

    `rle` is in a line where `save` has `rle` or `dicom`.
    """
    yield from write_answers(predict_samples(segmenter, samples), out, save, segmenter.batch)


def write_answers(
    predicted: Generator[Answered, None, None], out: Path, save: Sequence[str], ahead: int
) -> Generator[list[Line], None, None]:
    """Write the files of answers into `out`, in threads, up to `ahead` at a time; the lines of each, in order."""
    write = partial(_write, out, save)
    with closing(predicted), closing(map_in_threads(write, predicted, ahead, _bytes_of_answer)) as written:
        yield from written


def check_request(prompts: Sequence[str], save: Sequence[str]) -> None:
    """Raise SettingError for an unknown `save`, and for a prompt that is empty, far too long, or there twice."""
    for name in save:
        if name not in SAVES:
            raise SettingError(f"--save {name}: unknown; choose from {', '.join(SAVES)}")
    for prompt in prompts:
        if not prompt.strip():
            raise SettingError(
                'the prompt is empty; say what to segment, for example --prompt "blood vessel"'
            )
        if len(prompt) > MOST_CHARACTERS:
            raise SettingError(
                f"the prompt {prompt[:40]!r}... has {len(prompt)} characters ({len(prompt.split())} words), "
                f"{MOST_CHARACTERS} are allowed; name what to segment in a phrase"
            )
        if prompts.count(prompt) > 1:
            raise SettingError(f"the prompt {prompt!r} is given twice")


def _request(
    segmenter: Described, samples: Sequence[Sample], prompts: Sequence[str], save: Sequence[str]
) -> dict[str, Any]:
    """All that decides about what is written: a job that stopped is continued where this is the same."""
    settings = {name: value for name, value in segmenter.settings.items() if name != "device"}
    images = hashlib.sha256()
    for sample in samples:
        try:
            state = sample.image.stat()
            known = [sample.id, sample.frame, state.st_size, state.st_mtime_ns]
        except OSError:
            known = [sample.id, sample.frame]
        images.update(to_json(known).encode())
    return {
        "model": segmenter.card["fingerprint"] or segmenter.card,
        "images": images.hexdigest(),
        "prompts": list(prompts),
        "threshold": segmenter.threshold,
        "save": sorted(save),
        **settings,
        "versions": versions(),
    }


def _about(segmenter: Described, prompts: Sequence[str], save: Sequence[str]) -> dict[str, Any]:
    """What `run.json` says beside the summary."""
    asked = {"prompts": list(prompts), "threshold": segmenter.threshold, "save": list(save)}
    trained = segmenter.training_images
    lineage = {
        "training_images": None if trained is None else sorted(trained),
        "trained_on_unknown": segmenter.trained_on_unknown,
        "training_perceptual_hashes": sorted(segmenter.training_perceptual_hashes),
        "tuning_images": sorted(segmenter.tuning_images),
    }
    return {"settings": {**segmenter.settings, **asked}, "lineage": lineage, "versions": versions()}


def _bytes_of_answer(each: Answered | list[Line]) -> int:
    """Bytes that writing an answer takes, roughly: logits of the size of the image, twice."""
    if isinstance(each, list) or each[1] is None:
        return 0
    return 3 * each[1].frames.nbytes


def _write(out: Path, save: Sequence[str], answered: Answered) -> list[Line]:
    sample, item, predictions = answered
    return [
        _line(prediction, {} if item is None else _write_files(prediction, item, out, name, save), save)
        for prediction, name in zip(predictions, result_stems(sample.id, sample.prompts), strict=True)
    ]


def _line(prediction: Prediction, written: dict[str, str], save: Sequence[str]) -> Line:
    line: Line = {
        "id": prediction.id,
        "prompt": prediction.prompt,
        "status": prediction.status,
        "text": prediction.text,
        "says_seg": prediction.says_seg,
        "answered": prediction.answered,
        "score": max(prediction.scores, default=None),
        "size": list(prediction.size),
    }
    if prediction.status == "failed":
        return {**line, "error": prediction.error}
    if {"rle", "dicom"} & set(save):
        line["rle"] = encode_rle(prediction.mask)
    return {**line, **written}


def _write_files(
    prediction: Prediction, item: Item, out: Path, name: str, save: Sequence[str]
) -> dict[str, str]:
    """Write what was asked for; the paths relative to `out`, by kind."""
    if prediction.status == "failed":
        return {}
    written: dict[str, str] = {}

    def place(kind: str, folder: str, suffix: str) -> AbstractContextManager[Path]:
        written[kind] = f"{folder}/{name}{suffix}"
        return replacing(out / folder / f"{name}{suffix}")

    if "masks" in save:
        with place("mask", "masks", ".png") as path:
            Image.fromarray(prediction.mask.astype(np.uint8) * 255).save(path, format="PNG")
    if "probs" in save:
        with place("probabilities", "probs", ".npz") as path, path.open("wb") as stream:
            np.savez_compressed(stream, probabilities=prediction.probabilities)
    if "overlay" in save:
        with place("overlay", "overlays", ".png") as path:
            # a third of the time, for a third more bytes
            overlay(item.frames[0], prediction.mask, GUESS_COLOR).save(path, format="PNG", compress_level=1)
    return written
