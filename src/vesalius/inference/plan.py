"""Memory plans: bytes by component, devices, dtype, batch size and tile of a model, each with a reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vesalius.config import apply_changes, make_settings
from vesalius.errors import CheckpointError, SettingError
from vesalius.inference.fitting import MAX_BATCH, PlanTask, PredictionSettings, TrainingSettings
from vesalius.inference.footprint import GATHERED, PassMemory, video_memory
from vesalius.inference.placement import (
    GIB,
    Device,
    Load,
    Placement,
    find_cpu,
    find_gpus,
    parse_gpus,
    parse_size,
    reserve_of,
)
from vesalius.inference.predictor import MAX_NEW_TOKENS
from vesalius.models.cards import ADAPTER
from vesalius.models.device_map import DeviceMap
from vesalius.models.families.table import family_of
from vesalius.models.presets import PRESETS, find_spec
from vesalius.models.reference import ModelRef, resolve_model
from vesalius.models.specs import ModelSpec
from vesalius.models.stored_model import empty_model, spec_of
from vesalius.models.trainable import CHECKPOINTABLE, TrainableSettings
from vesalius.segmenter import Purpose

SETTINGS: dict[str, type[PredictionSettings] | type[TrainingSettings]] = {
    "predict": PredictionSettings,
    "train": TrainingSettings,
}
MAX_SUGGESTED = 8
"""Maximum number of GPUs that a remedy suggests: one machine."""


@dataclass(frozen=True)
class Amount:
    """Bytes of one kind, for one component or phase."""

    kind: str
    of: str
    size: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """Memory plan of a model: devices, dtype, batch size and tile, with reasons."""

    model: str
    purpose: Purpose
    dtype: str
    quantization: str | None
    batch_size: int
    tile: int
    """Side of the sliding windows on large images, in pixels."""
    device_map: dict[str, int | str] | None
    """Device of each component; None if the model does not fit. In training all GPUs have the map of the first."""
    loads: tuple[Load, ...]
    """Bytes on each device in use."""
    offloaded: dict[str, int]
    """`cpu` or `disk` -> bytes of weights stored there."""
    copies: int
    """Number of model copies that the devices hold; the images are divided among them."""
    amounts: tuple[Amount, ...]
    need: int
    """Bytes on a single device: weights, optimizer state and the largest phase."""
    reasons: dict[str, str]
    remedies: tuple[str, ...]
    """Single changes that make the model fit, or fit without offloading."""

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values, for `--json`."""
        loads = [
            {**asdict(load), "device": load.device.name, "size": load.device.size, "total": load.total}
            for load in self.loads
        ]
        return {**asdict(self), "loads": loads, "fits": self.device_map is not None}


def make_plan(
    model: str | Path | ModelRef, gpus: str | None = None, purpose: Purpose = "predict", changes: Sequence[str] = ()
) -> Plan:
    """Plan for MODEL: a bundle, a run, an official folder, or a published name (no weights needed).

    `gpus` is a text such as 4x24GiB; None means the GPUs that torch sees, or else the CPU. `changes` such as
    batch_size=8 set fields of `PredictionSettings` or `TrainingSettings`. SettingError for an unknown model, GPU or
    setting; CheckpointError for a bundle with an adapter.
    """
    settings = make_settings(SETTINGS[purpose], apply_changes({}, changes), "--set")
    ref = resolve_model(model, weights=False)
    spec = _read_spec(ref)
    cpu = find_cpu()
    if isinstance(settings, PredictionSettings) and settings.cpu_memory is not None:
        cpu = Device("cpu", parse_size(settings.cpu_memory, "--set cpu_memory"))
    task = PlanTask(spec, settings, find_gpus() if gpus is None else parse_gpus(gpus), cpu)
    if isinstance(settings, TrainingSettings) and settings.sharded and len(task.gpus) < 2:
        raise SettingError(
            f"sharded=true needs at least 2 GPUs, but there are {len(task.gpus)}; name them, for example "
            "--gpus 4x80GiB",
            code="conflicting_settings",
            field="sharded",
        )
    return plan_task(task, ref.name, on_disk=ref.origin == "published" or ref.is_bundle)


