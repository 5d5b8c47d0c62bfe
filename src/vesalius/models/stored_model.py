"""A model on disk in either layout: lazy views of its tensors under canonical and official names, and their hashes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import Sam2VideoModel

from vesalius.errors import CheckpointError, VesaliusError
from vesalius.lineage import (
    TensorHash,
    cache_bundle_hashes,
    cache_hashes,
    cached_hashes,
    fingerprint_hashes,
    hash_bundle,
    hash_tensors,
    locate_bundle_tensors,
)
from vesalius.models.cards import ADAPTER, CARD
from vesalius.models.config_files import CONFIG
from vesalius.models.families.table import family_of
from vesalius.models.layout_mapping import to_bundle, to_official
from vesalius.models.official_config import read_spec
from vesalius.models.presets import find_published, find_spec
from vesalius.models.reference import Layout, ModelRef, resolve_model
from vesalius.models.specs import ModelSpec, TensorShape
from vesalius.models.tensor_differences import list_differences
from vesalius.models.textseg import TextSegModel, assemble, configs
from vesalius.models.weights import AssembledWeights, FileWeights, Weights, open_weights
from vesalius.tensorfiles import find_shards


@dataclass(frozen=True)
class StoredModel:
    """A model on disk with lazy views of its weights."""

    folder: Path
    layout: Layout
    spec: ModelSpec
    weights: Weights
    """Weights under canonical names, as in a bundle."""
    renamed: Mapping[str, tuple[str, ...]]
    """Name on disk -> canonical names of the tensors made from it."""
    dropped: Mapping[str, str]
    """Name on disk -> reason why it has no canonical name."""

    @cached_property
    def official(self) -> AssembledWeights:
        """The weights under official names."""
        return official_view(self.spec, self.weights)


def open_stored(model: str | Path | ModelRef) -> StoredModel:
    """Open MODEL without reading its weights; CheckpointError if it is missing, damaged or of an unknown kind."""
    ref = resolve_model(model)
    return _open_bundle(ref) if ref.is_bundle else _open_official(ref.folder)


def spec_of(model: str | Path | ModelRef) -> ModelSpec:
    """The spec of a text-prompted model, read without its weights; for a published name, the preset's spec."""
    ref = resolve_model(model, weights=False)
    if ref.origin == "published":
        return find_spec(ref.name)
    card = ref.text_card
    return read_spec(ref.folder, shapes_of(open_weights(ref.folder))) if card is None else card.spec


def _open_bundle(ref: ModelRef) -> StoredModel:
    folder, card = ref.folder, ref.text_card
    assert card is not None
    weights = FileWeights(locate_bundle_tensors(folder))
    if any(name.startswith(f"{ADAPTER}.") for name in weights.tensors):
        raise CheckpointError.at(
            folder,
            "has a LoRA adapter; merge it first: for a run with vesalius train --resume RUN --set "
            "trainable.save=merged, else by converting its training checkpoint without --keep-adapter",
            code="wrong_model_kind",
        )
    names = {name: (name,) for name in weights.tensors}
    return StoredModel(folder, "vesalius", card.spec, weights, names, {})


def _open_official(folder: Path) -> StoredModel:
    files = open_weights(folder)
    with _building(folder):
        spec = read_spec(folder, shapes_of(files))
        weights, dropped = bundle_view(spec, files, folder)
    return StoredModel(folder, "sa2va", spec, weights, weights.uses(), dropped)


@contextmanager
def _building(path: Path) -> Iterator[None]:
    """Raise CheckpointError for library errors within the block, which an invalid configuration causes."""
    try:
        yield
    except VesaliusError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError.at(
            path, f"the configuration does not describe a supported model ({reason})", code="invalid_model_config"
        ) from error


def bundle_view(spec: ModelSpec, official: Weights, path: Path) -> tuple[AssembledWeights, dict[str, str]]:
    """Official weights under canonical names, and the reason for each dropped name.

    CheckpointError, naming `path`, for tensors that a model of this spec does not have.
    """
    shapes = shapes_of(official)
    try:
        assemblies, dropped = to_bundle(spec, shapes)
    except CheckpointError as error:
        raise CheckpointError.at(path, f"{error}{_hint(spec, shapes)}", code=error.code, field=error.field) from error
    return AssembledWeights(official, assemblies), dropped


def official_view(spec: ModelSpec, weights: Weights) -> AssembledWeights:
    """Canonical weights under official names."""
    return AssembledWeights(weights, to_official(spec, shapes_of(weights)))


def shapes_of(weights: Weights) -> dict[str, TensorShape]:
    """Name -> shape of each tensor."""
    return {name: tensor.shape for name, tensor in weights.tensors.items()}


def fingerprint_model(model: str | Path | ModelRef) -> str:
    """The fingerprint of the weights, equal for a bundle and for the official folder it was converted from."""
    return fingerprint_hashes(hash_model(model))


def hash_model(model: str | Path | ModelRef) -> dict[str, TensorHash]:
    """Canonical name -> hash of each tensor of MODEL; hashes are cached by path, size and modification time."""
    ref = resolve_model(model)
    if ref.is_bundle:
        return hash_bundle(ref.folder)
    stored = _open_official(ref.folder)
    lines = cached_hashes(_hashed_files(ref.folder), lambda: hash_weights(stored.weights))
    return {line[0]: line for line in lines}


def remember_model(folder: Path, lines: Mapping[str, TensorHash]) -> None:
    """Cache the hashes of a newly written model, by canonical name, for `hash_model`."""
    if (folder / CARD).is_file():
        cache_bundle_hashes(folder, lines)
    else:
        cache_hashes(_hashed_files(folder), lines.values())


def _hashed_files(folder: Path) -> list[Path]:
    # the configuration determines how the rows of a tensor are split
    return [*find_shards(folder), folder / CONFIG]


def hash_weights(weights: Weights) -> list[TensorHash]:
    """Read and hash each tensor."""
    return hash_tensors(weights.tensors, weights.read)


def empty_model(spec: ModelSpec) -> TextSegModel:
    """The model of a spec on the meta device: names, shapes and configurations, without memory for weights."""
    vlm_config, sam_config = configs(spec)
    with torch.device("meta"):
        vlm = family_of(spec.family).model_class(vlm_config)
        return assemble(vlm, Sam2VideoModel(sam_config), spec, seg_id=0)


def expected_shapes(spec: ModelSpec) -> dict[str, TensorShape]:
    """Canonical name -> shape of each tensor of the spec's model."""
    expected = {}
    family = family_of(spec.family)
    for name, tensor in empty_model(spec).state_dict().items():
        part, _, inside = name.partition(".")
        saved = family.saved_name(inside) if part == "vlm" else inside
        expected[f"{part}.{saved}"] = tuple(tensor.shape)
    return expected


def check_fit(spec: ModelSpec, shapes: Mapping[str, TensorShape], path: Path) -> None:
    """Raise CheckpointError unless tensor names and shapes are exactly those of the spec's model.

    The message names `path`, the first missing, unknown and misshapen tensors, and the published model with these tensors,
    if there is one.
    """
    with _building(path):
        expected = expected_shapes(spec)
    if table := list_differences(shapes, expected):
        raise CheckpointError.at(
            path,
            f"the tensors do not match the configuration ({spec.name}): {table}{_hint(spec, shapes)}",
            code="weights_mismatch",
        )


def _hint(spec: ModelSpec, shapes: Mapping[str, TensorShape]) -> str:
    published = find_published(shapes)
    return "" if published in (None, spec.name) else f"; the sizes match {published}"
