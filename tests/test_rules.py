"""Rules of the repository that no other tool checks; CONTRIBUTING.md explains them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import vesalius

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vesalius"
SOURCES = sorted(
    (
        *PACKAGE.rglob("*.py"),
        *(path for name in ("recipes", "benchmarks", "docs") for path in (ROOT / name).rglob("*.py")),
    )
)
FORBIDDEN = {
    r"strict\s*=\s*False": "weights are loaded strictly (strict=True of zip is something else)",
    r"trust_remote_code\s*=\s*True": "code beside weights is never executed",
    r"weights_only\s*=\s*False": "pickles are never executed",
    r"torch\.distributed(\.| import.*\b)checkpoint\b": "its files are opened with pickle",
    r"except\s*:": "an unnamed exception hides errors",
}
WITH_TORCH = {"jobs", "models", "inference", "conversion", "training"}
"""Packages that import torch, and take a second to import."""
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_OF_A_PACKAGE = 400, 60, 0.2


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def test_files_and_functions_are_short() -> None:
    long = [
        f"{name_of(path)}: {len(path.read_text(encoding='utf-8').splitlines())} lines"
        for path in SOURCES
        if len(path.read_text(encoding="utf-8").splitlines()) >= MOST_LINES
    ]
    long += [
        f"{name_of(path)}, {node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 >= MOST_LINES_OF_A_FUNCTION
    ]
    assert long == []


def test_no_package_has_a_fifth_of_the_lines() -> None:
    lines: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        lines[path.relative_to(PACKAGE).parts[0]] += len(path.read_text(encoding="utf-8").splitlines())
    package, count = lines.most_common(1)[0]
    assert count < MOST_OF_A_PACKAGE * lines.total(), package


def test_no_source_loads_weights_in_part_or_runs_foreign_code() -> None:
    found = [
        f"{name_of(path)}: {reason}"
        for path in SOURCES
        for pattern, reason in FORBIDDEN.items()
        if re.search(pattern, path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    names = {path.stem for path in PACKAGE.rglob("*")}
    assert names & {"utils", "util", "helpers", "common", "core", "misc"} == set()


def test_packages_below_models_and_the_command_line_do_not_import_torch() -> None:
    modules = [
        module_of(path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in WITH_TORCH
    ]
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n" + (
        "print(*(name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_public_names_are_the_same_everywhere() -> None:
    assert sorted(vesalius.__all__) == vesalius.__all__
    assert set(vesalius.__all__) == set(vesalius._HOME)
    for_type_checkers = {
        alias.name
        for node in ast.walk(tree_of(PACKAGE / "__init__.py"))
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
def test_public_names_are_classes_and_functions_in_any_order_of_imports(first: str) -> None:
    names = ", ".join(vesalius.__all__)
    code = f"{first}\nfrom vesalius import {names}\nprint(*(each.__name__ for each in ({names})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == vesalius.__all__
