"""Rules of the repository that no other tool checks; CONTRIBUTING.md explains them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

import vesalius
from vesalius import errors
from vesalius.codes import CODES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vesalius"
SOURCES = sorted(
    (
        *PACKAGE.rglob("*.py"),
        *(path for name in ("recipes", "benchmarks", "docs") for path in (ROOT / name).rglob("*.py")),
    )
)
TEXTS = [
    *(
        path
        for name in ("src", "tests", "docs", "recipes", "benchmarks")
        for path in sorted((ROOT / name).rglob("*.*"))
        if path.suffix in {".py", ".md", ".yaml", ".jinja"}
    ),
    *ROOT.glob("*.md"),
    ROOT / "Makefile",
    ROOT / "pyproject.toml",
]
FORBIDDEN = {
    r"strict\s*=\s*False": "weights are loaded strictly (strict=True of zip is something else)",
    r"trust_remote_code\s*=\s*True": "code beside weights is never executed",
    r"weights_only\s*=\s*False": "pickles are never executed",
    r"torch\.distributed(\.| import.*\b)checkpoint\b": "its files are opened with pickle",
    r"except\s*:": "an unnamed exception hides errors",
}
WITH_TORCH = {"models", "inference", "conversion", "training"}
"""Packages that import torch, and take a second to import."""
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_OF_A_PACKAGE = 400, 60, 0.2
OLD_WORDS = re.compile(
    r"what_trains|\brivals?\b|ViewGain|namelessness|particulars|optimis(?!tic)|quantis|visualis|initialis|normalis|recognis"
    r"|summaris|organis|answers_alike|truths_alike|shared_pixels|\bledgers?\b|\btally\b|\bdata sets?\b|rundir"
    r"|bring_home|smallfiles|LookedAt|likeness|\blearnt\b|labelled|labelling|colour|\bcentres?\b|neighbour|behaviour"
    r"|\bgrey|artefact|favour|analys(e[sd]?|ing)\b|\bthe house\b|\bnobody\b",
    re.IGNORECASE,
)
"""Home-made words that were replaced by the field's terms, and British spellings."""
WITH_OLD_WORDS = {"CHANGELOG.md", "docs/glossary.md", "tests/test_rules.py", "src/vesalius/checks/names.py"}


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


def test_no_import_is_circular() -> None:
    """All imports count, those in functions and under TYPE_CHECKING as well."""
    files = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    imports: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
                imports[name] |= {each if each in files else node.module for each in targets}
            elif isinstance(node, ast.Import):
                imports[name] |= {alias.name for alias in node.names}
        imports[name] &= files.keys()
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


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


def error_calls(path: Path) -> list[ast.Call]:
    """The calls that make a VesaliusError; InterruptionError sets its code itself."""
    kinds = {name for name in dir(errors) if name.endswith("Error")} - {"InterruptionError"}
    return [
        node
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).removesuffix(".at") in kinds
    ]


def test_every_error_has_a_code_of_the_table() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        for call in error_calls(path):
            [code] = [each.value for each in call.keywords if each.arg == "code"] or [None]
            choices = [code.body, code.orelse] if isinstance(code, ast.IfExp) else [code]
            known = [isinstance(each, ast.Constant) and each.value in CODES for each in choices]
            passed_on = isinstance(code, ast.Attribute | ast.Name)
            if not passed_on and not all(known):
                wrong.append(f"{name_of(path)}:{call.lineno} {ast.unparse(code) if code else 'no code'}")
    assert wrong == []


def test_every_code_of_the_table_is_used() -> None:
    used = {
        node.value
        for path in PACKAGE.rglob("*.py")
        if path.name != "codes.py"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert sorted(CODES.keys() - used) == []


def test_old_words_are_gone() -> None:
    found = [
        f"{name_of(path)}:{number} {match[0]}"
        for path in TEXTS
        if name_of(path) not in WITH_OLD_WORDS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := OLD_WORDS.search(line))
    ]
    assert found == []


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


def test_public_names_are_classes_and_functions_before_and_after_other_imports() -> None:
    names = ", ".join(vesalius.__all__)
    show = f"from vesalius import {names}\nprint(*(each.__name__ for each in ({names})))\n"
    code = f"{show}import vesalius.cli, vesalius.scoring.evaluate, vesalius.training.run\n{show}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == 2 * vesalius.__all__


def test_dir_lists_only_public_names() -> None:
    names = [name for name in dir(vesalius) if not name.startswith("__")]
    assert names == vesalius.__all__
    assert vesalius.__version__ == version("vesalius")
