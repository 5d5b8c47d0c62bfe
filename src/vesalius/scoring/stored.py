"""Predictions that lie in a folder, scored as if a model gave them now."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.data.images import SUFFIXES, read_mask
from vesalius.errors import DataError
from vesalius.masks import Size, decode_rle
from vesalius.names import result_stems
from vesalius.types import Item, Prediction, Sample

Key = tuple[str, str]
"""Id and prompt."""


@dataclass(frozen=True)
class StoredPrediction(Prediction):
    """A mask that was read from a file; `logits` are of no meaning."""

    stored_mask: np.ndarray | None = None
    """bool (h, w)."""
    stored_probability: np.ndarray | None = None
    """float32 (h, w); None where only the mask is known."""

    @cached_property
    def masks(self) -> np.ndarray:
        return np.zeros((0, *self.size), bool) if self.stored_mask is None else self.stored_mask[None]

    @property
    def probability(self) -> np.ndarray | None:
        return self.stored_probability


class StoredPredictions:
    """A `Segmenter` that looks its answers up: a prediction folder, or a folder of mask files named by id.

    The samples tell which answers there must be. DataError for one that is missing, an unreadable or repeated line of
    `predictions.jsonl`, and predictions of several models in one folder; answers about other images are counted in
    `settings`.
    """

    batch = 1

    def __init__(self, folder: str | Path, samples: Sequence[Sample]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{folder}: is no folder of predictions")
        self._run = _read_run(self.folder / "run.json")
        lines = self.folder / "predictions.jsonl"
        wanted = {(sample.id, prompt) for sample in samples for prompt in sample.prompts}
        if lines.is_file():
            self._answers = _read_lines(lines)
            self._format = "predictions.jsonl"
        else:
            self._answers = _find_masks(self.folder, samples)
            self._format = "mask files"
        missing = sorted(wanted - self._answers.keys())
        if missing:
            first = ", ".join(f"{name} ({prompt})" for name, prompt in missing[:10])
            raise DataError(
                f"{self.folder}: has no prediction for {len(missing)} of {len(wanted)} questions: {first}"
            )
        self._n_others = len(self._answers.keys() - wanted)

    @property
    def threshold(self) -> float:
        return float(self._run.get("settings", {}).get("threshold", 0.5))

    @property
    def threshold_origin(self) -> dict[str, Any]:
        return {"how": "as predicted"}

    @property
    def card(self) -> dict[str, Any]:
        known = self._run.get("model", {})
        unknown = {"name": self.folder.name, "kind": "predictions", "fingerprint": None, "step": None}
        return {**unknown, **known}

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "predictions": str(self.folder),
            "predictions_format": self._format,
            "predictions_of_other_images": self._n_others,
        }

    @property
    def training_images(self) -> Collection[str] | None:
        return None

    training_looks: Collection[str] = ()
    tuning_images: Collection[str] = ()

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        return [self._read(item, prompt) for item in items for prompt in item.prompts]

    def _read(self, item: Item, prompt: str) -> Prediction:
        answer = self._answers[item.id, prompt]
        facts: dict[str, Any] = {
            "id": item.id,
            "prompt": prompt,
            "size": item.size,
            "text": str(answer.get("text", "")),
        }
        if answer["status"] == "failed":
            return _without_mask(facts, "failed", str(answer.get("error", "the prediction failed")))
        if answer["status"] == "no_seg":
            return _without_mask(facts, "no_seg")
        try:
            mask, probability = self._pixels(answer, item.size)
        except (DataError, OSError, ValueError, KeyError) as error:
            return _without_mask(facts, "failed", str(error))
        if mask.shape != item.size:
            return _without_mask(
                facts, "failed", f"the predicted mask is {mask.shape}, the image {item.size}"
            )
        return StoredPrediction(
            **facts,
            status="ok",
            logits=np.zeros((1, 1, 1), dtype=np.float32),
            scores=(float(answer.get("score") or 0.0),),
            threshold=self.threshold,
            stored_mask=mask,
            stored_probability=probability,
        )

    def _pixels(self, answer: Mapping[str, Any], size: Size) -> tuple[np.ndarray, np.ndarray | None]:
        probability = None
        if "probabilities" in answer:
            with np.load(_inside(self.folder, answer["probabilities"]), allow_pickle=False) as stored:
                maps = stored["probabilities"]
            if not np.isfinite(maps).all():
                raise DataError(f"{answer['probabilities']}: holds probabilities that are no numbers")
            probability = maps.max(axis=0) if len(maps) else np.zeros(maps.shape[1:], np.float32)
        if "rle" in answer:
            return decode_rle(answer["rle"]), probability
        if "mask" in answer:
            return read_mask(_inside(self.folder, answer["mask"]), size), probability
        if probability is not None:
            return probability > self.threshold, probability
        raise DataError("the line has neither rle, mask nor probabilities")


def _without_mask(facts: Mapping[str, Any], status: Any, error: str = "") -> Prediction:
    nothing = np.zeros((0, 1, 1), dtype=np.float32)
    return Prediction(**facts, status=status, logits=nothing, says_seg=False, error=error)


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"{folder}: names the file {name}, which lies outside of it")
    return path


def _read_run(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON") from error
    if not isinstance(run, dict):
        raise DataError(f"{path}: is not what predict writes")
    return run


def _read_lines(path: Path) -> dict[Key, dict[str, Any]]:
    answers: dict[Key, dict[str, Any]] = {}
    models = set()
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        place = f"{path}, line {number}"
        try:
            line = json.loads(text)
            key = (line["id"], line["prompt"])
            status = line["status"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{place}: is no prediction (JSON with id, prompt and status)") from error
        if status not in ("ok", "no_seg", "failed"):
            raise DataError(f"{place}: has the unknown status {status!r}")
        if key in answers:
            raise DataError(f"{place}: {key[0]} ({key[1]}) is there twice")
        models.add(line.get("model"))
        answers[key] = line
    if len(models) > 1:
        raise DataError(f"{path}: holds predictions of {len(models)} models; score each apart")
    return answers


def _find_masks(folder: Path, samples: Sequence[Sample]) -> dict[Key, dict[str, Any]]:
    """Mask files in the folder or its `masks/`, by the names that `predict` gives them."""
    place = folder / "masks" if (folder / "masks").is_dir() else folder
    files = {path.stem: path for path in sorted(place.iterdir()) if path.suffix.lower() in SUFFIXES}
    answers: dict[Key, dict[str, Any]] = {}
    for sample in samples:
        for prompt, stem in zip(sample.prompts, result_stems(sample.id, sample.prompts), strict=True):
            if stem in files:
                relative = files.pop(stem).relative_to(folder).as_posix()
                answers[sample.id, prompt] = {"status": "ok", "mask": relative}
    # whatever is left is about other images
    return answers | {(stem, ""): {"status": "ok"} for stem in files}
