"""Devices, their memory, and the placement of a model on them."""

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
from vesalius.inference.footprint import PassMemory
from vesalius.models.device_map import DeviceMap, find_device
from vesalius.models.textseg import TextSegModel
from vesalius.models.vlm import vision_encoder_of

GIB = 2**30
UNITS = {"gib": GIB, "gb": 10**9, "mib": 2**20, "mb": 10**6}
MAX_GPUS = 1024
MAX_BYTES = 2**50
RESERVE = GIB
"""Bytes that a plan leaves free on each GPU."""


@dataclass(frozen=True)
class Device:
    """A GPU or the CPU."""

    index: int | str
    """GPU index, or `cpu`, as in device maps."""
    size: int
    """Bytes of memory that a plan may use."""

    @property
    def name(self) -> str:
        """`GPU 0` or `CPU`, for messages."""
        return f"GPU {self.index}" if isinstance(self.index, int) else str(self.index).upper()


@dataclass(frozen=True)
class Load:
    """Bytes that a plan puts on a device."""

    device: Device
    weights: int
    """Bytes of weights; in training also of optimizer state."""
    cache: int
    """Bytes of the KV cache of the layers on the device."""
    activations: int
    """Bytes of the largest phase on the device, without the KV cache."""
    reserve: int
    """Bytes left free (`reserve_of`)."""

    @property
    def total(self) -> int:
        """Sum of weights, KV cache, activations and reserve."""
        return self.weights + self.cache + self.activations + self.reserve


@dataclass(frozen=True)
class Placement:
    """A device map, and the bytes that it puts on each device."""

    device_map: dict[str, int | str]
    loads: tuple[Load, ...]
    offloaded: dict[str, int]
    """`cpu` or `disk` -> bytes of weights stored there, and copied to the first device in each pass."""


def parse_size(text: str, origin: str) -> int:
    """Bytes of a text such as 24GiB; SettingError that names `origin` for any other text.

    accelerate's parser is not used, because it accepts sizes without a unit.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]+)", text.strip(), re.IGNORECASE)
    if found is None or found[2].lower() not in UNITS:
        raise SettingError(
            f"{origin}: {text!r} is not a memory size with a unit; write it as 24GiB, or in GB, MiB or MB",
            code="bad_value",
            field=origin,
        )
    size = float(found[1]) * UNITS[found[2].lower()]
    if not 1 <= size <= MAX_BYTES:
        raise SettingError(f"{origin}: {text!r} must lie between 1 byte and 1024 TiB", code="bad_value", field=origin)
    return int(size)


def parse_gpus(text: str) -> tuple[Device, ...]:
    """GPUs of a text such as 4x24GiB or 24GiB,48GiB, numbered from 0; SettingError for any other text."""
    sizes: list[int] = []

    def refuse(reason: str) -> SettingError:
        return SettingError(f"--gpus {text}: {reason}", code="bad_value", field="gpus")

    for each in text.split(","):
        count, times, size = each.strip().rpartition("x")
        if times and not count.isdecimal():
            raise refuse(f"{count!r} is not a number of GPUs; write it as 4x24GiB")
        number = int(count) if times else 1
        if not 1 <= number <= MAX_GPUS - len(sizes):
            raise refuse(f"the number of GPUs must lie between 1 and {MAX_GPUS}; leave --gpus out on a CPU")
        sizes += [parse_size(size, f"--gpus {text}")] * number
    return tuple(Device(i, size) for i, size in enumerate(sizes))


def find_gpus() -> tuple[Device, ...]:
    """GPUs that torch sees, with their free memory; empty on a machine without GPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(Device(i, torch.cuda.mem_get_info(i)[0]) for i in range(count))


def find_cpu() -> Device:
    """CPU of this machine, with its available memory."""
    return Device("cpu", psutil.virtual_memory().available)


def place_whole(weights: int, cost: PassMemory, devices: Sequence[Device]) -> Placement | None:
    """Placement of a model on one device, or sharded over several; None if a device is too small.

    `weights` are the bytes of weights and optimizer state on each device.
    """
    loads = tuple(
        Load(device, weights, cost.cache, cost.peak - cost.cache, reserve_of(device, cost)) for device in devices
    )
    fit = all(load.total <= load.device.size for load in loads)
    return Placement({"": devices[0].index}, loads, {}) if fit else None


