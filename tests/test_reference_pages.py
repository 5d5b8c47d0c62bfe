"""docs/settings.md lists every setting as its class defines it, and docs/glossary.md names files that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The script that writes the page."""
    spec = importlib.util.spec_from_file_location("settings_page", DOCS / "settings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_settings_is_up_to_date(generator: ModuleType) -> None:
    """`make docs` brings it up to date."""
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == generator.page()


def test_every_setting_has_a_meaning(generator: ModuleType) -> None:
    rows = [row for kind, _ in generator.SECTIONS.values() for row in generator.list_settings(kind)]
    assert len(rows) > 80
    assert [key for key, _, _, meaning in rows if not meaning] == []


def test_the_glossary_names_files_that_exist() -> None:
    rows = re.findall(
        r"^\| (.+?) \| (.+?) \| (.+) \| `(.+?)` \|$", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) >= 60
    assert [file for *_, file in rows if not (ROOT / "src" / "vesalius" / file).is_file()] == []
