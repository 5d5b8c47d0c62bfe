"""Devices and their memory: those that were named, or those of this machine; and which part of a model goes where."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from accelerate import infer_auto_device_map

from vesalius.errors import SettingError
from vesalius.inference.footprint import Pass
from vesalius.models.device_map import DeviceMap, find_device
from vesalius.models.textseg import TextSegModel
from vesalius.models.vlm import vision_encoder_of

GIB = 2**30
UNITS = {"gib": GIB, "gb": 10**9, "mib": 2**20, "mb": 10**6}
MOST_GPUS = 1024
MOST_BYTES = 2**50
RESERVE = GIB
"""Bytes of each GPU that a plan leaves alone."""


@dataclass(frozen=True)
class Device:
    """Somewhere that tensors can be."""

    place: int | str
    """A GPU's number, or `cpu`, as device maps have it."""
    size: int
    """Bytes that can be used."""

    @property
    def name(self) -> str:
        """As it is called in sentences."""
        return f"GPU {self.place}" if isinstance(self.place, int) else str(self.place).upper()


@dataclass(frozen=True)
class Load:
    """Bytes that a plan puts on a device."""

    device: Device
    weights: int
    """In training with what the optimizer remembers of them."""
    cache: int
    """KV cache of the layers that are there."""
    activations: int
    """The most that any one phase needs there, besides the cache."""
    reserve: int
    """Left alone."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.cache + self.activations + self.reserve


@dataclass(frozen=True)
class Placement:
    """Where a model goes, and what that puts on each device."""

    device_map: dict[str, int | str]
    loads: tuple[Load, ...]
    waiting: dict[str, int]
    """`cpu`, `disk` -> bytes of weights that wait there, and are brought to the first device in each pass."""


def parse_size(text: str, origin: str) -> int:
    """Bytes of a text such as 24GiB; SettingError, in the words of `origin`, for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]+)", text.strip(), re.IGNORECASE)
    if found is None or found[2].lower() not in UNITS:
        raise SettingError(
            f"{origin}: {text!r} is no amount of memory with a unit; write it as 24GiB, or in GB, MiB or MB"
        )
    size = float(found[1]) * UNITS[found[2].lower()]
    if not 1 <= size <= MOST_BYTES:
        raise SettingError(f"{origin}: {text!r} is more memory than there is, or none at all")
    return int(size)


def parse_gpus(text: str) -> tuple[Device, ...]:
    """GPUs of a text such as 4x24GiB or 24GiB,48GiB, numbered from 0; SettingError for anything else."""
    sizes: list[int] = []
    for each in text.split(","):
        count, times, size = each.strip().rpartition("x")
        if times and not count.isdecimal():
            raise SettingError(f"--gpus {text}: {count!r} is no number of GPUs; write it as 4x24GiB")
        number = int(count) if times else 1
        if not 1 <= number <= MOST_GPUS - len(sizes):
            raise SettingError(
                f"--gpus {text}: the number of GPUs must lie between 1 and {MOST_GPUS}; leave --gpus out on a CPU"
            )
        sizes += [parse_size(size, f"--gpus {text}")] * number
    return tuple(Device(i, size) for i, size in enumerate(sizes))


