"""A model on disk: a bundle of two native Hugging Face checkpoints, a projector and one small card; or the official layout.

Each half is opened by the library that owns it, strictly: a missing, unknown or misshapen tensor is an error.
Weights are read from safetensors only; nothing in a folder is executed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import dispatch_model
from safetensors import SafetensorError
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Sam2VideoModel,
)
from transformers.utils import logging as transformers_logging

from vesalius.errors import CheckpointError, OutputError, SettingError
from vesalius.files import replacing, write_json
from vesalius.lineage import versions
from vesalius.models.adapter import apply_adapter, layers_of, write_adapter
from vesalius.models.cards import ADAPTER, CARD, SOURCE, Card
from vesalius.models.components import is_frozen, take_over, write_half
from vesalius.models.config_files import SmallFiles, find_small_files
from vesalius.models.device_map import DeviceMap, home_device, return_to_device, vlm_device_map
from vesalius.models.families.table import family_of
from vesalius.models.families.tokenizers import byte_tokenizer, official_tokenizer
from vesalius.models.layout_mapping import to_bundle
from vesalius.models.lora import merge_adapter
from vesalius.models.official_config import read_spec
from vesalius.models.presets import PRESETS, find_spec
from vesalius.models.processor import Processor
from vesalius.models.quantization import Quantized, kind_of, quantize
from vesalius.models.reference import ModelRef, resolve_model
from vesalius.models.textseg import TextSegModel, assemble, build, configs
from vesalius.models.weights import AssembledWeights, load_tensor, open_weights

EXACT = ("inv_freq", ".scales")
"""Buffers that stay in float32: rotary frequencies, and scales of quantized matrices."""

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
# it says at each opening that weights which wait elsewhere are not here
logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)


@dataclass(frozen=True)
class OpenedModel:
    """A model in memory with all that is needed to use it."""

    model: TextSegModel
    processor: Processor
    card: Card
    source: SmallFiles | None = None
    """The small files of the official folder that it came from, where it did."""
    folder: Path | None = None
    """The bundle that it was opened from; None where it is of anything else, or no longer what is there."""

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA is kept beside the weights, not in them."""
        return bool(layers_of(self.model.vlm))


def open_model(
    model: str | Path | ModelRef,
    device: str | torch.device | DeviceMap = "cpu",
    dtype: torch.dtype = torch.float32,
    quantized: Quantized | None = None,
) -> OpenedModel:
    """Open a text-prompted model strictly, in eval mode, on a device or over those of a device map.

    With `quantized` the matrices of the vision-language model get 8 or 4 bits a value; a bundle that was trained over
    quantized weights opens with them in any case. Raises CheckpointError, naming the folder, for anything missing,
    unknown, misshapen or unreadable, and for a model that is no text-prompted one.
    """
    ref = resolve_model(model)
    card = ref.text_card
    if card is None:
        return _open_official(ref.folder, device, dtype, quantized)
    return _open_bundle(ref.folder, card, device, dtype, quantized)


def _open_bundle(
    folder: Path,
    card: Card,
    device: str | torch.device | DeviceMap,
    dtype: torch.dtype,
    quantized: Quantized | None,
) -> OpenedModel:
    processor = Processor(card.spec, _tokenizer(folder / "vlm"))
    has_adapter = (folder / ADAPTER).is_dir()
    if card.adapter and not has_adapter:
        raise CheckpointError(f"{folder / ADAPTER}: is missing; copy the model again")
    if has_adapter and isinstance(device, Mapping):
        raise CheckpointError(
            f"{folder}: a model that keeps a LoRA as an adapter cannot be spread over devices; "
            "of a run, merge it: vesalius train --resume RUN --set trainable.save=merged"
        )
    kind = card.quantized or quantized
    if quantized not in (None, kind):
        raise CheckpointError(
            f"{folder}: was trained over weights of {kind} and cannot be opened in {quantized}"
        )
    vlm = _open_half(
        folder / "vlm", family_of(card.spec.family).model_class, dtype, device_map="cpu" if kind else device
    )
    _shrink(vlm, kind, device)
    if has_adapter:
        apply_adapter(vlm, folder / ADAPTER)
    sam = _open_half(folder / "sam", Sam2VideoModel, dtype)
    model = assemble(vlm, sam, card.spec, processor.seg_id)
    path = folder / "projector.safetensors"
    _load_projector(model, _read_projector(path), path)
    source = find_small_files(folder / SOURCE) if (folder / SOURCE).is_dir() else None
    return OpenedModel(_placed(model, device, dtype), processor, card, source, folder)


def _open_official(
    folder: Path, device: str | torch.device | DeviceMap, dtype: torch.dtype, quantized: Quantized | None
) -> OpenedModel:
    if isinstance(device, Mapping) and "disk" in device.values():
        raise CheckpointError(
            f"{folder}: weights can wait on disk only where a bundle's files hold them; "
            f"make one with `vesalius convert {folder} OUT`"
        )
    weights = open_weights(folder)
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    spec = read_spec(folder, shapes)
    assemblies, _ = to_bundle(spec, shapes)
    state = AssembledWeights(weights, assemblies)
    processor = Processor(spec, official_tokenizer(folder))
    vlm_config, sam_config = configs(spec)

    def half(kind: Any, config: Any, prefix: str) -> PreTrainedModel:
        names = [name for name in assemblies if name.startswith(prefix)]
        tensors = {name.removeprefix(prefix): load_tensor(state, name).to(dtype) for name in names}
        place = "cpu" if quantized or prefix != "vlm." else device
        return _open_half(folder, kind, dtype, (config, tensors), place)

    vlm = half(family_of(spec.family).model_class, vlm_config, "vlm.")
    _shrink(vlm, quantized, device)
    sam = half(Sam2VideoModel, sam_config, "sam.")
    model = assemble(vlm, sam, spec, processor.seg_id)
    names = [name for name in assemblies if name.startswith("projector.")]
    projector = {name.removeprefix("projector."): load_tensor(state, name) for name in names}
    _load_projector(model, projector, folder)
    return OpenedModel(
        _placed(model, device, dtype),
        processor,
        Card(spec=spec, training_images=None),
        find_small_files(folder),
    )


