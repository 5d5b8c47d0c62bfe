"""Write a prediction folder: one JSON line per image and prompt, with masks and other outputs as files.

Pipeline: samples -> items (in threads) -> predictions -> files and JSON lines (in threads) -> predictions.jsonl
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

from vesalius.data.dataset import load_item
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.errors import DataError, SettingError
from vesalius.files import to_json
from vesalius.jobs.dicom_segmentations import SegmentationFolder
from vesalius.jobs.outputs import OUTPUT_KINDS, PredictedSample, write_outputs
from vesalius.jobs.prediction_log import Line, PredictionLog
from vesalius.jobs.training_hashes import write_hashes
from vesalius.lineage import versions
from vesalius.masks import Size
from vesalius.parallel import map_in_threads
from vesalius.segmenter import Described, ModelDescription, Segmenter
from vesalius.types import Item, Prediction, Sample

MAX_CHARACTERS = 2000
"""Maximum number of characters of a prompt (a phrase or a question)."""
ITEM_ERRORS = (RuntimeError, ValueError, MemoryError, SettingError)
"""Exceptions that fail only the item; all others abort the job."""


def predict_samples(segmenter: Segmenter, samples: Iterable[Sample]) -> Generator[PredictedSample, None, None]:
    """Read and predict samples in batches; images are read ahead in other threads.

    A sample that cannot be read or predicted gets `failed` predictions with the reason, never empty masks. The
    segmenter does not see the items' masks.
    """
    size = segmenter.description.batch_size
    with (
        FrameReader() as reader,
        closing(map_in_threads(partial(_read, segmenter, reader), samples, 2 * size, _bytes_of_item)) as loaded,
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
"""A sample, its item with masks, and the prepared item for the segmenter or the read error."""


def _read(segmenter: Segmenter, reader: FrameReader, sample: Sample) -> Loaded:
    try:
        item = load_item(sample, reader)
    except DataError as error:
        return sample, None, error
    without_masks = Item(item.id, item.frames, item.prompts)
    with suppress(*ITEM_ERRORS):  # `predict` raises it again
        without_masks = segmenter.prepare(without_masks)
    return sample, item, without_masks


def _bytes_of_item(each: Sample | Loaded) -> int:
    """Approximate bytes of a loaded image; the preprocessed image takes a few times more."""
    return 0 if isinstance(each, Sample) or each[1] is None else each[1].frames.nbytes


def _predict_or_fail(segmenter: Segmenter, items: Sequence[Item]) -> list[Prediction]:
    """Predictions of a batch; a batch that fails is split in half, so that only the failing items fail."""
    try:
        return segmenter.predict(items) if items else []
    except ITEM_ERRORS as error:
        if len(items) == 1:
            return fail_all(items[0].id, items[0].prompts, items[0].size, error)
    middle = len(items) // 2
    return _predict_or_fail(segmenter, items[:middle]) + _predict_or_fail(segmenter, items[middle:])


def fail_all(id: str, prompts: Iterable[str], size: Size, reason: Exception) -> list[Prediction]:
    """A failed prediction for each prompt."""
    return [Prediction.failure(id, prompt, size, reason) for prompt in prompts]


Worker = Callable[[Iterable[Sample], Path, Sequence[str]], Generator[list[Line], None, None]]
"""Predicts samples, writes the outputs in `save` into a folder, and yields the lines of each sample, in order."""


def write_predictions(
    model: Described,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    out: Path,
    *,
    save: Sequence[str] = ("masks", "rle"),
    worker: Worker | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Predict every prompt on every image into a new folder, and return a summary.

    `predictions.jsonl` appears on completion. A folder without it is unfinished, and the same request continues it.
    `worker` is by default `predict_and_write` with `model`, which must then be a `Segmenter`.
    OutputError for a folder that is not empty or holds the unfinished job of another request; SettingError for requests
    refused by `check_request`, by the model's `check_prompts`, or, to save DICOM, by `SegmentationFolder`.
    """
    check_request(prompts, save)
    model.check_prompts(prompts)
    card = model.description.card
    by_file = "dicom" in save
    objects = SegmentationFolder(out, samples, prompts, card) if by_file else None
    worker = worker or partial(predict_and_write, cast(Segmenter, model))
    request = _request(model.description, samples, prompts, save)
    with PredictionLog(out, request, samples, prompts, whole_files=by_file) as log:
        if objects is not None and log.done:
            objects = SegmentationFolder(out, samples[log.done :], prompts, card)
        rest = (replace(sample, prompts=tuple(prompts), masks=None) for sample in islice(samples, log.done, None))
        with closing(worker(rest, out, save)) as written:
            for lines in written:
                sample = samples[log.done]
                for line in lines:
                    if objects is not None:
                        line.update(objects.add(sample, line["prompt"], line.get("rle")))
                    if "rle" not in save:
                        line.pop("rle", None)
                    line["model"] = card["fingerprint"]
                log.add(lines)
                on_progress(log.done)
        summary = {
            "model": card,
            "coverage": dict(log.counts.coverage),
            "answers": dict(log.counts.answers),
            "batch_halved": model.usage.batch_halved,
            **({"cache": dict(model.usage.cache)} if model.usage.cache else {}),
            "n_images": len(samples),
        }
        log.finish({**summary, **_run_settings(log.out, model.description, prompts, save)})
    return {**summary, "out": str(out), "failures": log.counts.failures}


