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
from vesalius.data.images import with_window
from vesalius.errors import DataError, SettingError
from vesalius.files import replace_folder, to_json
from vesalius.jobs.dicom_segmentations import SegmentationFolder
from vesalius.jobs.label_volumes import LabelVolumes
from vesalius.jobs.outputs import OUTPUT_KINDS, PredictedSample, check_labels, write_outputs
from vesalius.jobs.prediction_log import FILES, Line, PredictionLog, check_overwritable, remove_other_job
from vesalius.jobs.training_hashes import write_hashes
from vesalius.lineage import versions
from vesalius.masks import Size
from vesalius.parallel import map_in_threads
from vesalius.phrases import match
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
                    yield sample, None, fail_all(segmenter, sample.id, sample.prompts, sample.size or (0, 0), seen)


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
            return fail_all(segmenter, items[0].id, items[0].prompts, items[0].size, error)
    middle = len(items) // 2
    return _predict_or_fail(segmenter, items[:middle]) + _predict_or_fail(segmenter, items[middle:])


def fail_all(model: Described, id: str, prompts: Iterable[str], size: Size, reason: Exception) -> list[Prediction]:
    """A failed prediction for each prompt."""
    known = model.description.phrases
    return [Prediction.failure(id, prompt, size, reason).labeled(match(prompt, known)) for prompt in prompts]


Worker = Callable[[Iterable[Sample], Path, Sequence[str]], Generator[list[Line], None, None]]
"""Predicts samples, writes the outputs in `save` into a folder, and yields the lines of each sample, in order."""


