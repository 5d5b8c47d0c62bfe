"""Examples in docstrings of public names, on the page for Python, and in the notebook give what they show."""

from __future__ import annotations

import doctest
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.test_documentation import ROOT, blocks

import vesalius
from vesalius.synth import write_dataset

NOTEBOOK = ROOT / "docs" / "notebooks" / "first_hour.ipynb"
NUMBER = r"\d[\d,]*(?:\.\d+)?"


def documented() -> list[tuple[str, str]]:
    """Name and docstring of each public name and of its methods."""
    found = []
    for name in vesalius.__all__:
        thing = getattr(vesalius, name)
        found.append((name, thing.__doc__ or ""))
        if isinstance(thing, type):
            methods = ((each, getattr(thing, each)) for each in dir(thing) if each == "__call__" or each[0] != "_")
            found += [(f"{name}.{each}", method.__doc__ or "") for each, method in methods if callable(method)]
    return [(name, text) for name, text in found if ">>> " in text]


@pytest.mark.parametrize(("name", "text"), documented(), ids=lambda value: value if len(value) < 40 else "")
def test_examples_of_docstrings_give_what_they_show(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"np": np, **{each: getattr(vesalius, each) for each in vesalius.__all__}}
    example = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0


@pytest.mark.slow
def test_examples_of_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, part in enumerate(("train", "val", "test")):
        write_dataset(tmp_path / "demo" / part, 2, seed=seed, num_workers=0)
    first, second = sorted((tmp_path / "demo" / "test" / "images").iterdir())
    (tmp_path / "frame.png").write_bytes(first.read_bytes())
    (tmp_path / "other.png").write_bytes(second.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("docs/python.md", "python"):
        if "Sa2VA-4B" not in block:  # no published model is on this machine
            exec(block.replace("steps=100", "steps=1").replace("steps=200", "steps=2"), names)
    assert (names["table"][1][0].id, names["table"][1][0].prompt) == ("other", "blood vessel")
    assert {each.name for each in Path("out").iterdir()} == {"mask.png", "overlay.png", "figure.png"}


def texts(notebook: dict[str, Any]) -> list[str]:
    """The text outputs of all cells."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return ["".join(output.get("text") or output["data"]["text/plain"]) for output in outputs]


@pytest.mark.slow
def test_the_notebook_gives_its_stored_outputs(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "docs" / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    stored = NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(stored)
    runner.execute(notebook, tmp_path)
    before, after = texts(json.loads(stored)), texts(notebook)
    assert [re.sub(NUMBER, "#", text) for text in after] == [re.sub(NUMBER, "#", text) for text in before]
    numbers = [
        [float(each.replace(",", "")) for each in re.findall(NUMBER, " ".join(some))] for some in (before, after)
    ]
    # areas differ by a few pixels between processors
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=0.05, atol=0.1)


def test_the_notebook_is_executed_and_small() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert NOTEBOOK.stat().st_size < 1_000_000
