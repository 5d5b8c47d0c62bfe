"""One model over several devices: the vision-language half where a device map puts its layers, all else on one device."""

from __future__ import annotations

from collections.abc import Mapping

from accelerate.utils import send_to_device
from transformers import PreTrainedModel

from vesalius.errors import CheckpointError
from vesalius.models.families.table import FAMILIES

DeviceMap = Mapping[str, int | str]
"""Name of a module of `TextSegModel` -> a GPU's number, `cpu` or `disk`; the name "" is the whole model."""

AT_HOME = (
    *dict.fromkeys(f"vlm.{family.vision_modules[0]}" for family in FAMILIES.values()),
    "projector",
    "sam",
)


def find_device(device_map: DeviceMap, name: str) -> int | str | None:
    """Where a device map puts a module or tensor of that name; None where it does not say."""
    while name and name not in device_map:
        name = name.rpartition(".")[0]
    return device_map.get(name)


def home_device(device_map: DeviceMap) -> int | str:
    """The device that batches go to: that of the image encoder, the projector and SAM, each as a whole.

    CheckpointError where they are not on one, or where it is no device.
    """
    places = [place for name in AT_HOME if (place := find_device(device_map, name)) is not None]
    # of the image encoder there is one or the other
    if len(places) < 3 or len(set(places)) != 1 or "disk" in places:
        raise CheckpointError(
            "a device map must put the image encoder of the vision-language model, the projector and sam on one device"
        )
    return places[0]


def vlm_device_map(device_map: DeviceMap) -> dict[str, int | str]:
    """The part of the map that is of the vision-language half, in that half's names."""
    return {
        name.removeprefix("vlm").removeprefix("."): place
        for name, place in device_map.items()
        if name in ("", "vlm") or name.startswith("vlm.")
    }


def return_to_device(vlm: PreTrainedModel, home: int | str) -> None:
    """Let a spread half give back on `home` whatever the code outside of it asks for.

    Within the half each module fetches its inputs: transformers lets Accelerate see to that when it opens one.
    """
    skipped = list(vlm._skip_keys_device_placement)
    for module in (vlm.get_input_embeddings(), *vlm.model.children(), vlm.lm_head):
        module.register_forward_hook(lambda _, inputs, made: send_to_device(made, home, skip_keys=skipped))