def predict_and_write(
    segmenter: Segmenter, samples: Iterable[Sample], out: Path, save: Sequence[str]
) -> Generator[list[Line], None, None]:
    """Predict samples and write their files into `out`; yields the lines of each sample, in order.

    Lines contain the mask as `rle` if `save` has `rle` or `dicom`.
    """
    yield from write_predicted(predict_samples(segmenter, samples), out, save, segmenter.description.batch_size)


def write_predicted(
    predicted: Generator[PredictedSample, None, None], out: Path, save: Sequence[str], ahead: int
) -> Generator[list[Line], None, None]:
    """Write the files of predictions in threads, up to `ahead` samples at a time; yields the lines of each sample."""
    write = partial(write_outputs, out, save)
    with closing(predicted), closing(map_in_threads(write, predicted, ahead, _bytes_of_predicted)) as written:
        yield from written


def check_request(prompts: Sequence[str], save: Sequence[str]) -> None:
    """Raise SettingError for an unknown output kind, and for a prompt that is empty, too long, or repeated."""
    for name in save:
        if name not in OUTPUT_KINDS:
            raise SettingError(
                f"--save {name} is unknown; choose from {', '.join(OUTPUT_KINDS)}", code="bad_value", field="save"
            )
    for prompt in prompts:
        if not prompt.strip():
            message, code = 'is empty; name a structure, for example --prompt "blood vessel"', "bad_value"
        elif len(prompt) > MAX_CHARACTERS:
            message = (
                f"{prompt[:40]!r}... has {len(prompt)} characters ({len(prompt.split())} words), more than "
                f"{MAX_CHARACTERS}; name the structure in a phrase"
            )
            code = "bad_value"
        elif prompts.count(prompt) > 1:
            message, code = f"{prompt!r} is given twice; give it once", "duplicate_prompt"
        else:
            continue
        raise SettingError(f"the prompt {message}", code=code, field="prompt")


def _request(
    model: ModelDescription, samples: Sequence[Sample], prompts: Sequence[str], save: Sequence[str]
) -> dict[str, Any]:
    """Everything that determines the outputs; an unfinished job continues only if it is unchanged."""
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


def _run_settings(out: Path, model: ModelDescription, prompts: Sequence[str], save: Sequence[str]) -> dict[str, Any]:
    """Entries of `run.json` in addition to the summary; writes the hashes of the model's training images beside it."""
    asked = {"prompts": list(prompts), "threshold": model.threshold, "save": list(save)}
    lineage = write_hashes(out, model)
    return {"settings": {**model.settings, **asked}, "lineage": lineage, "versions": versions()}


def _bytes_of_predicted(each: PredictedSample | list[Line]) -> int:
    """Approximate bytes of a sample while it is written: image, and logits at image resolution."""
    if isinstance(each, list) or each[1] is None:
        return 0
    return 3 * each[1].frames.nbytes
