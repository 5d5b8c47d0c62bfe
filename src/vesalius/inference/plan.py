"""What fits where, before any GPU is touched: bytes by part, devices, dtype, batch and tile, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vesalius.config import apply_changes, make_settings
from vesalius.errors import CheckpointError, SettingError
from vesalius.inference.fitting import (
    MOST_AT_ONCE,
    NEW_TOKENS,
    PredictionSettings,
    Task,
    TrainingSettings,
)
from vesalius.inference.footprint import GATHERED, Pass, video_memory
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
MOST_SUGGESTED = 8
"""GPUs of one machine, beyond which more of them are not suggested."""


@dataclass(frozen=True)
class Amount:
    """Bytes of one kind, of one part or phase."""

    kind: str
    of: str
    size: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """Devices, dtype, batch and tile for a model, and the reason for each number."""

    model: str
    purpose: Purpose
    dtype: str
    quantization: str | None
    batch_size: int
    tile: int
    """Side in pixels of the windows that a large image is cut into."""
    device_map: dict[str, int | str] | None
    """Where the parts go; None where they do not fit. In training the first GPU: the others hold the like."""
    loads: tuple[Load, ...]
    """What that puts on each device that is used."""
    waiting: dict[str, int]
    """`cpu`, `disk` -> bytes of weights that wait there."""
    copies: int
    """Models that the devices hold side by side, each of which takes a share of the images."""
    amounts: tuple[Amount, ...]
    need: int
    """Bytes on a device that holds all: the weights and the largest phase."""
    reasons: dict[str, str]
    remedies: tuple[str, ...]
    """Where it does not fit, or only with offloading: what would."""

    def as_json(self) -> dict[str, Any]:
        """The plan with plain values, for `--json`."""
        loads = [
            {**asdict(load), "device": load.device.name, "size": load.device.size, "total": load.total}
            for load in self.loads
        ]
        return {**asdict(self), "loads": loads, "fits": self.device_map is not None}


def make_plan(
    model: str | Path | ModelRef,
    gpus: str | None = None,
    purpose: Purpose = "predict",
    changes: Sequence[str] = (),
) -> Plan:
    """The plan for MODEL: a bundle, a run, an official folder, or a published name, whose weights need not be here.

    `gpus` such as 4x24GiB; None: those that torch sees, else the CPU. `changes` such as batch_size=8 are settings of
    `PredictionSettings` or `TrainingSettings`. Raises SettingError for an unknown model, GPU or setting.
    """
    settings = make_settings(SETTINGS[purpose], apply_changes({}, changes), "--set")
    ref = resolve_model(model, weights=False)
    spec = _read_spec(ref)
    cpu = find_cpu()
    if isinstance(settings, PredictionSettings) and settings.cpu_memory is not None:
        cpu = Device("cpu", parse_size(settings.cpu_memory, "--set cpu_memory"))
    task = Task(spec, settings, find_gpus() if gpus is None else parse_gpus(gpus), cpu)
    if isinstance(settings, TrainingSettings) and settings.sharded and len(task.gpus) < 2:
        raise SettingError(
            f"sharded=true divides a model between several GPUs, and here are {len(task.gpus)}; name them, as in "
            "--gpus 4x80GiB"
        )
    return _plan(task, ref.name, on_disk=ref.origin == "published" or ref.is_bundle)


def place_of(plan: Plan) -> tuple[str | DeviceMap, torch.dtype]:
    """What `open_model` takes to carry out a plan for prediction.

    Besides them its `quantization`. SettingError where nothing fits, or where the plan is of GPUs that this machine does not
    have.
    """
    if plan.device_map is None:
        raise SettingError(f"{plan.model} does not fit; would fit: {'; or '.join(plan.remedies)}")
    count = torch.cuda.device_count()
    if any(isinstance(place, int) and place >= count for place in plan.device_map.values()):
        needed = ", ".join(load.device.name for load in plan.loads)
        raise SettingError(
            f"the plan for {plan.model} is of {needed}; this machine has {count} GPUs that torch sees"
        )
    whole = plan.device_map.get("")
    dtype: torch.dtype = getattr(torch, plan.dtype)
    return (plan.device_map if whole is None else f"cuda:{whole}" if isinstance(whole, int) else whole), dtype


def _read_spec(ref: ModelRef) -> ModelSpec:
    """The spec of a model, read without its weights; CheckpointError for a bundle with an adapter."""
    if ref.is_bundle and (ref.folder / ADAPTER).is_dir():
        raise CheckpointError(
            f"{ref.folder}: keeps a LoRA as an adapter, which a plan does not count; "
            "of a run, merge it: vesalius train --resume RUN --set trainable.save=merged",
            code="wrong_model_kind",
            path=ref.folder,
        )
    return spec_of(ref)


def _plan(task: Task, name: str, on_disk: bool) -> Plan:
    batch = task.settings.batch_size or task.choose_batch()
    cost = task.cost(batch)
    placement = task.fit(cost)
    remedies: tuple[str, ...] = ()
    if placement is None:
        remedies = tuple(_remedies(task, batch))
        placement = task.offload(cost, disk=False) or (task.offload(cost, disk=True) if on_disk else None)
    used = len(placement.loads) if placement else 0
    alike = len({device.size for device in task.devices}) == 1
    return Plan(
        model=name,
        purpose=task.purpose,
        dtype=str(task.dtype).removeprefix("torch."),
        quantization=task.quantization,
        batch_size=batch,
        tile=task.spec.sam_size // 2,
        device_map=placement.device_map if placement else None,
        loads=placement.loads if placement else (),
        waiting=placement.waiting if placement else {},
        copies=len(task.devices) // used if used and alike and task.purpose == "predict" else min(used, 1),
        amounts=tuple(_amounts(task, cost)),
        need=task.held + cost.peak,
        reasons=_reasons(task, cost, batch, placement),
        remedies=remedies,
    )


def _amounts(task: Task, cost: Pass) -> Iterator[Amount]:
    width = task.dtype.itemsize if task.purpose == "predict" else 4
    here = f", one part of {task.shards}" if task.shards > 1 else ""
    for part, size in task.weights.items():
        if part in ("vision encoder", "language model") and task.quantization:
            reason = f"{task.quantization} matrices with their scales; the rest at {width} bytes a value"
        else:
            reason = f"{size // width:,} values of {width} bytes"
        yield Amount("weights", part, size, reason + here)
    for part, size in task.remembered.items():
        buckets = ", and the gradients as DDP sends them" if task.copies > 1 else ""
        yield Amount("optimizer", part, size, f"AdamW's two averages of each value in float32{buckets}{here}")
    if task.purpose == "predict":
        reason = f"keys and values of {cost.tokens + NEW_TOKENS:,} tokens a question, in each layer"
        yield Amount("kept", "KV cache", cost.cache, reason)
    reason = "three levels of each image, for all of its prompts"
    yield Amount("kept", "SAM features", cost.features, reason)
    if task.purpose == "predict":
        reason = (
            "of an object in a video, of any length: 5 prompted frames and the last 6 others; not in the sums"
        )
        yield Amount("kept", "SAM memory", video_memory(task.empty), reason)
    gathered = f" and the layers that FSDP2 has whole ({GATHERED} of the largest, assumed)" if here else ""
    backward = f", what the backward pass needs{gathered} included" if task.purpose == "train" else ""
    for phase, size in cost.peaks.items():
        if phase == "inputs":
            yield Amount("phase", phase, size, "the pixels that both encoders read")
        elif phase == "backward pass":
            yield Amount("phase", phase, size, "what the phases before kept, and gradients in float32")
        elif phase == "optimizer step":
            yield Amount("phase", phase, size, "gradients in float32; fused AdamW needs nothing beside them")
        else:
            kept = {"language model": ", KV cache included", "SAM decoder": ", SAM features included"}
            named = kept.get(phase, "") if task.purpose == "predict" else backward
            yield Amount("phase", phase, size, f"most that is alive in it at once{named}")


def _reasons(task: Task, cost: Pass, batch: int, placement: Placement | None) -> dict[str, str]:
    settings = task.settings
    kind = "GPU" if task.gpus else "CPU"
    if settings.dtype:
        dtype = "as set"
    elif task.purpose == "train":
        dtype = "weights are trained in float32; dtype=bfloat16 is autocast, which makes activations smaller"
    else:
        dtype = (
            "half the bytes and the speed of a GPU"
            if task.gpus
            else "a CPU is not faster in 16 bits, and less exact"
        )
    tiles = f" in {cost.tiles} tile{'s' * (cost.tiles > 1)}" if family_of(task.spec.family).tiled else ""
    images = "images of " + " x ".join(map(str, settings.image)) if settings.image else "the largest images"
    if settings.batch_size:
        chosen = "as set"
    elif placement is None or placement.waiting:
        chosen = "the smallest"
    else:
        chosen = f"the largest that fits, up to {MOST_AT_ONCE[kind]}"
    if placement is None:
        where = "nothing holds it"
    elif placement.waiting:
        places = {"cpu": "in the CPU's memory", "disk": "on disk"}
        waiting = " and ".join(f"{_gib(size)} {places[place]}" for place, size in placement.waiting.items())
        where = (
            f"of the weights {waiting} wait, and are brought to the first device in each pass, which is slow"
        )
    elif task.shards > 1:
        where = "each holds a part of every weight, gradient and average"
    elif len(placement.loads) > 1:
        where = (
            "the fewest that hold it; the language model's layers are split, all else is whole on the first"
        )
    else:
        where = "one holds it all"
    return {
        "dtype": dtype,
        "batch_size": f"{chosen}; {images}{tiles}, {cost.tokens:,} tokens a question",
        "tile": "half of the side of SAM's input; as many windows at once as images",
        "devices": where,
        "reserve": (
            "1 GiB of a GPU for CUDA itself, workspaces and fragments: assumed, not measured"
            if task.gpus
            else "as much again as the largest phase, as the allocator keeps what was freed: measured"
        ),
    }


def _remedies(task: Task, batch: int) -> Iterator[str]:
    """Changes with which the task would fit, each on its own, the gentlest first."""
    settings = task.settings
    smaller = batch // 2
    while smaller and task.fit(task.expect(smaller)) is None:
        smaller //= 2
    if smaller:
        yield f"batch_size={smaller} instead of {batch}"
    if task.dtype.itemsize == 4 and _fits(task.changed(dtype="bfloat16"), batch):
        yield "dtype=bfloat16 instead of float32"
    if isinstance(settings, TrainingSettings):
        yield from _training_remedies(task, settings.trainable, batch)
    elif settings.quantization is None:
        for kind in ("8bit", "4bit"):
            if _fits(task.changed(quantization=kind), batch):
                yield f"quantization={kind}, with the vision-language half in bitsandbytes"
    for count in (
        range(len(task.gpus) + 1, MOST_SUGGESTED + 1) if task.gpus and task.purpose == "predict" else ()
    ):
        more = [Device(i, min(gpu.size for gpu in task.gpus)) for i in range(count)]
        if _fits(task.changed(gpus=more), batch):
            yield f"{count} GPUs of {_gib(more[0].size)}"
            break
    cost = task.cost(batch)
    yield f"one device with {_gib(task.held + cost.peak + reserve_of(task.devices[0], cost))}"
    if name := _smaller_model(task, batch):
        yield f"{name}, of the same family"


def _training_remedies(task: Task, what: TrainableSettings, batch: int) -> Iterator[str]:
    """Recomputing, 4 bits, shards, and the largest level that would fit."""
    every = CHECKPOINTABLE[what.preset]
    recomputing = what.changed(gradient_checkpointing=every)
    if recomputing != what and _fits(task.changed(trainable=recomputing), batch):
        yield f"trainable.gradient_checkpointing=[{', '.join(every)}], a third more time a step"
    if what.preset != "full" and what.quantization is None:
        packed = what.changed(quantization="4bit", save=None)
        if _fits(task.changed(trainable=packed), batch):
            yield "trainable.quantization=4bit, with the vision-language half in bitsandbytes"
    if len(task.gpus) > 1 and task.shards == 1 and _fits(task.changed(sharded=True), batch):
        yield f"sharded=true, a part of the model on each of the {len(task.gpus)} GPUs"
    presets = [*CHECKPOINTABLE]
    for preset in reversed(presets[: presets.index(what.preset)]):
        if _fits(task.changed(trainable=TrainableSettings(preset=preset)), batch):
            yield f"trainable={preset} instead of {what.preset}"
            break


def _fits(task: Task, batch: int) -> bool:
    room = sum(device.size for device in task.devices)
    return task.held < room and task.fit(task.cost(batch)) is not None


def _smaller_model(task: Task, batch: int) -> str | None:
    """The largest published model of the family that is smaller and would fit."""
    own = sum(p.numel() for p in empty_model(task.spec).parameters())
    family = [name for name in PRESETS if name != "tiny" and find_spec(name).family == task.spec.family]
    for name in sorted(family, key=count_published, reverse=True):
        if count_published(name) < own:
            other = Task(find_spec(name), task.settings, task.gpus, task.cpu)
            if _fits(other, batch):
                return name
    return None


@cache
def count_published(name: str) -> int:
    """Parameters of a published model."""
    return sum(parameter.numel() for parameter in empty_model(find_spec(name)).parameters())


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def summarize(plan: Plan) -> Iterator[str]:
    """Lines for a terminal."""
    yield f"{plan.model} for {'training' if plan.purpose == 'train' else 'prediction'}"
    yield f"  dtype {plan.dtype}: {plan.reasons['dtype']}"
    yield f"  batch size {plan.batch_size}: {plan.reasons['batch_size']}"
    yield f"  tile {plan.tile}: {plan.reasons['tile']}"
    for kind, title in {
        "weights": "weights",
        "optimizer": "what the optimizer remembers",
        "kept": "kept within a pass",
        "phase": "phases, which follow one another: the largest counts",
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
            f"KV cache {_gib(load.cache)}, activations {_gib(load.activations)}, left alone {_gib(load.reserve)}"
        )
    yield f"{'fits' if plan.device_map else 'does not fit'}: {plan.reasons['devices']}"
    if plan.copies > 1:
        yield f"{plan.copies} copies fit side by side, each for a share of the images"
    if plan.loads:
        yield f"left alone: {plan.reasons['reserve']}"
    for remedy in plan.remedies:
        yield f"would fit{' whole' if plan.waiting else ''}: {remedy}"
