"""The package: its metadata, and the files of the wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def project() -> dict[str, Any]:
    values: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return values


def test_citation_agrees_with_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    metadata = project()
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation), "the keys that CFF 1.2 requires"
    assert (citation["version"], citation["license"]) == (metadata["version"], metadata["license"])
    assert [author["name"] for author in citation["authors"]] == [each["name"] for each in metadata["authors"]]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", reference["identifiers"][0]["value"])


@pytest.mark.slow
def test_the_wheel_has_model_recipes_and_templates_and_no_test_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("no package index is reachable for the build backend")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = ROOT / "src" / "vesalius"
    source = {f"vesalius/{path.relative_to(package).as_posix()}" for path in package.rglob("*") if path.is_file()}
    recipes = {f"vesalius/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "recipes").rglob("*.yaml")}
    assert names == {name for name in source if "__pycache__" not in name} | recipes
    assert {"vesalius/py.typed", "vesalius/models/tiny/vesalius.json", "vesalius/recipes/arcade.yaml"} <= names
    assert any(name.endswith(".jinja") for name in names)