def place_split(
    model: TextSegModel, cost: PassMemory, gpus: Sequence[Device], spill: Mapping[int | str, int]
) -> Placement | None:
    """Placement with the language model's layers split over `gpus`, and all else on the first; None if it does not fit.

    `model` is on the meta device. `spill` gives the bytes for offloaded weights on `cpu` and `disk`. Accelerate assigns
    the layers; it leaves space on the first GPU for the largest layer.
    """
    layers = model.vlm.model.language_model.layers
    cache = 0 if spill else cost.cache // len(layers)
    for layer in layers:
        # makes Accelerate count a layer's KV cache with its weights
        layer.register_buffer("kv_cache", torch.empty(cache, dtype=torch.uint8, device="meta"))
    free = {gpu.index: gpu.size - reserve_of(gpu, cost) - _activations(cost, gpu is gpus[0]) for gpu in gpus}
    free[gpus[0].index] -= _bytes(model.projector) + _bytes(model.sam)
    if spill:  # offloaded layers run on the first device, and their caches stay there
        free[gpus[0].index] -= cost.cache
    needed = _bytes(model.vlm) + (0 if spill else cost.cache)
    if min(free.values()) <= 0 or sum(free.values()) + sum(spill.values()) < needed:
        return None
    vision = vision_encoder_of(model.vlm)
    whole = {type(vision).__name__, *model.vlm._no_split_modules}
    limits: dict[int | str, int] = {**free, **spill}
    with _quiet():
        inside: dict[str, int | str] = infer_auto_device_map(model.vlm, limits, sorted(whole))
    device_map = {f"vlm.{name}".removesuffix("."): device for name, device in inside.items()}
    device_map |= {"projector": gpus[0].index, "sam": gpus[0].index}
    if any(device not in free and device not in spill for device in device_map.values()):
        return None
    name = next(name for name, child in model.vlm.model.named_children() if child is vision)
    if find_device(device_map, f"vlm.model.{name}") != gpus[0].index:
        return None  # the vision encoder receives the images and cannot be split
    placement = _weigh(model, cost, device_map, gpus)
    return placement if all(load.total <= load.device.size for load in placement.loads) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Accelerate's warnings about GPUs that this machine lacks."""
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
    model: TextSegModel, cost: PassMemory, device_map: dict[str, int | str], gpus: Sequence[Device]
) -> Placement:
    here = {gpu.index for gpu in gpus}
    weights = dict.fromkeys(device_map.values(), 0)
    caches = dict.fromkeys(device_map.values(), 0)
    for name, parameter in model.named_parameters():
        weights[_device_of(device_map, name)] += parameter.nbytes
    layers = len(model.vlm.model.language_model.layers)
    for number in range(layers):
        device = _device_of(device_map, f"vlm.model.language_model.layers.{number}")
        # an offloaded layer runs on the first GPU, and its cache stays there
        caches[device if device in here else gpus[0].index] += cost.cache // layers
    loads = tuple(
        Load(gpu, weights[gpu.index], caches[gpu.index], _activations(cost, gpu is gpus[0]), reserve_of(gpu, cost))
        for gpu in gpus
        if gpu.index in weights
    )
    offloaded = {str(device): size for device, size in weights.items() if device not in here}
    return Placement(device_map, loads, offloaded)


def _device_of(device_map: DeviceMap, name: str) -> int | str:
    if (device := find_device(device_map, name)) is None:
        raise KeyError(f"the device map does not assign {name}")
    return device


def _activations(cost: PassMemory, first: bool) -> int:
    """Bytes of activations: the first device runs all phases, the others only layers of the language model."""
    language = cost.peaks["language model"] - cost.cache
    others = (size for phase, size in cost.peaks.items() if phase != "language model")
    return max(language, *others) if first else language


def reserve_of(device: Device, cost: PassMemory) -> int:
    """Bytes that a plan leaves free on a device: `RESERVE` on a GPU, the size of the largest phase on a CPU.

    The CPU allocator keeps freed memory (`models/cpu_allocator.py`) and cannot reuse all of it: `benchmarks/plan.py`
    measured 0.4 to 1.4 times the largest phase.
    """
    return RESERVE if isinstance(device.index, int) else cost.peak


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
