"""Open official Sa2VA folders; open and write bundles of two native Hugging Face checkpoints, a projector and a card.

Each component is opened by its own library, strictly: a missing, unknown or misshapen tensor is an error.
Weights are loaded from safetensors files only; no code of a model folder is executed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Sam2VideoModel
from transformers.utils import logging as transformers_logging

from vesalius.errors import CheckpointError, SettingError
from vesalius.files import replacing, write_json
from vesalius.lineage import versions
from vesalius.models.adapter import apply_adapter, layers_of, write_adapter
from vesalius.models.cards import ADAPTER, CARD, SOURCE, Card
from vesalius.models.components import is_frozen, link_or_copy, write_component
from vesalius.models.config_files import ConfigFiles, find_config_files
from vesalius.models.device_map import DeviceMap, home_device, return_to_device, vlm_device_map
from vesalius.models.families.table import family_of
from vesalius.models.families.tokenizers import byte_tokenizer, official_tokenizer
from vesalius.models.layout_mapping import to_bundle
from vesalius.models.lora import merge_adapter
from vesalius.models.official_config import read_spec
from vesalius.models.presets import find_spec
from vesalius.models.processor import Processor
from vesalius.models.quantization import Quantized, kind_of, quantize
from vesalius.models.reference import TINY, ModelRef, resolve_model
from vesalius.models.tensor_differences import SHOWN, list_differences
from vesalius.models.textseg import TextSegModel, assemble, build, configs
from vesalius.models.weights import AssembledWeights, load_tensor, open_weights, read_tensors, write_tensors
from vesalius.names import list_names

EXACT = ("inv_freq", ".scales")
"""Name suffixes of buffers that stay in float32: rotary frequencies, and scales of quantized matrices."""


@dataclass(frozen=True)
class OpenedModel:
    """A model in memory, its processor and its card."""

    model: TextSegModel
    processor: Processor
    card: Card
    source: ConfigFiles | None = None
    """Non-weight files of the official folder that the model comes from; None for another origin."""
    folder: Path | None = None
    """The bundle that the model was opened from; None for another origin, or once its weights have changed."""

    @property
    def has_adapter(self) -> bool:
        """Whether the vision-language model has a LoRA adapter."""
        return bool(layers_of(self.model.vlm))


def open_model(
    model: str | Path | ModelRef,
    device: str | torch.device | DeviceMap = "cpu",
    dtype: torch.dtype = torch.float32,
    quantized: Quantized | None = None,
) -> OpenedModel:
    """Open a text-prompted model strictly, in eval mode, on one device or spread by a device map.

    `quantized` stores the matrices of the vision-language model in 8 or 4 bits per value; a bundle trained on quantized
    weights always opens quantized. CheckpointError, naming the folder, for anything missing, unknown, misshapen or
    unreadable, and for a model that is not text-prompted.
    """
    ref = resolve_model(model)
    card = ref.text_card
    if card is None:
        return _open_official(ref.folder, device, dtype, quantized)
    return _open_bundle(ref.folder, card, device, dtype, quantized)


def _open_bundle(
    folder: Path, card: Card, device: str | torch.device | DeviceMap, dtype: torch.dtype, quantized: Quantized | None
) -> OpenedModel:
    processor = Processor(card.spec, _tokenizer(folder / "vlm"))
    has_adapter = (folder / ADAPTER).is_dir()
    if card.adapter and not has_adapter:
        raise _incomplete(folder / ADAPTER)
    if has_adapter and isinstance(device, Mapping):
        raise CheckpointError.at(
            folder,
            "a model with a LoRA adapter cannot be spread over devices; merge it, for a run with "
            "vesalius train --resume RUN --set trainable.save=merged",
            code="wrong_model_kind",
        )
    kind = card.quantized or quantized
    if quantized not in (None, kind):
        raise CheckpointError.at(
            folder,
            f"was trained on {kind} weights and cannot be opened in {quantized}",
            code="unsupported_quantization",
        )
    model_class = family_of(card.spec.family).model_class
    vlm = _open_component(folder / "vlm", model_class, dtype, device_map="cpu" if kind else device)
    _quantize(vlm, kind, device)
    if has_adapter:
        apply_adapter(vlm, folder / ADAPTER)
    sam = _open_component(folder / "sam", Sam2VideoModel, dtype)
    model = assemble(vlm, sam, card.spec, processor.seg_id)
    path = folder / "projector.safetensors"
    _load_projector(model, read_tensors(path), path)
    source = find_config_files(folder / SOURCE) if (folder / SOURCE).is_dir() else None
    return OpenedModel(_to_device(model, device, dtype), processor, card, source, folder)


def _open_official(
    folder: Path, device: str | torch.device | DeviceMap, dtype: torch.dtype, quantized: Quantized | None
) -> OpenedModel:
    if isinstance(device, Mapping) and "disk" in device.values():
        raise CheckpointError.at(
            folder,
            f"weights can be offloaded to disk only from a bundle; make one with `vesalius convert {folder} OUT`",
            code="wrong_model_kind",
        )
    weights = open_weights(folder)
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    spec = read_spec(folder, shapes)
    assemblies, _ = to_bundle(spec, shapes)
    state = AssembledWeights(weights, assemblies)
    processor = Processor(spec, official_tokenizer(folder))
    vlm_config, sam_config = configs(spec)

    def component(kind: Any, config: Any, prefix: str) -> PreTrainedModel:
        names = [name for name in assemblies if name.startswith(prefix)]
        tensors = {name.removeprefix(prefix): load_tensor(state, name).to(dtype) for name in names}
        device_map = "cpu" if quantized or prefix != "vlm." else device
        return _open_component(folder, kind, dtype, (config, tensors), device_map)

    vlm = component(family_of(spec.family).model_class, vlm_config, "vlm.")
    _quantize(vlm, quantized, device)
    sam = component(Sam2VideoModel, sam_config, "sam.")
    model = assemble(vlm, sam, spec, processor.seg_id)
    names = [name for name in assemblies if name.startswith("projector.")]
    projector = {name.removeprefix("projector."): load_tensor(state, name) for name in names}
    _load_projector(model, projector, folder)
    return OpenedModel(
        _to_device(model, device, dtype), processor, Card(spec=spec, training_images=None), find_config_files(folder)
    )


def _quantize(vlm: PreTrainedModel, kind: Quantized | None, device: str | torch.device | DeviceMap) -> None:
    """Quantize a model in CPU memory and move it to its devices; do nothing if `kind` is None."""
    if kind is None:
        return
    if not isinstance(device, Mapping):
        quantize(vlm, kind, device)
        return
    if {"cpu", "disk"} & set(device.values()) - {home_device(device)}:
        raise CheckpointError(
            "quantized weights cannot be offloaded; remove cpu and disk from the device map", code="invalid_device_map"
        )
    quantize(vlm, kind)
    dispatch_model(vlm, vlm_device_map(device), skip_keys=vlm._skip_keys_device_placement)


def _to_device(model: TextSegModel, device: str | torch.device | DeviceMap, dtype: torch.dtype) -> TextSegModel:
    """Move the model to its device in eval mode, with parameters in `dtype` and rotary frequencies in float32.

    `model.to(dtype)` would round the frequencies too: in bfloat16 the angle at position 3300 is off by up to 3.8 rad.
    """
    # a spread model was already opened on its devices in `dtype`
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
        raise _incomplete(folder)
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # libraries raise many exception types for damaged files
        raise _unreadable(folder, error) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings and progress bars of transformers and accelerate within the block."""
    accelerate = logging.getLogger("accelerate.big_modeling")
    levels = transformers_logging.get_verbosity(), accelerate.level
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # accelerate warns that offloaded weights are not in memory
    accelerate.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(levels[0])
        accelerate.setLevel(levels[1])
        if bars:
            transformers_logging.enable_progress_bar()


