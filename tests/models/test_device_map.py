"""A model on two devices gives the masks of one device, also with weights offloaded to disk; one device is simulated."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from PIL import Image
from tests.codes import raises_code
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vesalius.errors import CheckpointError
from vesalius.models.batch import Batch
from vesalius.models.checkpoint import OpenedModel, new_model, open_model, save_bundle
from vesalius.models.device_map import find_device, home_device, return_to_device, vlm_device_map
from vesalius.models.generation import force_answer, generate_answer
from vesalius.types import Item

FAMILIES = ("internvl_qwen2", "internvl_internlm2", "qwen2_5_vl", "qwen3_vl")


def two_parts(opened: OpenedModel, other: str, first_elsewhere: int = 1) -> dict[str, int | str]:
    """A device map with the other layers of the language model on `other`, all else on the CPU."""
    model = opened.model.vlm.model
    parts = [name for name, _ in model.named_children() if name != "language_model"]
    places: dict[str, int | str] = {f"vlm.model.{name}": "cpu" for name in parts}
    for name, _ in model.language_model.named_children():
        if name != "layers":
            places[f"vlm.model.language_model.{name}"] = other if name == "norm" else "cpu"
    for i in range(len(model.language_model.layers)):
        places[f"vlm.model.language_model.layers.{i}"] = other if i >= first_elsewhere else "cpu"
    return places | {"vlm.lm_head": other, "projector": "cpu", "sam": "cpu"}


def ask(opened: OpenedModel, image: Image.Image, answered: bool) -> Batch:
    frames = np.asarray(image.convert("RGB"))[None]
    return opened.processor([Item("a", frames, ("blood vessel", "a longer name"))], answered=answered)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_equal_with_half_of_the_layers_offloaded_to_disk(oracle: Path, tmp_path: Path, family: str) -> None:
    plain = open_model(oracle / family)
    save_bundle(tmp_path / "bundle", plain)
    spread = open_model(tmp_path / "bundle", two_parts(plain, "disk"))
    waiting = [name for name, p in spread.model.named_parameters() if p.device.type == "meta"]
    assert any(".layers.1." in name for name in waiting)
    assert not any(".layers.0." in name or name.startswith("sam.") for name in waiting)
    batch = ask(plain, Image.open(oracle / "inputs" / "square_400.png"), answered=True)
    with torch.no_grad():
        maps = []
        for opened in (plain, spread):
            answer = force_answer(opened.model, batch)
            maps.append(opened.model.decode(batch.g_pixel_values, answer.seg).logits)
    assert maps[0].shape == (2, 256, 256)
    torch.testing.assert_close(maps[1], maps[0], atol=1e-4, rtol=0)


class SecondDevice(TorchDispatchMode):
    """Simulates a second device with `meta` tensors, which return to the CPU as zeros and cannot be mixed with it.

    What it cannot tell: places to pick may be on the CPU whatever they are picked from, but not on another GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.returned = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "meta":
            if kwargs.get("device", torch.device("meta")).type == "cpu":
                self.returned += 1
                args = tree_map_only(torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), args)
        elif func in PICKS:
            args = (args[0], [i if i is None else i.to(args[0].device) for i in args[1]], *args[2:])
        elif func not in MOVES:
            devices = {t.device.type for t in tree_leaves((args, kwargs)) if is_array(t)}
            assert len(devices) < 2, f"{func} is given tensors of two devices"
        return func(*args, **kwargs)


MOVES = (torch.ops.aten.copy_.default, torch.ops.aten.set_.source_Storage)
PICKS = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)


def is_array(value: Any) -> bool:
    """Whether it is a tensor whose device matters; for scalars and indices it does not."""
    return isinstance(value, torch.Tensor) and value.ndim > 0


@contextmanager
def over_two_devices(opened: OpenedModel) -> Iterator[SecondDevice]:
    # of no layer here that takes image features, whose places would be lost
    taken = len(getattr(opened.model.vlm.config.vision_config, "deepstack_visual_indexes", ()))
    places = vlm_device_map(two_parts(opened, "meta", max(1, taken)))
    skipped = list(opened.model.vlm._skip_keys_device_placement)
    dispatch_model(opened.model.vlm, places, main_device="cpu", skip_keys=skipped)
    return_to_device(opened.model.vlm, "cpu")
    with SecondDevice() as second, torch.no_grad():
        yield second


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_computed_from_tensors_of_two_devices(oracle: Path, family: str) -> None:
    opened = open_model(oracle / family)
    opened.model.seg_before_norm = True  # as Qwen3-VL's is: that state comes from where the last layer is
    image = Image.open(oracle / "inputs" / "square_400.png")
    given, asked = ask(opened, image, answered=True), ask(opened, image, answered=False)
    with over_two_devices(opened) as second:
        answer = force_answer(opened.model, given)
        assert opened.model.decode(given.g_pixel_values, answer.seg).logits.shape == (2, 256, 256)
        before = second.returned
        assert before > 0
        generate_answer(opened.model, asked, opened.processor.stop_id, 3)
        assert second.returned > before


def test_the_simulated_device_refuses_to_mix_with_the_cpu() -> None:
    with SecondDevice(), pytest.raises(AssertionError, match="two devices"):
        _ = torch.ones(2, device="meta") + torch.ones(2)


def test_a_device_map_is_read_by_the_nearest_parent_module() -> None:
    places = {"vlm.model": 0, "vlm.lm_head": 1, "projector": 0, "sam": 0}
    assert find_device(places, "vlm.model.visual.blocks.3.weight") == 0
    assert find_device(places, "vlm.lm_head.weight") == 1
    assert find_device(places, "other") is None
    assert home_device(places) == 0
    assert vlm_device_map(places) == {"model": 0, "lm_head": 1}
    assert vlm_device_map({"": 0}) == {"": 0}


@pytest.mark.parametrize(
    "places",
    [
        {"vlm": 0, "projector": 0, "sam": 1},
        {"vlm": "disk", "projector": "disk", "sam": "disk"},
        {"vlm.model.visual": 1, "projector": 0, "sam": 0},
        {"projector": 0, "sam": 0},
    ],
)
def test_a_device_map_that_separates_encoder_projector_and_sam_is_refused(places: dict[str, int | str]) -> None:
    with raises_code(CheckpointError, "invalid_device_map"):
        home_device(places)


def test_an_official_folder_cannot_be_offloaded_to_disk(oracle: Path) -> None:
    opened = open_model(oracle / "internvl_qwen2")
    with raises_code(CheckpointError, "wrong_model_kind", "vesalius convert"):
        open_model(oracle / "internvl_qwen2", two_parts(opened, "disk"))


def test_an_official_folder_can_be_spread(oracle: Path) -> None:
    opened = open_model(oracle / "qwen3_vl")
    spread = open_model(oracle / "qwen3_vl", two_parts(opened, "cpu"))
    pairs = zip(spread.model.named_parameters(), opened.model.named_parameters(), strict=True)
    assert all(name == other and torch.equal(p, q) for (name, p), (other, q) in pairs)


def test_a_model_with_an_adapter_is_not_spread(tmp_path: Path) -> None:
    opened = new_model("tiny", seed=0)
    save_bundle(tmp_path / "bundle", opened)
    (tmp_path / "bundle" / "adapter").mkdir()
    with raises_code(CheckpointError, "wrong_model_kind", "vesalius train --resume"):
        open_model(tmp_path / "bundle", two_parts(opened, "disk"))
