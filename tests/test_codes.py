"""The table of codes is complete and documented."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import vesalius
from vesalius import errors
from vesalius.codes import CODES, Code, as_chinese_markdown, as_markdown, chinese_codes

SRC = Path(vesalius.__file__).parent
ROOT = Path(__file__).resolve().parents[1]


def test_every_code_in_the_source_stands_in_the_table() -> None:
    used = {}
    for path in sorted(SRC.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                used[node.value.value] = f"{path.relative_to(SRC)}, line {node.value.lineno}"
            # the second argument of Location.error is a code, and the third of image_error
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                for code in node.args[{"error": 1, "image_error": 2}.get(name, len(node.args)) :][:1]:
                    if isinstance(code, ast.Constant):
                        used[code.value] = f"{path.relative_to(SRC)}, line {code.lineno}"
    assert len(used) > 40
    assert {code: where for code, where in used.items() if code not in CODES} == {}


def test_every_error_in_the_source_is_given_a_code() -> None:
    names = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    bare = [
        f"{path.relative_to(SRC)}, line {node.lineno}"
        for path in sorted(SRC.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in names - {"InterruptionError"}
        and not any(keyword.arg in ("code", None) for keyword in node.keywords)
    ]
    assert len(names) > 8
    assert bare == []


def test_the_page_lists_the_table() -> None:
    """`python -m vesalius.codes > docs/errors.md` brings it up to date."""
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == as_markdown()


def test_the_chinese_page_explains_every_code() -> None:
    """`python -m vesalius.codes zh > docs/zh/errors.md` brings it up to date."""
    chinese = chinese_codes()
    assert {code: entry.severity for code, entry in chinese.items()} == {
        code: entry.severity for code, entry in CODES.items()
    }
    assert list(chinese) == list(CODES)
    assert (ROOT / "docs" / "zh" / "errors.md").read_text(encoding="utf-8") == as_chinese_markdown()
    for code, entry in chinese.items():
        for text, english in ((entry.meaning, CODES[code].meaning), (entry.remedy, CODES[code].remedy)):
            assert re.search("[\u4e00-\u9fff]", text) and not text.endswith("。"), code
            assert set(re.findall(r"`[^`]+`|--[a-z-]+", text)) == set(re.findall(r"`[^`]+`|--[a-z-]+", english)), code


@pytest.mark.parametrize(("code", "entry"), CODES.items(), ids=CODES.keys())
def test_a_code_is_one_word_with_a_meaning_and_a_remedy(code: str, entry: Code) -> None:
    assert re.fullmatch("[a-z]+(_[a-z]+)*", code)
    for text in (entry.meaning, entry.remedy):
        assert text
        assert not text.endswith(".")
        assert "|" not in text
