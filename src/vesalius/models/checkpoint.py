"""A model on disk: a bundle of two native Hugging Face checkpoints, a projector and one small card.

Each half is opened by the library that owns it, strictly: a missing, unknown or misshapen tensor is an error.
Weights are read from safetensors only; nothing in a bundle is executed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Sam2VideoModel,
)
from transformers.utils import logging as transformers_logging

from vesalius.config import Settings, make_settings
from vesalius.errors import CheckpointError, OutputError, SettingError
from vesalius.files import replacing, to_json
from vesalius.lineage import versions
from vesalius.models.processor import Processor
from vesalius.models.specs import PRESETS, ModelSpec, find_spec
from vesalius.models.textseg import TextSegModel, assemble, build
from vesalius.models.tokenizers import byte_tokenizer

CARD = "vesalius.json"

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


class ThresholdOrigin(Settings):
    """Where the threshold of a bundle comes from."""

    how: str = "default"
    data: str | None = None
    metric: str | None = None


class Card(Settings):
    """`vesalius.json`: all that the two halves' own files do not say."""

    kind: Literal["textseg"] = "textseg"
    spec: ModelSpec
    threshold: float = Field(default=0.5, gt=0, lt=1)
    threshold_origin: ThresholdOrigin = ThresholdOrigin()
    step: int | None = None
    """Training step of these weights; None where they were not trained here."""
    lineage: dict[str, Any] = Field(default_factory=dict)
    """What made the weights: starting model, data fingerprint, settings."""
    training_images: tuple[str, ...] = ()
    """SHA-256 of the pixels of each image that the weights were trained on."""
    versions: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class OpenedModel:
    """A model in memory with all that is needed to use it."""

    model: TextSegModel
    processor: Processor
    card: Card


def find_bundle(model: str | Path) -> Path:
    """The bundle folder that MODEL names: a bundle, a run (its best checkpoint), or `tiny`.

    CheckpointError where there is none, saying what was looked for.
    """
    path = Path(model)
    for candidate in (path, path / "best"):
        if (candidate / CARD).is_file():
            return candidate
    if path.is_dir():
        raise CheckpointError(
            f"{path}: holds no model: neither {CARD} (a bundle) nor best/{CARD} (a run with a checkpoint) is there"
        )
    if str(model).lower() == "tiny":
        return Path(str(files("vesalius.models") / "tiny"))
    spec = find_spec(str(model))
    raise CheckpointError(
        f"{spec.name}: its weights are not on this machine; give the folder of a bundle instead"
    )


def open_bundle(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> OpenedModel:
    """Open a bundle strictly, in eval mode.

    Raises CheckpointError, naming the folder, for anything missing, unknown, misshapen or unreadable.
    """
    card = read_card(folder)
    tokenizer = _opened(folder / "vlm", PreTrainedTokenizerFast.from_pretrained)
    processor = Processor(card.spec, tokenizer)
    vlm = _open_half(folder / "vlm", AutoModelForImageTextToText, dtype)
    sam = _open_half(folder / "sam", Sam2VideoModel, dtype)
    model = assemble(vlm, sam, processor.seg_id, processor.image_id)
    _load_projector(model, folder / "projector.safetensors")
    return OpenedModel(model.to(device=device, dtype=dtype).eval(), processor, card)


def read_card(folder: Path) -> Card:
    """The card of a bundle."""
    path = folder / CARD
    try:
        return make_settings(Card, json.loads(path.read_text(encoding="utf-8")), str(path))
    except SettingError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); is {folder} a bundle?") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not the JSON of a model card") from error


def _opened(folder: Path, open_it: Any) -> Any:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: missing; the bundle is incomplete, copy or convert it again")
    try:
        return open_it(folder, local_files_only=True)
    except Exception as error:  # a broken file makes the libraries raise nearly anything
        raise CheckpointError(f"{folder}: cannot be opened ({' '.join(str(error).split())[:300]})") from error


def _open_half(folder: Path, kind: Any, dtype: torch.dtype) -> PreTrainedModel:
    open_it = partial(kind.from_pretrained, dtype=dtype, output_loading_info=True, trust_remote_code=False)
    half, info = _opened(folder, partial(open_it, use_safetensors=True))
    problems = {
        name: info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[name]
    }
    if problems:
        listed = "; ".join(
            f"{len(keys)} {name.replace('_', ' ')}: {sorted(map(str, keys))[:10]}"
            for name, keys in problems.items()
        )
        raise CheckpointError(f"{folder}: the weights do not fit the configuration: {listed}")
    return half


def _load_projector(model: TextSegModel, path: Path) -> None:
    try:
        tensors = safetensors.torch.load_file(path)
        model.projector.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be opened ({' '.join(str(error).split())[:300]})") from error


def save_bundle(folder: Path, model: TextSegModel, processor: Processor, card: Card) -> None:
    """Write a bundle as a whole or not at all; one at that place is replaced."""
    with replacing(folder) as aside:
        write_bundle(aside, model, processor, card)


def write_bundle(folder: Path, model: TextSegModel, processor: Processor, card: Card) -> None:
    """Write the files of a bundle into `folder`, which is made."""
    folder.mkdir(parents=True)
    projector = {name: tensor.contiguous() for name, tensor in model.projector.state_dict().items()}
    try:
        model.vlm.save_pretrained(folder / "vlm")
        processor.tokenizer.save_pretrained(folder / "vlm")
        model.sam.save_pretrained(folder / "sam")
        safetensors.torch.save_file(projector, folder / "projector.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # what it makes of a full disk
        raise OutputError(f"{folder}: cannot be written ({error})") from error
    card = card.changed(versions=versions())
    (folder / CARD).write_text(to_json(card.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")


def new_model(name: str, seed: int) -> OpenedModel:
    """A preset with random weights, in training mode.

    Only `tiny` brings its own tokenizer; SettingError for the others.
    """
    spec = find_spec(name)
    if spec.name != "tiny":
        with_tokenizer = [known for known in PRESETS if known == "tiny"]
        raise SettingError(
            f"{spec.name}: random weights need a tokenizer, which only {with_tokenizer[0]} brings"
        )
    processor = Processor(spec, byte_tokenizer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(spec, processor.seg_id, processor.image_id)
    return OpenedModel(model, processor, Card(spec=spec))
