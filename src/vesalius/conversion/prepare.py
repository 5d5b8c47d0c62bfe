"""Open and check everything that a conversion needs, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from vesalius.conversion.adapter import adapter_weights
from vesalius.conversion.lora import MergedWeights
from vesalius.conversion.training_checkpoint import LORA_NAME, Alpha, TrainingCheckpoint, open_training_checkpoint
from vesalius.errors import CheckpointError, SettingError
from vesalius.models.cards import ADAPTER, SOURCE
from vesalius.models.config_files import CONFIG, ConfigFiles, find_config_files, is_official
from vesalius.models.families.tokenizers import official_tokenizer
from vesalius.models.official_config import read_spec
from vesalius.models.processor import Processor
from vesalius.models.reference import Layout, ModelRef
from vesalius.models.specs import ModelSpec
from vesalius.models.stored_model import StoredModel, bundle_view, check_fit, official_view, open_stored, shapes_of
from vesalius.models.tensor_differences import list_differences
from vesalius.models.textseg import configs
from vesalius.models.weights import AssembledWeights, HashedWeights

COPIED = "a copy of another tensor, which the official layout stores once"


@dataclass(frozen=True)
class Training:
    """A training checkpoint, and how its LoRA is converted."""

    checkpoint: TrainingCheckpoint
    alpha: Alpha | None
    keeps_adapter: bool
    merged: MergedWeights


@dataclass(frozen=True)
class Conversion:
    """The source model, and the weights and files to write."""

    to: Layout
    model: StoredModel
    """The source model; for a training checkpoint, its base with the trained weights applied."""
    training: Training | None
    canonical: HashedWeights
    """The weights under bundle names, hashed while they are read."""
    outgoing: HashedWeights | AssembledWeights
    """The weights under the names of the target layout."""
    config_files: ConfigFiles

    @property
    def n_weight_bytes(self) -> int:
        """Size of the weights to write."""
        return sum(tensor.n_bytes for tensor in self.outgoing.tensors.values())

    @property
    def n_bytes(self) -> int:
        """Size of everything to write; the estimated size of an adapter is that of its checkpoint."""
        adapter = 0
        if self.training is not None and self.training.keeps_adapter:
            adapter = self.training.checkpoint.path.stat().st_size
        return self.n_weight_bytes + self.config_files.n_bytes + adapter

    @property
    def key_mapping(self) -> tuple[Mapping[str, tuple[str, ...]], Mapping[str, str]]:
        """Two mappings: source key -> keys in the result, and dropped source key -> reason."""
        if isinstance(self.outgoing, HashedWeights) or self.training is not None:
            return self.model.renamed, self.model.dropped
        renamed = self.outgoing.uses()
        return renamed, {name: COPIED for name in self.canonical.tensors if name not in renamed}


def prepare(
    source: str | Path,
    to: Layout,
    base: ModelRef | None = None,
    keep_adapter: bool = False,
    lora_alpha: float | None = None,
) -> Conversion:
    """Open everything that a conversion needs, without reading weights.

    SettingError for conflicting arguments; CheckpointError for a source that is damaged, unknown, or does not fit its
    configuration or base.
    """
    training = None
    if Path(source).is_file():
        model, training = _open_training(Path(source), to, base, keep_adapter, lora_alpha)
    else:
        model = _open_whole(source, to, keep_adapter, lora_alpha)
    check_fit(model.spec, shapes_of(model.weights), model.folder)
    canonical = HashedWeights(model.weights)
    if to == "vesalius":
        return Conversion(to, model, training, canonical, canonical, _files_for_bundle(model))
    outgoing = official_view(model.spec, canonical)
    return Conversion(to, model, training, canonical, outgoing, _files_for_official(model, base))


def _open_whole(source: str | Path, to: Layout, keep_adapter: bool, lora_alpha: float | None) -> StoredModel:
    if keep_adapter or lora_alpha is not None:
        raise _conflict(source, "is not a training checkpoint (.pth); leave out --keep-adapter and --lora-alpha")
    model = open_stored(source)
    if model.layout == to:
        kind, other = ("a bundle", "sa2va") if to == "vesalius" else ("in the official layout", "vesalius")
        raise _conflict(source, f"is {kind} already; use --to {other} for the other layout", "to")
    return model


def _conflict(path: str | Path, reason: str, field: str | None = None) -> SettingError:
    return SettingError.at(path, reason, code="conflicting_settings", field=field)


def _open_training(
    path: Path, to: Layout, base: ModelRef | None, keep_adapter: bool, lora_alpha: float | None
) -> tuple[StoredModel, Training]:
    """The base with the checkpoint's trained weights applied, and the training."""
    if base is None:
        reason = "holds only the trained tensors of a model; name the model it was trained from with --base MODEL"
        raise SettingError.at(path, reason, code="missing_base", field="base")
    if keep_adapter and to == "sa2va":
        reason = "the official layout cannot hold an adapter; leave out --keep-adapter"
        raise _conflict(path, reason, "keep_adapter")
    checkpoint = open_training_checkpoint(path)
    alpha = checkpoint.find_alpha(lora_alpha)
    if keep_adapter and alpha is None:
        raise _conflict(path, "holds no LoRA to keep as an adapter; leave out --keep-adapter", "keep_adapter")
    before = open_stored(base)
    merged = MergedWeights(before.official, checkpoint, None if keep_adapter or alpha is None else alpha.value)
    weights, _ = bundle_view(before.spec, merged, path)
    targets = dict(weights.uses()) if to == "vesalius" else {}
    if keep_adapter:
        for factor, names in adapter_weights(checkpoint, before.spec).uses().items():
            targets[factor] = tuple(f"{ADAPTER}.{name}" for name in names)
    merged_into = {name: _merged_into(official, keep_adapter) for name, official in checkpoint.renamed.items()}
    renamed = {name: targets.get(target, (target,)) for name, target in merged_into.items()}
    model = StoredModel(before.folder, before.layout, before.spec, weights, renamed, checkpoint.dropped)
    return model, Training(checkpoint, alpha, keep_adapter, merged)