def device_and_dtype(plan: Plan) -> tuple[str | DeviceMap, torch.dtype]:
    """Device or device map, and dtype, for `open_model`.

    SettingError if the model does not fit, or if this machine lacks the planned GPUs.
    """
    if plan.device_map is None:
        raise SettingError(f"{plan.model} does not fit; would fit: {'; or '.join(plan.remedies)}", code="does_not_fit")
    count = torch.cuda.device_count()
    if any(isinstance(device, int) and device >= count for device in plan.device_map.values()):
        needed = ", ".join(load.device.name for load in plan.loads)
        raise SettingError(
            f"the plan for {plan.model} needs {needed}; torch sees {count} GPUs on this machine",
            code="no_device",
            field="gpus",
        )
    whole = plan.device_map.get("")
    dtype: torch.dtype = getattr(torch, plan.dtype)
    return (plan.device_map if whole is None else f"cuda:{whole}" if isinstance(whole, int) else whole), dtype


def _read_spec(ref: ModelRef) -> ModelSpec:
    if ref.is_bundle and (ref.folder / ADAPTER).is_dir():
        raise CheckpointError(
            f"{ref.folder}: has a separate LoRA adapter, which a plan cannot count; merge the adapter of a run with "
            "vesalius train --resume RUN --set trainable.save=merged",
            code="wrong_model_kind",
            path=ref.folder,
        )
    return spec_of(ref)


def plan_task(task: PlanTask, name: str, on_disk: bool) -> Plan:
    """Plan for a task; `on_disk` allows offloading weights to disk."""
    batch_size = task.settings.batch_size or task.choose_batch_size()
    cost = task.cost(batch_size)
    placement = task.fit(cost)
    remedies: tuple[str, ...] = ()
    if placement is None:
        remedies = tuple(_remedies(task, batch_size))
        placement = task.offload(cost, disk=False) or (task.offload(cost, disk=True) if on_disk else None)
    used = len(placement.loads) if placement else 0
    equal = len({device.size for device in task.devices}) == 1
    return Plan(
        model=name,
        purpose=task.purpose,
        dtype=str(task.dtype).removeprefix("torch."),
        quantization=task.settings.quantization,
        batch_size=batch_size,
        tile=task.spec.sam_size // 2,
        device_map=placement.device_map if placement else None,
        loads=placement.loads if placement else (),
        offloaded=placement.offloaded if placement else {},
        copies=len(task.devices) // used if used and equal and task.purpose == "predict" else min(used, 1),
        amounts=tuple(_amounts(task, cost)),
        need=task.resident + cost.peak,
        reasons=_reasons(task, cost, placement),
        remedies=remedies,
    )


def _amounts(task: PlanTask, cost: PassMemory) -> Iterator[Amount]:
    predicts = task.purpose == "predict"
    width = task.dtype.itemsize if predicts else 4
    shard = f", one of {task.shards} shards" if task.shards > 1 else ""
    for part, size in task.weights.items():
        kind = task.settings.quantization if part in ("vision encoder", "language model") else None
        reason = f"{size // width:,} values of {width} bytes"
        if kind:
            reason = f"{kind} matrices with their scales; the rest at {width} bytes a value"
        yield Amount("weights", part, size, reason + shard)
    for group, size in task.optimizer_state.items():
        buckets = ", and DDP's copy of the gradients" if task.replicas > 1 else ""
        yield Amount("optimizer", group, size, f"AdamW's two float32 moments of each value{buckets}{shard}")
    if predicts:
        reason = f"keys and values of {cost.tokens + MAX_NEW_TOKENS:,} tokens per prompt in each layer"
        yield Amount("kept", "KV cache", cost.cache, reason)
    yield Amount("kept", "SAM features", cost.features, "three levels of each image, shared by its prompts")
    if predicts:
        reason = "per object in a video of any length: 5 prompted frames and the last 6 others; not in the totals"
        yield Amount("kept", "SAM memory", video_memory(task.empty), reason)
    kept = {"language model": ", with the KV cache", "SAM decoder": ", with the SAM features"}
    gathered = f" and gathered layers of FSDP2 ({GATHERED} times the largest, assumed)" if shard else ""
    fixed = {
        "inputs": "pixels for both encoders",
        "backward pass": "activations saved by earlier phases, and float32 gradients",
        "optimizer step": "float32 gradients; fused AdamW allocates nothing else",
    }
    for phase, size in cost.peaks.items():
        also = kept.get(phase, "") if predicts else f", with activations for the backward pass{gathered}"
        yield Amount("phase", phase, size, fixed.get(phase, f"peak of live tensors{also}"))