def _shrink(vlm: PreTrainedModel, kind: Quantized | None, device: str | torch.device | DeviceMap) -> None:
    """Quantize a half that was opened on the CPU, and bring it to its devices, where a kind is asked for."""
    if kind is None:
        return
    if not isinstance(device, Mapping):
        quantize(vlm, kind, device)
        return
    if {"cpu", "disk"} & set(device.values()) - {home_device(device)}:
        raise CheckpointError("quantized weights cannot wait in another memory; put all of them on devices")
    quantize(vlm, kind)
    dispatch_model(vlm, vlm_device_map(device), skip_keys=vlm._skip_keys_device_placement)


def _placed(model: TextSegModel, device: str | torch.device | DeviceMap, dtype: torch.dtype) -> TextSegModel:
    """The model in eval mode on its device; its parameters in that dtype, its rotary frequencies in float32.

    `model.to(dtype)` would round these too: in bfloat16 the angle of token 3300 is wrong by up to 3.8.
    """
    # a spread half was opened where it belongs, in its dtype
    parts = (model.projector, model.sam) if isinstance(device, Mapping) else (model,)
    home = home_device(device) if isinstance(device, Mapping) else device
    for part in parts:
        for parameter in part.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for name, buffer in part.named_buffers():
            if not name.endswith(EXACT) and buffer.is_floating_point():
                buffer.data = buffer.data.to(dtype)
        part.to(home)
    if isinstance(device, Mapping):
        return_to_device(model.vlm, home_device(device))
    return model.eval()


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: missing; the bundle is incomplete, copy or convert it again")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a broken file makes the libraries raise nearly anything
        raise _cannot_be_opened(folder, error) from error


def _open_half(
    folder: Path,
    kind: Any,
    dtype: torch.dtype,
    state: tuple[Any, dict[str, torch.Tensor]] | None = None,
    device_map: str | torch.device | DeviceMap = "cpu",
) -> PreTrainedModel:
    """A half from its folder, or from the configuration and tensors in `state`, which come from `folder`.

    Spread over devices where there is a map of them, and else in the CPU's memory.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: missing; the bundle is incomplete, copy or convert it again")
    source: dict[str, Any] = (
        {"pretrained_model_name_or_path": folder, "use_safetensors": True}
        if state is None
        else {"pretrained_model_name_or_path": None, "config": state[0], "state_dict": state[1]}
    )
    if isinstance(device_map, Mapping):
        home_device(device_map)
        source["device_map"] = vlm_device_map(device_map)
    try:
        half, info = kind.from_pretrained(
            **source, dtype=dtype, output_loading_info=True, local_files_only=True
        )
    except Exception as error:  # a broken file makes the libraries raise nearly anything
        raise _cannot_be_opened(folder, error) from error
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


def _load_projector(model: TextSegModel, tensors: dict[str, torch.Tensor], place: Path) -> None:
    try:
        model.projector.load_state_dict(tensors)
    except RuntimeError as error:
        raise _cannot_be_opened(place, error) from error


def _read_projector(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise _cannot_be_opened(path, error) from error


def _cannot_be_opened(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be opened ({' '.join(str(error).split())[:300]})")


def merged(opened: OpenedModel) -> OpenedModel:
    """The same model, whose parts are changed, without an adapter and plain: it computes the same."""
    merge_adapter(opened.model.vlm)
    return replace(opened, card=opened.card.changed(quantized=None), folder=None)


def save_bundle(folder: Path, opened: OpenedModel) -> None:
    """Write a bundle as a whole or not at all; one at that place is replaced."""
    with replacing(folder) as aside:
        write_bundle(aside, opened, opened.card)


def write_bundle(folder: Path, opened: OpenedModel, card: Card, like: Path | None = None) -> None:
    """Write the files of a bundle with that card into `folder`, which is made; an adapter stays one, in `adapter/`.

    `like` is a bundle with the same weights in each half of which nothing trains: the files of these are taken over
    from it, and cost nothing where it is an earlier checkpoint of the run. CheckpointError for a model of 8 bits.
    """
    model = opened.model
    kind = kind_of(model.vlm)
    if kind == "8bit":
        raise CheckpointError(f"{folder}: a model of 8 bits is for prediction and cannot be saved")
    folder.mkdir(parents=True)
    projector = {name: tensor.contiguous() for name, tensor in model.projector.state_dict().items()}
    try:
        for name, half in (("vlm", model.vlm), ("sam", model.sam)):
            if like is not None and (like / name).is_dir() and is_frozen(half):
                take_over(like / name, folder / name)
                continue
            write_half(half, folder / name)
            if name == "vlm":
                opened.processor.tokenizer.save_pretrained(folder / name)
        if opened.has_adapter:
            write_adapter(model.vlm, folder / ADAPTER)
        safetensors.torch.save_file(projector, folder / "projector.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # what it makes of a full disk
        raise OutputError(f"{folder}: cannot be written ({error})") from error
    if opened.source is not None:
        opened.source.copy_to(folder / SOURCE)
    card = card.changed(versions=versions(), quantized=kind, adapter=opened.has_adapter)
    write_json(folder / CARD, card.model_dump(mode="json"))


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
        model = build(spec, processor.seg_id)
    return OpenedModel(model, processor, Card(spec=spec))