def _merged_into(name: str, keep_adapter: bool) -> str:
    """Official key of the weight that contains a tensor after conversion: for LoRA, the weight it changes."""
    lora = LORA_NAME.fullmatch(name)
    if lora is None:
        return name
    return f"{lora[1]}.weight.{lora[2]}" if keep_adapter else f"{lora[1]}.weight"


def open_tokenizer(model: StoredModel) -> PreTrainedTokenizerFast:
    """The tokenizer of a model in either layout; CheckpointError if it has none."""
    return official_tokenizer(model.folder if model.layout == "sa2va" else model.folder / "vlm")


def _files_for_bundle(model: StoredModel) -> ConfigFiles:
    try:
        Processor(model.spec, open_tokenizer(model))
    except SettingError as error:  # the tokenizer lacks a required token
        raise CheckpointError.at(model.folder, f"{error}", code=error.code) from error
    if model.layout == "sa2va":
        return find_config_files(model.folder)
    source = model.folder / SOURCE
    return find_config_files(source) if source.is_dir() else ConfigFiles(source, (), {})


def _files_for_official(model: StoredModel, base: ModelRef | None) -> ConfigFiles:
    """Configuration files of the official layout: the model's own, else those of the base.

    The files must describe this model, or the official code would build another model from its weights.
    """
    folder = _official_folder(model)
    if not is_official(folder) and base is not None:
        other = open_stored(base)
        if table := list_differences(shapes_of(other.weights), shapes_of(model.weights)):
            raise CheckpointError(
                f"{base.name}: does not have the tensors of {model.folder}: {table}", code="wrong_base", path=base.path
            )
        folder = _official_folder(other)
    if not is_official(folder):
        raise SettingError.at(
            folder,
            "is missing, and it would hold the configuration files of the official layout; name an official "
            "folder of the same model with --base",
            code="missing_base",
            field="base",
        )
    found = read_spec(folder, shapes_of(model.official))
    if wrong := next(_disagreements(_facts(found), _facts(model.spec)), None):
        raise CheckpointError.at(
            folder / CONFIG, f"describes another model than {model.folder}: {wrong}", code="wrong_base"
        )
    return find_config_files(folder)


def _official_folder(model: StoredModel) -> Path:
    return model.folder if model.layout == "sa2va" else model.folder / SOURCE


def _facts(spec: ModelSpec) -> dict[str, Any]:
    """All configuration values, defaults included, that determine the outputs for given weights."""
    vlm, sam = configs(spec)
    return {
        "family": spec.family,
        "vlm": vlm.to_dict(),
        "sam": sam.to_dict(),
        "tile_size": spec.tile_size,
        "max_tiles": spec.max_tiles,
        "seg_before_norm": spec.seg_before_norm,
        "chat": spec.prompt.chat,
    }


def _disagreements(found: Any, wanted: Any, key: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted(found.keys() | wanted.keys()):
            yield from _disagreements(found.get(name), wanted.get(name), f"{key}.{name}".lstrip("."))
    elif found != wanted:
        yield f"{key} is {found!r} there and {wanted!r} here"
