"""Predictions that lie in a folder, scored as if a model gave them now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.data.images import read_mask
from vesalius.errors import DataError, SettingError
from vesalius.files import to_json
from vesalius.lineage import hash_file
from vesalius.mask_maps import Stored
from vesalius.masks import Size, decode_rle
from vesalius.names import list_names, result_stems
from vesalius.scoring.roi import masks_by_id
from vesalius.segmenter import ModelDescription, Segmenter
from vesalius.types import Item, Prediction, Sample

Key = tuple[str, str]
"""Id and prompt."""
Line = dict[str, Any]
"""One of `predictions.jsonl`."""

STATUSES = ("ok", "no_seg", "failed")
LISTED = 10


class StoredPredictions(Segmenter):
    """A `Segmenter` that looks its answers up: a prediction folder, or a folder of mask files named by id.

    The samples tell which answers there must be; those about other images are counted in `settings`. With
    `threshold` masks are made of the stored probabilities instead. DataError for an answer that is missing, an
    unreadable or repeated line of `predictions.jsonl`, and predictions of several models in one folder; SettingError
    for a threshold where an answer has no probabilities. A file that cannot be read fails alone.
    """

    def __init__(self, folder: str | Path, samples: Sequence[Sample], threshold: float | None = None) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{folder}: is no folder of predictions")
        lines = self.folder / "predictions.jsonl"
        self._format = "predictions.jsonl" if lines.is_file() else "mask files"
        self._run = _read_run(self.folder / "run.json")
        found = _read_lines(lines) if lines.is_file() else _find_masks(self.folder, samples)
        self._check_models(found)
        wanted = [(sample.id, prompt) for sample in samples for prompt in sample.prompts]
        _refuse_missing(self.folder, wanted, found)
        self._answers = {key: found[key] for key in wanted}
        self._n_others = len(found) - len(self._answers)
        self._given = threshold
        if threshold is not None:
            self._check_threshold(threshold)

    @property
    def threshold(self) -> float | None:
        """The one given, or that of the prediction; None where nobody knows it."""
        return self._run["settings"].get("threshold") if self._given is None else self._given

    @property
    def description(self) -> ModelDescription:
        """The description of the model that made the predictions, as far as `predict` wrote it."""
        how = "as predicted" if self._given is None else "given"
        lineage = self._run["lineage"]
        trained = lineage.get("training_images")
        # the views of test-time augmentation were chosen on the tuning images too
        tuned = self._given is None or "tta" in self._run["settings"]
        card = {"name": self.folder.name, "kind": "predictions", **self._run["model"]}
        return ModelDescription(
            name=card["name"],
            kind=card["kind"],
            fingerprint=card.get("fingerprint"),
            step=card.get("step"),
            threshold=self.threshold,
            threshold_origin={"how": "unknown" if self.threshold is None else how},
            settings={
                "predictions": str(self.folder),
                "predictions_format": self._format,
                "predictions_fingerprint": self._fingerprint,
                "predictions_of_other_images": self._n_others,
            },
            training_images=trained,
            trained_on_unknown=lineage.get("trained_on_unknown", trained is None),
            training_perceptual_hashes=lineage.get("training_perceptual_hashes", ()),
            tuning_images=lineage.get("tuning_images", ()) if tuned else (),
        )

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        return [self._read(item, prompt) for item in items for prompt in item.prompts]

    def _read(self, item: Item, prompt: str) -> Prediction:
        answer = self._answers[item.id, prompt]
        if answer["status"] == "failed":
            error = str(answer.get("error") or "the prediction failed")
            return Prediction.failure(item.id, prompt, item.size, error)
        try:
            mask, probability = self._pixels(answer, item.size)
        except Exception as error:  # a damaged file makes the libraries that read it raise nearly anything
            reason = f"its stored prediction cannot be used: {error}"
            return Prediction.failure(item.id, prompt, item.size, reason)
        return Prediction(
            id=item.id,
            prompt=prompt,
            status="no_seg" if mask is None else "ok",
            size=item.size,
            maps=Stored(mask, probability),
            text=str(answer.get("text", "")),
            says_seg=bool(answer.get("says_seg", answer["status"] == "ok")),
            answered=answer.get("answered", ""),
        )

    def _pixels(self, answer: Line, size: Size) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The mask, None without [SEG], and the probability where it is known."""
        probability = self._probability(answer["probabilities"], size) if "probabilities" in answer else None
        if answer["status"] == "no_seg":
            return None, probability
        if probability is not None and (self._given is not None or not {"rle", "mask"} & answer.keys()):
            if self.threshold is None:
                raise DataError("it has probabilities only, and no run.json tells the threshold; give one")
            return probability > self.threshold, probability
        if "rle" in answer:
            mask = decode_rle(answer["rle"])
            _check_size("mask", mask, size)
            return mask, probability
        if "mask" in answer:
            return read_mask(_inside(self.folder, answer["mask"]), size), probability
        raise DataError("the line has neither rle, mask nor probabilities")

    def _probability(self, name: str, size: Size) -> np.ndarray:
        """float32 (h, w): the highest of any object."""
        with np.load(_inside(self.folder, name), allow_pickle=False) as stored:
            maps = stored["probabilities"]
        if maps.ndim != 3:
            raise DataError(f"{name}: must hold probabilities (n, h, w); they are {maps.shape}")
        _check_size("probability map", maps[0] if len(maps) else np.zeros(maps.shape[1:]), size)
        if not (np.isfinite(maps).all() and (maps >= 0).all() and (maps <= 1).all()):
            raise DataError(f"{name}: holds probabilities that are no numbers from 0 to 1")
        return maps.max(axis=0, initial=0).astype(np.float32, copy=False)

    def _check_models(self, found: Mapping[Key, Line]) -> None:
        models = {line.get("model") for line in found.values()}
        stated = self._run["model"].get("fingerprint")
        if stated is not None and models != {None}:
            models.add(stated)
        if len(models) > 1:
            raise DataError(f"{self.folder}: holds predictions of more than one model; score each apart")

    def _check_threshold(self, threshold: float) -> None:
        if not 0 < threshold < 1:
            raise SettingError(f"the threshold must lie between 0 and 1; got {threshold}")
        bare = [
            key
            for key, line in self._answers.items()
            if line["status"] == "ok" and "probabilities" not in line
        ]
        if bare:
            raise SettingError(
                f"{self.folder}: another threshold needs probabilities (predict --save probs); {len(bare)} of "
                f"{len(self._answers)} answers have none (first: {_named(bare[0])})"
            )

    @cached_property
    def _fingerprint(self) -> str:
        """SHA-256 over the answers and the files that they name; one that cannot be read fails later, by itself."""
        digest = hashlib.sha256()
        for (name, prompt), line in sorted(self._answers.items()):
            digest.update(to_json([name, prompt, line]).encode())
            for kind in ("mask", "probabilities"):
                try:
                    digest.update(hash_file(_inside(self.folder, line[kind])).encode())
                except (KeyError, TypeError, ValueError, OSError, DataError):
                    digest.update(b"none")
        return digest.hexdigest()


