"""The rules of the house that no other tool holds: sizes, forbidden words, rooms without torch, public names."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vesalius

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vesalius"
SOURCES = sorted((*PACKAGE.rglob("*.py"), *ROOT.glob("recipes/*.py"), *ROOT.glob("benchmarks/*.py")))
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60
FORBIDDEN = {
    r"strict\s*=\s*False": "weights are loaded strictly (strict=True of zip is something else)",
    r"trust_remote_code\s*=\s*True": "code beside weights is never executed",
    r"weights_only\s*=\s*False": "pickles are never executed",
    r"torch\.distributed(\.| import.*\b)checkpoint\b": "its files are opened with pickle",
    r"except\s*:": "an error that nobody named is hidden",
}
ROOMS_WITHOUT_TORCH = (
    "errors",
    "extras",
    "types",
    "masks",
    "files",
    "names",
    "progress",
    "workers",
    "arguments",
    "tensorfiles",
    "config",
    "lineage",
    "plots",
    "visualization",
    "data",
    "evaluation",
    "scoring",
    "cli",
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def modules_without_torch() -> list[str]:
    """`vesalius` and every module of the rooms that must start without torch."""
    modules = ["vesalius"]
    for room in ROOMS_WITHOUT_TORCH:
        folder = PACKAGE / room
        files = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]
        assert files
        parts = [file.relative_to(PACKAGE.parent).with_suffix("").parts for file in files]
        modules += [".".join(part for part in each if part != "__init__") for each in parts]
    return modules


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) < MOST_LINES, "find a better noun, not two halves"
    long = [
        f"{node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 >= MOST_LINES_OF_A_FUNCTION
    ]
    assert long == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_source_loads_by_halves_or_runs_foreign_code(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert [reason for pattern, reason in FORBIDDEN.items() if re.search(pattern, source)] == []


def test_no_room_is_named_for_nothing() -> None:
    nouns = {path.stem for path in PACKAGE.rglob("*")}
    assert nouns & {"utils", "util", "helpers", "common", "core", "misc"} == set()


def test_rooms_below_models_do_not_import_torch() -> None:
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n" + (
        "print(*(name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules))"
    )
    modules = modules_without_torch()
    assert len(modules) > 20
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "", "imported by a room that must start in a fraction of a second"


def test_public_names_are_the_same_everywhere() -> None:
    assert sorted(vesalius.__all__) == vesalius.__all__
    assert set(vesalius.__all__) == set(vesalius._HOME)
    for_type_checkers = {
        alias.name
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert for_type_checkers == set(vesalius.__all__)
    with pytest.raises(AttributeError, match="no attribute 'segment'"):
        _ = vesalius.segment


@pytest.mark.parametrize(
    "first", ["pass", "import vesalius.cli, vesalius.scoring.evaluate, vesalius.training.run"]
)
def test_public_names_are_classes_and_functions_whatever_was_imported_before(first: str) -> None:
    names = ", ".join(vesalius.__all__)
    code = f"{first}\nfrom vesalius import {names}\nprint(*(each.__name__ for each in ({names})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == vesalius.__all__