def _reasons(task: PlanTask, cost: PassMemory, placement: Placement | None) -> dict[str, str]:
    settings = task.settings
    if settings.dtype:
        dtype = "as set"
    elif task.purpose == "train":
        dtype = "weights train in float32; dtype=bfloat16 adds autocast, with smaller activations"
    elif task.gpus:
        dtype = "half the bytes of float32, and faster on a GPU"
    else:
        dtype = "half precision is no faster on a CPU, and less exact"
    if settings.batch_size:
        chosen = "as set"
    elif placement is None or placement.offloaded:
        chosen = "the smallest possible"
    else:
        chosen = f"the largest that fits, up to {MAX_BATCH['GPU' if task.gpus else 'CPU']}"
    if placement is None:
        devices = "no device holds the model"
    elif placement.offloaded:
        names = {"cpu": "in CPU memory", "disk": "on disk"}
        sizes = " and ".join(f"{_gib(size)} {names[where]}" for where, size in placement.offloaded.items())
        devices = f"weights are offloaded ({sizes}) and copied to the first device in each pass, which is slow"
    elif task.shards > 1:
        devices = "each device holds a shard of all weights, gradients and optimizer state"
    elif len(placement.loads) > 1:
        devices = "the fewest GPUs that hold the model; language model layers are split, all else is on the first"
    else:
        devices = "one device holds the model"
    images = "images of " + " x ".join(map(str, settings.image)) if settings.image else "the largest images"
    tiles = f" in {cost.tiles} tile{'s' * (cost.tiles > 1)}" if family_of(task.spec.family).tiled else ""
    return {
        "dtype": dtype,
        "batch_size": f"{chosen}; {images}{tiles}, {cost.tokens:,} tokens per prompt",
        "tile": "half of SAM 2's input side; with tiles, the batch size counts windows",
        "devices": devices,
        "reserve": (
            "1 GiB of each GPU for CUDA, workspaces and fragmentation (assumed, not measured)"
            if task.gpus
            else "as many bytes as the largest phase, because the allocator keeps freed memory (measured)"
        ),
    }


def _remedies(task: PlanTask, batch_size: int) -> Iterator[str]:
    """Single changes that make the task fit, those with the smallest effect first."""
    settings = task.settings
    smaller = batch_size // 2
    while smaller and task.fit(task.estimate(smaller)) is None:
        smaller //= 2
    if smaller:
        yield f"batch_size={smaller} instead of {batch_size}"
    if task.dtype.itemsize == 4 and _fits(task.changed(dtype="bfloat16"), batch_size):
        yield "dtype=bfloat16 instead of float32"
    if isinstance(settings, TrainingSettings):
        yield from _training_remedies(task, settings.trainable, batch_size)
    elif settings.quantization is None:
        for kind in ("8bit", "4bit"):
            if _fits(task.changed(quantization=kind), batch_size):
                yield f"quantization={kind} of the vision-language model"
    most = MAX_SUGGESTED if task.gpus and task.purpose == "predict" else 0
    for count in range(len(task.gpus) + 1, most + 1):
        more = [Device(i, min(gpu.size for gpu in task.gpus)) for i in range(count)]
        if _fits(task.changed(gpus=more), batch_size):
            yield f"{count} GPUs of {_gib(more[0].size)}"
            break
    cost = task.cost(batch_size)
    yield f"one device with {_gib(task.resident + cost.peak + reserve_of(task.devices[0], cost))}"
    if name := _smaller_model(task, batch_size):
        yield f"{name}, a smaller model of the same family"


