"""The presets have the published sizes; shapes only, on the meta device."""

import json

import pytest
import torch
from tests.codes import raises_code

from vesalius.errors import SettingError
from vesalius.models.presets import PRESETS, find_spec
from vesalius.models.textseg import build

PUBLISHED_VALUES = {  # as counted in the official checkpoints
    "Sa2VA-1B": 1163665714,
    "Sa2VA-4B": 3941809714,
    "Sa2VA-8B": 8317666866,
    "Sa2VA-26B": 25778005938,
    "Sa2VA-InternVL3-2B": 2316157490,
    "Sa2VA-InternVL3-8B": 8182606386,
    "Sa2VA-InternVL3-14B": 15369268786,
    "Sa2VA-Qwen2_5-VL-3B": 4293849650,
    "Sa2VA-Qwen2_5-VL-7B": 8527539250,
    "Sa2VA-Qwen3-VL-4B": 5057072690,
}


def count(name: str) -> int:
    with torch.device("meta"):
        model = build(find_spec(name), seg_id=0)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED_VALUES)
def test_preset_has_the_published_number_of_parameters(name: str) -> None:
    positional_encoding = 2 * 128  # a buffer of SAM's prompt encoder, which the official files hold too
    assert count(name) + positional_encoding == PUBLISHED_VALUES[name]


def test_tiny_has_at_most_four_million_parameters() -> None:
    assert count("tiny") <= 4_000_000


def test_every_preset_survives_json() -> None:
    for make in PRESETS.values():
        spec = make()
        assert type(spec).model_validate(json.loads(spec.model_dump_json())) == spec


def test_unknown_name_is_refused_with_the_nearest_one() -> None:
    with raises_code(SettingError, "unknown_model", "Sa2VA-26B"):
        find_spec("sa2va-27b")


def test_hub_id_names_the_same_preset() -> None:
    assert find_spec("ByteDance/Sa2VA-4B") == find_spec("Sa2VA-4B")
