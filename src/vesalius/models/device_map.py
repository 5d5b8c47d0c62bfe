"""Device maps: the layers of the vision-language model on several devices, all other components on one device."""

from __future__ import annotations

from collections.abc import Mapping

from accelerate.utils import send_to_device
from transformers import PreTrainedModel

from vesalius.errors import CheckpointError
from vesalius.models.families.table import FAMILIES

DeviceMap = Mapping[str, int | str]
"""Module name of `TextSegModel` -> GPU index, `cpu` or `disk`; the name "" stands for the whole model."""

HOME_MODULES = (*dict.fromkeys(f"vlm.{family.vision_modules[0]}" for family in FAMILIES.values()), "projector", "sam")


def find_device(device_map: DeviceMap, name: str) -> int | str | None:
    """The device of a module or tensor; None if the map contains neither its name nor a parent module."""
    while name and name not in device_map:
        name = name.rpartition(".")[0]
    return device_map.get(name)


def home_device(device_map: DeviceMap) -> int | str:
    """The device of the vision encoder, the [SEG] projector and SAM; batches are sent to it.

    CheckpointError if these three are not on one device.
    """
    devices = [device for name in HOME_MODULES if (device := find_device(device_map, name)) is not None]
    # the map of a model names the vision encoder of one family only
    if len(devices) < 3 or len(set(devices)) != 1 or "disk" in devices:
        raise CheckpointError(
            "a device map must put the vision encoder, the projector and SAM on one device", code="invalid_device_map"
        )
    return devices[0]


def vlm_device_map(device_map: DeviceMap) -> dict[str, int | str]:
    """The map's entries for the vision-language model, with module names relative to that model."""
    return {
        name.removeprefix("vlm").removeprefix("."): device
        for name, device in device_map.items()
        if name in ("", "vlm") or name.startswith("vlm.")
    }


def return_to_device(vlm: PreTrainedModel, home: int | str) -> None:
    """Add hooks that move the outputs of a model spread over devices to the device `home`.

    Within the model, Accelerate's hooks, installed by transformers, move the inputs of each module.
    """
    skipped = list(vlm._skip_keys_device_placement)
    for module in (vlm.get_input_embeddings(), *vlm.model.children(), vlm.lm_head):
        module.register_forward_hook(lambda _, inputs, output: send_to_device(output, home, skip_keys=skipped))