def _training_remedies(task: PlanTask, trainable: TrainableSettings, batch_size: int) -> Iterator[str]:
    """Those of gradient checkpointing, 4-bit quantization, sharding and smaller presets that make the task fit."""
    every = CHECKPOINTABLE[trainable.preset]
    checkpointed = trainable.changed(gradient_checkpointing=every)
    if checkpointed != trainable and _fits(task.changed(trainable=checkpointed), batch_size):
        yield f"trainable.gradient_checkpointing=[{', '.join(every)}], a third more time per step"
    if trainable.preset != "full" and trainable.quantization is None:
        quantized = trainable.changed(quantization="4bit", save=None)
        if _fits(task.changed(trainable=quantized), batch_size):
            yield "trainable.quantization=4bit of the vision-language model"
    if len(task.gpus) > 1 and task.shards == 1 and _fits(task.changed(sharded=True), batch_size):
        yield f"sharded=true, a shard of the model on each of the {len(task.gpus)} GPUs"
    presets = [*CHECKPOINTABLE]
    for preset in reversed(presets[: presets.index(trainable.preset)]):
        if _fits(task.changed(trainable=TrainableSettings(preset=preset)), batch_size):
            yield f"trainable={preset} instead of {trainable.preset}"
            break


def _fits(task: PlanTask, batch_size: int) -> bool:
    total = sum(device.size for device in task.devices)
    return task.resident < total and task.fit(task.cost(batch_size)) is not None


def _smaller_model(task: PlanTask, batch_size: int) -> str | None:
    """Largest published model that fits, among the smaller ones of the same family."""
    own = sum(p.numel() for p in empty_model(task.spec).parameters())
    family = [name for name in PRESETS if name != "tiny" and find_spec(name).family == task.spec.family]
    for name in sorted(family, key=count_published, reverse=True):
        other = PlanTask(find_spec(name), task.settings, task.gpus, task.cpu)
        if count_published(name) < own and _fits(other, batch_size):
            return name
    return None


@cache
def count_published(name: str) -> int:
    """Number of parameters of a published model."""
    return sum(parameter.numel() for parameter in empty_model(find_spec(name)).parameters())


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def summarize(plan: Plan) -> Iterator[str]:
    """The plan as text lines for the terminal."""
    yield f"{plan.model} for {'training' if plan.purpose == 'train' else 'prediction'}"
    yield f"  dtype {plan.dtype}: {plan.reasons['dtype']}"
    yield f"  batch size {plan.batch_size}: {plan.reasons['batch_size']}"
    yield f"  tile {plan.tile}: {plan.reasons['tile']}"
    for kind, title in {
        "weights": "weights",
        "optimizer": "optimizer state",
        "kept": "kept during a pass",
        "phase": "phases, in sequence: only the largest counts",
    }.items():
        rows = [amount for amount in plan.amounts if amount.kind == kind]
        if rows:
            yield title
        for row in rows:
            yield f"  {row.of:<24}{row.size / 2**20:>12,.1f} MiB  {row.reason}"
    yield f"on one device: {_gib(plan.need)}"
    for load in plan.loads:
        yield (
            f"{load.device.name}: {_gib(load.total)} of {_gib(load.device.size)}: weights {_gib(load.weights)}, "
            f"KV cache {_gib(load.cache)}, activations {_gib(load.activations)}, reserve {_gib(load.reserve)}"
        )
    yield f"{'fits' if plan.device_map else 'does not fit'}: {plan.reasons['devices']}"
    if plan.copies > 1:
        yield f"{plan.copies} copies of the model fit; the images are divided among them"
    if plan.loads:
        yield f"reserve: {plan.reasons['reserve']}"
    for remedy in plan.remedies:
        yield f"would fit{' without offloading' if plan.offloaded else ''}: {remedy}"