def _open_component(
    folder: Path,
    kind: Any,
    dtype: torch.dtype,
    state: tuple[Any, dict[str, torch.Tensor]] | None = None,
    device_map: str | torch.device | DeviceMap = "cpu",
) -> PreTrainedModel:
    """Open a component from its folder, or from a configuration and tensors (`state`) read from `folder`.

    A device map spreads it over devices; otherwise it is opened in CPU memory.
    """
    if not folder.is_dir():
        raise _incomplete(folder)
    source: dict[str, Any] = (
        {"pretrained_model_name_or_path": folder, "use_safetensors": True}
        if state is None
        else {"pretrained_model_name_or_path": None, "config": state[0], "state_dict": state[1]}
    )
    if isinstance(device_map, Mapping):
        home_device(device_map)
        source["device_map"] = vlm_device_map(device_map)
    try:
        with _quiet():
            component, info = kind.from_pretrained(
                **source, dtype=dtype, output_loading_info=True, local_files_only=True
            )
    except Exception as error:  # libraries raise many exception types for damaged files
        raise _unreadable(folder, error) from error
    problems = [
        f"{len(info[name])} {name.replace('_', ' ')}: {list_names(sorted(map(str, info[name])), SHOWN)}"
        for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[name]
    ]
    if problems:
        raise CheckpointError.at(
            folder, f"the weights do not fit the configuration: {'; '.join(problems)}", code="weights_mismatch"
        )
    return component


