"""A prediction folder: one line of JSON a question, masks and whatever else was asked for, as files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vesalius.data.dataset import load_item
from vesalius.errors import DataError, OutputError, SettingError
from vesalius.files import prepare_folder, replacing, to_json, write_json
from vesalius.inference.segmentations import SegmentationFolder
from vesalius.lineage import versions
from vesalius.masks import encode_rle
from vesalius.names import result_stems
from vesalius.types import Item, Prediction, Sample
from vesalius.visualisation import GUESS_COLOUR, overlay

SAVES = ("masks", "probs", "overlay", "rle", "dicom")
"""masks: PNG 0/255; probs: float32 .npz; overlay: PNG on the image; rle: COCO RLE in `predictions.jsonl`; dicom: a
segmentation object for each DICOM file."""


class Segmenter(Protocol):
    """What prediction and evaluation need of a model, whatever its kind."""

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
    def training_looks(self) -> Collection[str]:
        """Perceptual hash of each of them (`lineage.hash_look`), as far as they are known."""

    @property
    def tuning_images(self) -> Collection[str]:
        """SHA-256 of the pixels of each image that its threshold was found on."""

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        """One prediction for each (item, prompt), in order."""


def predict_samples(
    segmenter: Segmenter, samples: Sequence[Sample]
) -> Iterator[tuple[Sample, Item | None, list[Prediction]]]:
    """Read and predict, a batch at a time: (sample, its item or None if unreadable, one prediction a prompt).

    What cannot be read or predicted comes out as `failed` with the reason, never as an empty mask. The segmenter
    does not see the masks of the items.
    """
    for start in range(0, len(samples), segmenter.batch):
        loaded = [_load(sample) for sample in samples[start : start + segmenter.batch]]
        items = [item for item in loaded if isinstance(item, Item)]
        predicted = iter(_predict_or_fail(segmenter, items))
        for sample, item in zip(samples[start : start + segmenter.batch], loaded, strict=True):
            if isinstance(item, Item):
                yield sample, item, [next(predicted) for _ in item.prompts]
            else:
                size = sample.size or (0, 0)
                yield sample, None, [_failed(sample.id, prompt, size, item) for prompt in sample.prompts]


def _load(sample: Sample) -> Item | DataError:
    try:
        return load_item(sample)
    except DataError as error:
        return error


def _predict_or_fail(segmenter: Segmenter, items: Sequence[Item]) -> list[Prediction]:
    """Predictions of a batch; where it fails, of each item alone, so that one cannot take others with it."""
    unseen = [Item(item.id, item.frames, item.prompts) for item in items]
    try:
        return segmenter.predict(unseen) if unseen else []
    except (RuntimeError, ValueError, MemoryError, SettingError) as error:
        if len(unseen) == 1:
            item = unseen[0]
            return [_failed(item.id, prompt, item.size, error) for prompt in item.prompts]
        return [prediction for item in unseen for prediction in _predict_or_fail(segmenter, [item])]


def _failed(name: str, prompt: str, size: tuple[int, int], error: Exception) -> Prediction:
    nothing = np.zeros((0, 1, 1), dtype=np.float32)
    reason = " ".join(str(error).split()) or type(error).__name__
    return Prediction(name, prompt, "failed", size, nothing, says_seg=False, error=reason)


def write_predictions(
    segmenter: Segmenter,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    out: Path,
    *,
    save: Sequence[str] = ("masks", "rle"),
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Predict every prompt on every image into a new folder, and return its summary.

    `predictions.jsonl` appears when all is done: a folder without it is unfinished. Refuses a folder that is not
    empty (OutputError), an unknown `save` and repeated prompts (SettingError), and, to save DICOM, any other image
    and what else `SegmentationFolder` refuses.
    """
    _check_request(prompts, save)
    objects = SegmentationFolder(out, samples, prompts, segmenter.card) if "dicom" in save else None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: is there already and not empty; choose another --out")
    prepare_folder(out)
    asked = [replace(sample, prompts=tuple(prompts), masks=None) for sample in samples]
    coverage: Counter[str] = Counter(ok=0, no_seg=0, failed=0)
    failures: list[str] = []
    with replacing(out / "predictions.jsonl") as aside, aside.open("w", encoding="utf-8") as lines:
        for done, (sample, item, predictions) in enumerate(predict_samples(segmenter, asked), start=1):
            for prediction, name in zip(predictions, result_stems(sample.id, prompts), strict=True):
                coverage[prediction.status] += 1
                if prediction.status == "failed":
                    failures.append(f"{sample.image}: {prediction.error}")
                written = _write_files(prediction, item, out, name, save) if item is not None else {}
                if objects is not None:
                    written |= objects.add(sample, prediction)
                line = _line(prediction, written, save)
                lines.write(to_json({**line, "model": segmenter.card["fingerprint"]}) + "\n")
            on_progress(done)
    summary = {"model": segmenter.card, "coverage": dict(coverage), "n_images": len(samples)}
    settings = {
        **segmenter.settings,
        "prompts": list(prompts),
        "threshold": segmenter.threshold,
        "save": list(save),
    }
    trained = segmenter.training_images
    lineage = {
        "training_images": None if trained is None else sorted(trained),
        "training_looks": sorted(segmenter.training_looks),
        "tuning_images": sorted(segmenter.tuning_images),
    }
    write_json(
        out / "run.json", {**summary, "settings": settings, "lineage": lineage, "versions": versions()}
    )
    return {**summary, "out": str(out), "failures": failures}


def _check_request(prompts: Sequence[str], save: Sequence[str]) -> None:
    for name in save:
        if name not in SAVES:
            raise SettingError(f"--save {name}: unknown; choose from {', '.join(SAVES)}")
    for prompt in prompts:
        if not prompt.strip():
            raise SettingError(
                'the prompt is empty; say what to segment, for example --prompt "blood vessel"'
            )
        if prompts.count(prompt) > 1:
            raise SettingError(f"the prompt {prompt!r} is given twice")


def _line(prediction: Prediction, written: dict[str, str], save: Sequence[str]) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": prediction.id,
        "prompt": prediction.prompt,
        "status": prediction.status,
        "text": prediction.text,
        "says_seg": prediction.says_seg,
        "score": max(prediction.scores, default=None),
        "size": list(prediction.size),
    }
    if prediction.status == "failed":
        return {**line, "error": prediction.error}
    if "rle" in save:
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
            overlay(item.frames[0], prediction.mask, GUESS_COLOUR).save(path, format="PNG")
    return written
