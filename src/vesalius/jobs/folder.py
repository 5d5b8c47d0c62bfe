"""A prediction folder: one line of JSON a question, masks and whatever else was asked for, as files.

samples -> items, in threads -> predictions -> files and a line each, in threads -> predictions.jsonl
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

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
from vesalius.masks import Size, encode_rle
from vesalius.names import result_stems
from vesalius.segmenter import Described, ModelDescription, Segmenter
from vesalius.types import Item, Prediction, Sample
from vesalius.visualization import PREDICTION_COLOR, overlay

SAVES = ("masks", "probs", "overlay", "rle", "dicom", "films")
"""masks: PNG 0/255; probs: float32 .npz; overlay: PNG on the image; rle: COCO RLE in `predictions.jsonl`; dicom: a
segmentation object for each DICOM file; films: for each clip an overlay as MP4 and the masks as MKV."""

MOST_CHARACTERS = 2000
"""Of a prompt, which is a phrase or a question."""
REASONS = (RuntimeError, ValueError, MemoryError, SettingError)
"""What makes an item, or its batch, fail; anything else is a fault of the job."""


Answered = tuple[Sample, Item | None, list[Prediction]]
"""A sample, its item or None if unreadable, one prediction a prompt."""


def predict_samples(segmenter: Segmenter, samples: Iterable[Sample]) -> Generator[Answered, None, None]:
    """Read and predict in batches: (sample, its item or None if unreadable, one prediction for each prompt).

    A sample that cannot be read or predicted gets `failed` predictions with the reason, never empty masks. The
    segmenter does not see the masks of the items. Images are read ahead in other threads.
    """
    size = segmenter.description.batch_size
    with (
        FrameReader() as reader,
        closing(
            map_in_threads(partial(_read, segmenter, reader), samples, 2 * size, _bytes_of_item)
        ) as loaded,
    ):
        while some := list(islice(loaded, size)):
            items = [item for _, _, item in some if isinstance(item, Item)]
            predicted = iter(_predict_or_fail(segmenter, items))
            for sample, item, seen in some:
                if isinstance(seen, Item):
                    yield sample, item, [next(predicted) for _ in seen.prompts]
                else:
                    yield sample, None, fail_all(sample.id, sample.prompts, sample.size or (0, 0), seen)


Loaded = tuple[Sample, Item | None, Item | DataError]
"""A sample, its item with masks, and the prepared item for the segmenter or the error of reading it."""


def _read(segmenter: Segmenter, reader: FrameReader, sample: Sample) -> Loaded:
    try:
        item = load_item(sample, reader)
    except DataError as error:
        return sample, None, error
    without_masks = Item(item.id, item.frames, item.prompts)
    with suppress(*REASONS):  # `predict` raises it again
        without_masks = segmenter.prepare(without_masks)
    return sample, item, without_masks


def _bytes_of_item(each: Sample | Loaded) -> int:
    """Bytes of an image that was read, roughly: prepared for the model it takes a few times as many."""
    return 0 if isinstance(each, Sample) or each[1] is None else each[1].frames.nbytes


def _predict_or_fail(segmenter: Segmenter, items: Sequence[Item]) -> list[Prediction]:
    """Predictions of a batch; if it fails, of each half, so that one item cannot make the others fail."""
    try:
        return segmenter.predict(items) if items else []
    except REASONS as error:
        if len(items) == 1:
            return fail_all(items[0].id, items[0].prompts, items[0].size, error)
    middle = len(items) // 2
    return _predict_or_fail(segmenter, items[:middle]) + _predict_or_fail(segmenter, items[middle:])


def fail_all(id: str, prompts: Iterable[str], size: Size, reason: Exception) -> list[Prediction]:
    """The failed prediction of each prompt."""
    return [Prediction.failure(id, prompt, size, reason) for prompt in prompts]


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
    segmenter.check_prompts(prompts)
    card = segmenter.description.card
    by_file = "dicom" in save
    objects = SegmentationFolder(out, samples, prompts, card) if by_file else None
    answer = answer or partial(answer_samples, cast(Segmenter, segmenter))
    request = _request(segmenter.description, samples, prompts, save)
    with PredictionLog(out, request, samples, prompts, whole_files=by_file) as ledger:
        if objects is not None and ledger.done:
            objects = SegmentationFolder(out, samples[ledger.done :], prompts, card)
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
                    line["model"] = card["fingerprint"]
                ledger.add(lines)
                on_progress(ledger.done)
        counts = ledger.counts
        summary = {
            "model": card,
            "coverage": dict(counts.coverage),
            "answers": dict(counts.answers),
            "batch_halved": segmenter.usage.batch_halved,
            **({"cache": dict(segmenter.usage.cache)} if segmenter.usage.cache else {}),
            "n_images": len(samples),
        }
        ledger.finish({**summary, **_about(segmenter.description, prompts, save)})
    return {**summary, "out": str(out), "failures": counts.failures}


def answer_samples(
    segmenter: Segmenter, samples: Iterable[Sample], out: Path, save: Sequence[str]
) -> Generator[list[Line], None, None]:
    """Predict samples and write the files of their answers into `out`, in threads; the lines of each, in order.

    `rle` is in a line where `save` has `rle` or `dicom`.
    """
    yield from write_answers(predict_samples(segmenter, samples), out, save, segmenter.description.batch_size)


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
    model: ModelDescription, samples: Sequence[Sample], prompts: Sequence[str], save: Sequence[str]
) -> dict[str, Any]:
    """All that decides about what is written: a job that stopped is continued where this is the same."""
    settings = {name: value for name, value in model.settings.items() if name != "device"}
    images = hashlib.sha256()
    for sample in samples:
        try:
            state = sample.image.stat()
            known = [sample.id, sample.frame, state.st_size, state.st_mtime_ns]
        except OSError:
            known = [sample.id, sample.frame]
        images.update(to_json(known).encode())
    return {
        "model": model.fingerprint or model.card,
        "images": images.hexdigest(),
        "prompts": list(prompts),
        "threshold": model.threshold,
        "save": sorted(save),
        **settings,
        "versions": versions(),
    }


def _about(model: ModelDescription, prompts: Sequence[str], save: Sequence[str]) -> dict[str, Any]:
    """The entries of `run.json` in addition to the summary."""
    asked = {"prompts": list(prompts), "threshold": model.threshold, "save": list(save)}
    trained = model.training_images
    lineage = {
        "training_images": None if trained is None else sorted(trained),
        "trained_on_unknown": model.trained_on_unknown,
        "training_perceptual_hashes": sorted(model.training_perceptual_hashes),
        "tuning_images": sorted(model.tuning_images),
    }
    return {"settings": {**model.settings, **asked}, "lineage": lineage, "versions": versions()}


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
            overlay(item.frames[0], prediction.mask, PREDICTION_COLOR).save(
                path, format="PNG", compress_level=1
            )
    return written
