"""Stored predictions as a `Segmenter`: a prediction folder, or a folder of mask files named by id."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter

from vesalius.data.images import read_mask
from vesalius.errors import DataError, SettingError
from vesalius.files import to_json
from vesalius.jobs.training_hashes import StoredHashes, read_hashes
from vesalius.lineage import hash_file
from vesalius.mask_maps import Stored
from vesalius.masks import Size, decode_rle
from vesalius.names import list_names, result_stems
from vesalius.scoring.results import OPEN, ResultKey, duplicate, parse, read_bytes, shown, split_lines
from vesalius.scoring.roi import masks_by_id
from vesalius.segmenter import ModelDescription, Segmenter
from vesalius.types import Item, Prediction, Sample, Status
from vesalius.window import AUTO, Window

LISTED = 10
INVALID = "invalid_prediction"


class StoredLine(BaseModel):
    """One line of predictions.jsonl; an invalid mask, RLE or probability file fails only its own prediction."""

    model_config = OPEN
    id: str
    prompt: str
    status: Status
    model: str | None = None
    text: str = ""
    says_seg: bool | None = None
    answered: Any = ""
    error: str | None = None
    phrase: str = ""
    unknown_phrase: bool = False
    mask: Any = None
    probabilities: Any = None
    rle: Any = None


class _Settings(BaseModel):
    model_config = OPEN
    threshold: float | None = Field(default=None, gt=0, lt=1)
    tta: Any = None
    window: Window = AUTO


class _Lineage(BaseModel):
    model_config = OPEN
    training_images: int | None = None
    trained_on_unknown: bool | None = None
    hashes: str | None = None
    included: str | None = None
    phrases: list[str] | None = None
    window: Window | None = None


class StoredRun(BaseModel):
    """Content of run.json; a missing file gives the defaults."""

    model_config = OPEN
    model: dict[str, Any] = {}
    settings: _Settings = _Settings()
    lineage: _Lineage = _Lineage()


_LINE, _RUN = TypeAdapter(StoredLine), TypeAdapter(StoredRun)


class StoredPredictions(Segmenter):
    """A segmenter that returns the predictions stored in a folder.

    Every sample and prompt must have a prediction; predictions of other images are counted in the settings. With
    `threshold`, masks are computed from stored probabilities. DataError for a missing prediction, an invalid
    or duplicate line of predictions.jsonl, and predictions of several models in one folder; SettingError for a
    threshold if a prediction has no probabilities. An unreadable mask file fails only its prediction.
    """

    def __init__(self, folder: str | Path, samples: Sequence[Sample], threshold: float | None = None) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError.at(folder, "this folder of predictions does not exist", code="not_found")
        lines = self.folder / "predictions.jsonl"
        self._format = "predictions.jsonl" if lines.is_file() else "mask files"
        run = self.folder / "run.json"
        self._run = parse(_RUN, read_bytes(run), run, code=INVALID) if run.is_file() else StoredRun()
        self._hashes = _read_hashes(self.folder, self._run.lineage)
        found = _read_lines(lines) if lines.is_file() else _find_masks(self.folder, samples)
        self._check_models(found)
        wanted = [(sample.id, prompt) for sample in samples for prompt in sample.prompts]
        _refuse_missing(self.folder, wanted, found)
        self._lines = {key: found[key] for key in wanted}
        self._n_others = len(found) - len(self._lines)
        self._given = threshold
        if threshold is not None:
            self._check_threshold(threshold)

    @property
    def threshold(self) -> float | None:
        """The given threshold, else the one in run.json; None if unknown."""
        return self._run.settings.threshold if self._given is None else self._given

    @property
    def description(self) -> ModelDescription:
        """Description of the model that made the predictions, as far as run.json states it."""
        how = "as predicted" if self._given is None else "given"
        lineage = self._run.lineage
        known = lineage.training_images is not None
        unknown = not known if lineage.trained_on_unknown is None else lineage.trained_on_unknown
        # the views of test-time augmentation were chosen on the tuning images too
        tuned = self._given is None or self._run.settings.tta is not None
        card = {"name": self.folder.name, "kind": "predictions", **self._run.model}
        return ModelDescription(
            name=card["name"],
            kind=card["kind"],
            fingerprint=card.get("fingerprint"),
            step=card.get("step"),
            phrases=None if lineage.phrases is None else tuple(lineage.phrases),
            threshold=self.threshold,
            threshold_origin={"how": "unknown" if self.threshold is None else how},
            settings={
                "predictions": str(self.folder),
                "predictions_format": self._format,
                "predictions_fingerprint": self._fingerprint,
                "predictions_of_other_images": self._n_others,
            },
            training_images=self._hashes.training_images if known else None,
            trained_on_unknown=unknown or not self._hashes.complete,
            training_perceptual_hashes=self._hashes.training_perceptual_hashes,
            training_texture_hashes=self._hashes.training_texture_hashes,
            tuning_images=self._hashes.tuning_images if tuned else (),
            window=self._run.settings.window,
            training_window=lineage.window,
        )

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        pairs = [(item, self._lines[item.id, prompt]) for item in items for prompt in item.prompts]
        return [
            replace(self._read(item, line), phrase=line.phrase, unknown_phrase=line.unknown_phrase)
            for item, line in pairs
        ]

    def _read(self, item: Item, line: StoredLine) -> Prediction:
        prompt = line.prompt
        if line.status == "failed":
            return Prediction.failure(item.id, prompt, item.size, line.error or "the prediction failed")
        try:
            mask, probability = self._pixels(line, item.size)
        except Exception as error:  # libraries raise arbitrary exceptions for damaged files
            reason = f"the stored prediction cannot be used: {error}"
            return Prediction.failure(item.id, prompt, item.size, reason)
        return Prediction(
            id=item.id,
            prompt=prompt,
            status="no_seg" if mask is None else "ok",
            size=item.size,
            maps=Stored(mask, probability),
            text=line.text,
            says_seg=line.status == "ok" if line.says_seg is None else line.says_seg,
            answered=line.answered,
        )

    def _pixels(self, line: StoredLine, size: Size) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Mask (None without [SEG]) and probability (None if not stored)."""
        probability = None if line.probabilities is None else self._probability(line.probabilities, size)
        if line.status == "no_seg":
            return None, probability
        if probability is not None and (self._given is not None or (line.rle is None and line.mask is None)):
            if self.threshold is None:
                raise _invalid("only probabilities are stored, and no run.json states the threshold; give one")
            return probability > self.threshold, probability
        if line.rle is not None:
            mask = decode_rle(line.rle)
            _check_size("mask", mask, size)
            return mask, probability
        if line.mask is not None:
            return read_mask(_inside(self.folder, line.mask), size), probability
        raise _invalid("the line has neither rle, mask nor probabilities")

    def _probability(self, name: str, size: Size) -> np.ndarray:
        """Maximum probability over the stored objects, float32 (h, w)."""
        with np.load(_inside(self.folder, name), allow_pickle=False) as stored:
            maps = stored["probabilities"]
        if maps.ndim != 3:
            raise _invalid(f"{name}: probabilities must be (n, h, w); got {maps.shape}")
        _check_size("probability map", maps[0] if len(maps) else np.zeros(maps.shape[1:]), size)
        if not (np.isfinite(maps).all() and (maps >= 0).all() and (maps <= 1).all()):
            raise _invalid(f"{name}: has probabilities outside [0, 1]")
        return maps.max(axis=0, initial=0).astype(np.float32, copy=False)

    def _check_models(self, found: Mapping[ResultKey, StoredLine]) -> None:
        models = {line.model for line in found.values()}
        stated = self._run.model.get("fingerprint")
        if stated is not None and models != {None}:
            models.add(stated)
        if len(models) > 1:
            raise DataError.at(
                self.folder,
                f"holds predictions of {len(models)} models; evaluate each model separately",
                code="mixed_models",
            )

    def _check_threshold(self, threshold: float) -> None:
        if not 0 < threshold < 1:
            raise SettingError(
                f"the threshold must lie between 0 and 1; got {threshold}", code="bad_value", field="threshold"
            )
        without = [key for key, line in self._lines.items() if line.status == "ok" and line.probabilities is None]
        if without:
            raise SettingError.at(
                self.folder,
                f"another threshold needs probabilities (predict --save probs), but {len(without)} of "
                f"{len(self._lines)} predictions have none (first: {shown(without[0])})",
                code="missing_probabilities",
                field="threshold",
            )

    @cached_property
    def _fingerprint(self) -> str:
        """SHA-256 over the lines and their files; an unreadable file fails its own prediction later."""
        digest = hashlib.sha256()
        for (name, prompt), line in sorted(self._lines.items()):
            digest.update(to_json([name, prompt, line.model_dump(exclude_unset=True)]).encode())
            for file in (line.mask, line.probabilities):
                try:
                    digest.update(hash_file(_inside(self.folder, file)).encode())
                except (TypeError, ValueError, OSError, DataError):
                    digest.update(b"none")
        return digest.hexdigest()