def find_gpus() -> tuple[Device, ...]:
    """The GPUs that torch sees, with the memory that is free on them now; none on a machine without."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(Device(i, torch.cuda.mem_get_info(i)[0]) for i in range(count))


def find_cpu() -> Device:
    """The CPU of this machine with the memory that is available now."""
    return Device("cpu", psutil.virtual_memory().available)


def place_whole(weights: int, cost: Pass, device: Device) -> Placement | None:
    """All of a model with so many bytes of weights on one device; None where it does not fit."""
    load = Load(device, weights, cost.cache, cost.peak - cost.cache, reserve_of(device, cost))
    return Placement({"": device.place}, (load,), {}) if load.total <= device.size else None


def place_shards(weights: int, cost: Pass, gpus: Sequence[Device]) -> Placement | None:
    """A part of all weights, of so many bytes, on each of the GPUs; None where one of them is too small."""
    loads = tuple(
        Load(gpu, weights, cost.cache, cost.peak - cost.cache, reserve_of(gpu, cost)) for gpu in gpus
    )
    fit = all(load.total <= load.device.size for load in loads)
    return Placement({"": gpus[0].place}, loads, {}) if fit else None


def place_split(
    model: TextSegModel, cost: Pass, gpus: Sequence[Device], spill: Mapping[str, int]
) -> Placement | None:
    """The language model's layers over several GPUs; all else whole, on the first. None where it does not fit.

    `model` is empty, with weights of the size that they will have. `spill` is what may wait elsewhere: bytes of `cpu`,
    of `disk`. Accelerate lays out the layers; it keeps room on the first GPU for the largest of them.
    """
    layers = model.vlm.model.language_model.layers
    cache = 0 if spill else cost.cache // len(layers)
    for layer in layers:
        # what a layer keeps of each token takes its place beside the weights of that layer
        layer.register_buffer("kv_cache", torch.empty(cache, dtype=torch.uint8, device="meta"))
    room = {gpu.place: gpu.size - reserve_of(gpu, cost) - _activations(cost, gpu is gpus[0]) for gpu in gpus}
    room[gpus[0].place] -= _bytes(model.projector) + _bytes(model.sam)
    if spill:  # layers that wait elsewhere run on the first device, where their caches stay
        room[gpus[0].place] -= cost.cache
    needed = _bytes(model.vlm) + (0 if spill else cost.cache)
    if min(room.values()) <= 0 or sum(room.values()) + sum(spill.values()) < needed:
        return None
    vision = vision_encoder_of(model.vlm)
    whole = {type(vision).__name__, *model.vlm._no_split_modules}
    most: dict[int | str, int] = dict(room)
    most.update(spill)
    with _quiet():
        inside: dict[str, int | str] = infer_auto_device_map(model.vlm, most, sorted(whole))
    device_map = {f"vlm.{name}".removesuffix("."): place for name, place in inside.items()}
    device_map |= {"projector": gpus[0].place, "sam": gpus[0].place}
    if any(place not in room and place not in spill for place in device_map.values()):
        return None
    if find_device(device_map, f"vlm.model.{_name_of(vision, model.vlm.model)}") != gpus[0].place:
        return None  # it gets the images, and is not split
    placement = _weigh(model, cost, device_map, gpus)
    return placement if all(load.total <= load.device.size for load in placement.loads) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Accelerate's remarks that GPUs of a plan are not in this machine, or that weights would not fit them."""
    logger = logging.getLogger("accelerate.utils.modeling")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _weigh(
    model: TextSegModel, cost: Pass, device_map: dict[str, int | str], gpus: Sequence[Device]
) -> Placement:
    here = {gpu.place for gpu in gpus}
    weights = dict.fromkeys(device_map.values(), 0)
    caches = dict.fromkeys(device_map.values(), 0)
    for name, parameter in model.named_parameters():
        weights[_place_in(device_map, name)] += parameter.nbytes
    layers = len(model.vlm.model.language_model.layers)
    for number in range(layers):
        place = _place_in(device_map, f"vlm.model.language_model.layers.{number}")
        # a layer that waits elsewhere runs on the first GPU, and its cache stays there
        caches[place if place in here else gpus[0].place] += cost.cache // layers
    loads = tuple(
        Load(
            gpu,
            weights[gpu.place],
            caches[gpu.place],
            _activations(cost, gpu is gpus[0]),
            reserve_of(gpu, cost),
        )
        for gpu in gpus
        if gpu.place in weights
    )
    waiting = {str(place): size for place, size in weights.items() if place not in here}
    return Placement(device_map, loads, waiting)


def _place_in(device_map: DeviceMap, name: str) -> int | str:
    if (place := find_device(device_map, name)) is None:
        raise KeyError(f"the device map leaves out {name}")
    return place


def _activations(cost: Pass, first: bool) -> int:
    """The first device runs all phases; the others run layers of the language model."""
    language = cost.peaks["language model"] - cost.cache
    others = (size for phase, size in cost.peaks.items() if phase != "language model")
    return max(language, *others) if first else language


def reserve_of(device: Device, cost: Pass) -> int:
    """Bytes of a device that a plan leaves alone.

    On a CPU as much again as the largest phase: the allocator keeps what was freed (`models/cpu_allocator.py`), and cannot
    use all of it again. `benchmarks/plan.py` measured 0.4 to 1.4 times that.
    """
    return RESERVE if isinstance(device.place, int) else cost.peak


def _name_of(module: torch.nn.Module, parent: torch.nn.Module) -> str:
    return next(name for name, child in parent.named_children() if child is module)


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
