"""A family of vision-language models is one file and one key table; no other code names a family."""

import re
from pathlib import Path

import pytest
from tests.codes import raises_code

import vesalius
from vesalius.errors import CheckpointError
from vesalius.models.families.table import FAMILIES, family_of
from vesalius.models.presets import PRESETS

PACKAGE = Path(vesalius.__file__).parent
NAMES = re.compile(r"qwen|internvl|internlm", re.IGNORECASE)


def test_only_families_and_key_tables_name_a_family() -> None:
    families = PACKAGE / "models" / "families"
    sources = [path for path in PACKAGE.rglob("*.py") if not path.is_relative_to(families)]
    assert len(sources) > 200
    naming = []
    for path in sources:
        text = path.read_text(encoding="utf-8")
        for preset in PRESETS:
            text = text.replace(preset, "")
        if path != PACKAGE / "models" / "keymaps.py" and NAMES.search(text):
            naming.append(path.relative_to(PACKAGE).as_posix())
    assert naming == []


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_recognized_by_its_own_family_alone(name: str) -> None:
    config = next(family.presets[name].config for family in FAMILIES.values() if name in family.presets)
    assert [family.name for family in FAMILIES.values() if family.recognizes(config)] == [PRESETS[name]().family]


@pytest.mark.parametrize("name", FAMILIES)
def test_names_in_a_file_lead_back_to_names_in_the_module(name: str) -> None:
    family = family_of(name)
    for prefix in ("model.language_model.layers.0", family.vision_modules[0], "lm_head"):
        assert family.module_name(family.saved_name(f"{prefix}.weight")) == f"{prefix}.weight"


def test_unknown_family_is_refused_with_the_known_ones() -> None:
    with raises_code(CheckpointError, "unknown_family", "'llava'", *FAMILIES):
        family_of("llava")