def _read_hashes(folder: Path, lineage: _Lineage) -> StoredHashes:
    """The hashes that run.json names; DataError if they are missing, damaged, or not as many as it states."""
    hashes = read_hashes(None if lineage.hashes is None else _inside(folder, lineage.hashes), lineage.included)
    stated, found = lineage.training_images or 0, len(hashes.training_images)
    if hashes.complete and stated != found:
        raise DataError.at(
            folder / "run.json",
            f"states {stated} training images, but the hashes of {found} are known; predict again",
            code=INVALID,
        )
    return hashes


def _invalid(reason: str) -> DataError:
    return DataError(reason, code=INVALID)


def _check_size(what: str, pixels: np.ndarray, size: Size) -> None:
    if pixels.shape != size:
        found = " x ".join(map(str, pixels.shape))
        raise _invalid(f"the {what} is {found} pixels (h x w), the image {size[0]} x {size[1]}")


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise _invalid(f"{folder}: the file {name} lies outside the folder")
    return path


def _refuse_missing(folder: Path, wanted: Sequence[ResultKey], found: Mapping[ResultKey, StoredLine]) -> None:
    missing = [key for key in wanted if key not in found]
    if not missing:
        return
    others = [key for key in found if key not in set(wanted)]
    hint = f"; it has {len(others)} others (first: {shown(others[0])})" if others else ""
    raise DataError.at(
        folder,
        f"lacks {len(missing)} of {len(wanted)} predictions: {list_names(map(shown, missing), LISTED)}{hint}",
        code="missing_prediction",
        field=shown(missing[0]),
    )


def _read_lines(path: Path) -> dict[ResultKey, StoredLine]:
    lines: dict[ResultKey, StoredLine] = {}
    for number, text in enumerate(split_lines(read_bytes(path)), start=1):
        line = parse(_LINE, text, path, number, code=INVALID)
        if (line.id, line.prompt) in lines:
            raise duplicate(path, number, (line.id, line.prompt))
        lines[line.id, line.prompt] = line
    return lines


def _find_masks(folder: Path, samples: Sequence[Sample]) -> dict[ResultKey, StoredLine]:
    """Predictions from the mask files in the folder or its `masks/`, named as `predict` names them."""
    masks = folder / "masks" if (folder / "masks").is_dir() else folder
    files = masks_by_id(masks)
    lines: dict[ResultKey, StoredLine] = {}
    for sample in samples:
        for prompt, stem in zip(sample.prompts, result_stems(sample.id, sample.prompts), strict=True):
            if stem in files:
                file = files.pop(stem).relative_to(folder).as_posix()
                lines[sample.id, prompt] = StoredLine(id=sample.id, prompt=prompt, status="ok", mask=file)
    # the remaining files belong to other images
    return lines | {(stem, ""): StoredLine(id=stem, prompt="", status="ok") for stem in files}
