"""docs/settings.md lists every setting, as the settings classes define it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The script that writes the page."""
    spec = importlib.util.spec_from_file_location("settings_page", DOCS / "settings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(generator: ModuleType) -> None:
    """`make docs` brings it up to date."""
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == generator.page()


def test_every_setting_has_a_meaning(generator: ModuleType) -> None:
    rows = [row for kind, _ in generator.SECTIONS.values() for row in generator.list_settings(kind)]
    assert len(rows) > 80
    assert [key for key, _, _, meaning in rows if not meaning] == []