def _check_size(what: str, pixels: np.ndarray, size: Size) -> None:
    if pixels.shape != size:
        came = " x ".join(map(str, pixels.shape))
        raise DataError(f"the {what} is {came} pixels (h x w), the image {size[0]} x {size[1]}")


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"{folder}: names the file {name}, which lies outside of it")
    return path


def _refuse_missing(folder: Path, wanted: Sequence[Key], found: Mapping[Key, Line]) -> None:
    missing = [key for key in wanted if key not in found]
    if not missing:
        return
    others = [key for key in found if key not in set(wanted)]
    hint = f"; it has {len(others)} of others (first: {_named(others[0])})" if others else ""
    raise DataError(
        f"{folder}: has no prediction for {len(missing)} of {len(wanted)} questions: "
        f"{list_names(map(_named, missing), LISTED)}{hint}"
    )


def _named(key: Key) -> str:
    name, prompt = key
    return f"{name} ({prompt})" if prompt else name


def _read_run(path: Path) -> dict[str, Any]:
    """What `predict` says of itself: at least `model`, `settings` and `lineage`, which are empty without the file."""
    nothing: dict[str, Any] = {"model": {}, "settings": {}, "lineage": {}}
    if not path.is_file():
        return nothing
    try:
        run = nothing | json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as the JSON that predict writes") from error
    threshold = run["settings"].get("threshold", 0.5) if isinstance(run["settings"], dict) else None
    known = isinstance(threshold, float) and 0 < threshold < 1
    if not known or not all(isinstance(run[name], dict) for name in nothing):
        raise DataError(f"{path}: is not what predict writes")
    return run


def _read_lines(path: Path) -> dict[Key, Line]:
    answers: dict[Key, Line] = {}
    for place, line in _json_lines(path):
        key = line["id"], line["prompt"]
        if line["status"] not in STATUSES:
            raise DataError(f"{place}: has the unknown status {line['status']!r}")
        if key in answers:
            raise DataError(f"{place}: {_named(key)} is there twice")
        answers[key] = line
    return answers


def _json_lines(path: Path) -> Iterator[tuple[str, Line]]:
    """Place and content of each line, whose id, prompt and status are text."""
    try:
        written = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    # not splitlines, which also ends lines within a text
    for number, text in enumerate(written.removesuffix(b"\n").split(b"\n") if written else (), start=1):
        place = f"{path}, line {number}"
        try:
            line = json.loads(text)
            told = [line[name] for name in ("id", "prompt", "status")] + [line.get("model") or ""]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{place}: is no prediction (JSON with id, prompt and status)") from error
        if not all(isinstance(each, str) for each in told):
            raise DataError(f"{place}: id, prompt, status and model must be text")
        yield place, line


def _find_masks(folder: Path, samples: Sequence[Sample]) -> dict[Key, Line]:
    """Mask files in the folder or its `masks/`, by the names that `predict` gives them."""
    place = folder / "masks" if (folder / "masks").is_dir() else folder
    files = masks_by_id(place)
    answers: dict[Key, Line] = {}
    for sample in samples:
        for prompt, stem in zip(sample.prompts, result_stems(sample.id, sample.prompts), strict=True):
            if stem in files:
                relative = files.pop(stem).relative_to(folder).as_posix()
                answers[sample.id, prompt] = {"status": "ok", "mask": relative}
    # whatever is left is about other images
    return answers | {(stem, ""): {"status": "ok"} for stem in files}