def _load_projector(model: TextSegModel, tensors: dict[str, torch.Tensor], path: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.projector.state_dict().items()}
    if wrong := list_differences({name: tuple(each.shape) for name, each in tensors.items()}, shapes):
        raise CheckpointError.at(
            path, f"the weights of the [SEG] projector do not fit the configuration: {wrong}", code="weights_mismatch"
        )
    model.projector.load_state_dict(tensors)


def _incomplete(path: Path) -> CheckpointError:
    return CheckpointError.at(
        path, "missing; the bundle is incomplete, copy or convert it again", code="incomplete_model"
    )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:300]
    return CheckpointError.at(path, f"cannot be opened ({reason})", code="damaged_model")


def merged(opened: OpenedModel) -> OpenedModel:
    """The model with its adapter merged and its matrices dequantized, in place."""
    merge_adapter(opened.model.vlm)
    return replace(opened, card=opened.card.changed(quantized=None), folder=None)


def save_bundle(folder: Path, opened: OpenedModel) -> None:
    """Write a bundle atomically, replacing an existing one."""
    with replacing(folder) as temporary:
        write_bundle(temporary, opened, opened.card)


def write_bundle(folder: Path, opened: OpenedModel, card: Card, like: Path | None = None) -> None:
    """Write a bundle with `card` into the new folder `folder`; an adapter is written to `adapter/`, not merged.

    `like` is a bundle with equal weights in all frozen components; their files are linked or copied from it, so that the
    checkpoints of a run share disk space. CheckpointError for an 8-bit model.
    """
    model = opened.model
    kind = kind_of(model.vlm)
    if kind == "8bit":
        raise CheckpointError.at(
            folder, "an 8-bit model is for prediction only and cannot be saved", code="unsupported_quantization"
        )
    folder.mkdir(parents=True)
    for name, component in (("vlm", model.vlm), ("sam", model.sam)):
        if like is not None and (like / name).is_dir() and is_frozen(component):
            link_or_copy(like / name, folder / name)
            continue
        with _quiet():
            write_component(component, folder / name)
        if name == "vlm":
            opened.processor.tokenizer.save_pretrained(folder / name)
    if opened.has_adapter:
        write_adapter(model.vlm, folder / ADAPTER)
    write_tensors(model.projector.state_dict(), folder / "projector.safetensors")
    if opened.source is not None:
        opened.source.copy_to(folder / SOURCE)
    card = card.changed(versions=versions(), quantized=kind, adapter=opened.has_adapter)
    write_json(folder / CARD, card.model_dump(mode="json"))


def new_model(name: str, seed: int) -> OpenedModel:
    """A preset with random weights, in training mode.

    SettingError for any preset except `tiny`, the only one with a packaged tokenizer.
    """
    spec = find_spec(name)
    if spec.name != TINY:
        raise SettingError(
            f"{spec.name}: a new model needs a packaged tokenizer, and only {TINY} has one", code="no_tokenizer"
        )
    processor = Processor(spec, byte_tokenizer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(spec, processor.seg_id)
    return OpenedModel(model, processor, Card(spec=spec, phrases=()))