def write_predictions(
    model: Described,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    out: Path,
    *,
    save: Sequence[str] = ("masks", "overlay", "rle"),
    overwrite: bool = False,
    worker: Worker | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Predict every prompt on every image into a new folder, and return a summary.

    `predictions.jsonl` appears on completion. A folder without it is unfinished, and the same request continues it. The
    same request for a complete folder predicts nothing, and the summary has `already_done`. With `overwrite` the job
    runs in a hidden folder beside `out`, which replaces the predictions in `out` when it is complete. `worker` is by
    default `predict_and_write` with `model`, which must then be a `Segmenter`.
    OutputError for a folder with other content, or with another request unless `overwrite`; SettingError for requests
    refused by `check_request`, by the model's `check_prompts`, or by `_file_outputs`.
    """
    check_request(prompts, save)
    model.note_prompts(prompts)
    samples = with_window(samples, model.description.window)
    worker = worker or partial(predict_and_write, cast(Segmenter, model))
    request = _request(model.description, samples, prompts, save)
    if not overwrite:
        return _run(model, samples, prompts, out, save, request, worker, on_progress)
    check_overwritable(out, samples)
    target = out.resolve()
    hidden = target.with_name(f".{target.name}.overwrite")
    remove_other_job(hidden, request)
    summary = _run(model, samples, prompts, hidden, save, request, worker, on_progress)
    replace_folder(hidden, target)
    return {**summary, "out": str(out)}


def _run(
    model: Described,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    out: Path,
    save: Sequence[str],
    request: dict[str, Any],
    worker: Worker,
    on_progress: Callable[[int], None],
) -> dict[str, Any]:
    """Begin or continue the job in `out`; returns its summary."""
    card = model.description.card
    whole_files = bool({"dicom", "nifti"} & set(save))
    outputs = _file_outputs(out, samples, prompts, save, card)
    with PredictionLog(out, request, samples, prompts, whole_files=whole_files) as log:
        if log.finished:
            on_progress(log.done)
            return _result(_summary(model, log, len(samples)), log, model.description)
        if outputs and log.done:
            outputs = _file_outputs(out, samples[log.done :], prompts, save, card)
        rest = (replace(sample, prompts=tuple(prompts), masks=None) for sample in islice(samples, log.done, None))
        with closing(worker(rest, out, save)) as written:
            for lines in written:
                sample = samples[log.done]
                log.add([_complete(line, sample, outputs, save, card) for line in lines])
                on_progress(log.done)
        summary = _summary(model, log, len(samples))
        log.finish({**summary, **_run_settings(log.out, model.description, prompts, save)})
        return _result(summary, log, model.description)


FileOutput = tuple[str, SegmentationFolder | LabelVolumes]
"""Key of the mask in a line, and the outputs that belong to whole source files."""


def _file_outputs(
    out: Path, samples: Sequence[Sample], prompts: Sequence[str], save: Sequence[str], card: dict[str, Any]
) -> list[FileOutput]:
    """The outputs per source file in `save`; SettingError as for `SegmentationFolder` and `LabelVolumes`."""
    found: list[FileOutput] = []
    if "dicom" in save:
        found.append(("rle", SegmentationFolder(out, samples, prompts, card)))
    if "nifti" in save:
        found.append(("label_rle", LabelVolumes(out, samples, prompts)))
    return found


def _complete(
    line: Line, sample: Sample, outputs: Sequence[FileOutput], save: Sequence[str], card: dict[str, Any]
) -> Line:
    """The line as it is stored: with the outputs of whole files, and without masks that `save` does not ask for."""
    for key, output in outputs:
        line.update(output.add(sample, line["prompt"], line.get(key)))
    drop = {"label_rle"} if "rle" in save else {"label_rle", "rle"}
    if line["status"] == "failed":
        drop |= {"rle", "area_px", "geometry", *FILES}
    return {**{key: value for key, value in line.items() if key not in drop}, "model": card["fingerprint"]}


def _result(summary: dict[str, Any], log: PredictionLog, model: ModelDescription) -> dict[str, Any]:
    """The summary with what is not stored in `run.json`."""
    counts = log.counts
    told = {"failures": counts.failures, "refusal": counts.refusal, "already_done": log.finished}
    told |= {"window": model.window.plain, "window_note": model.window_note}
    return {**summary, "out": str(log.out), **told}


def _summary(model: Described, log: PredictionLog, n_images: int) -> dict[str, Any]:
    counts = log.counts
    return {
        "model": model.description.card,
        "coverage": dict(counts.coverage),
        "segmented": counts.segmented,
        "answers": dict(counts.answers),
        "unknown_phrases": dict(counts.unknown_phrases),
        "same_masks": counts.same_masks.as_json(),
        "batch_halved": model.usage.batch_halved,
        **({"cache": dict(model.usage.cache)} if model.usage.cache else {}),
        **({"spacing": dict(counts.spacings)} if counts.spacings else {}),
        **({"windows": counts.windows.as_json()} if counts.windows.n else {}),
        "n_images": n_images,
    }


def predict_and_write(
    segmenter: Segmenter, samples: Iterable[Sample], out: Path, save: Sequence[str]
) -> Generator[list[Line], None, None]:
    """Predict samples and write their files into `out`; yields the lines of each sample, in order.

    Lines contain masks as described for `write_outputs`.
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
    """Raise SettingError for an unknown output kind, a prompt that is empty, too long, or repeated, and too many labels."""
    check_labels(prompts, save)
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
            known: list[Any] = [sample.id, sample.frame, state.st_size, state.st_mtime_ns]
        except OSError:
            known = [sample.id, sample.frame]
        if sample.window != model.window:
            known.append(sample.window.plain)
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
    lineage = {**write_hashes(out, model), "phrases": None if model.phrases is None else list(model.phrases)}
    lineage["window"] = None if model.training_window is None else model.training_window.plain
    return {"settings": {**model.settings, **asked}, "lineage": lineage, "versions": versions()}


def _bytes_of_predicted(each: PredictedSample | list[Line]) -> int:
    """Approximate bytes of a sample while it is written: image, and logits at image resolution."""
    if isinstance(each, list) or each[1] is None:
        return 0
    return 3 * each[1].frames.nbytes
