"""The table of codes, and findings made of errors."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import vesalius.data
from vesalius.checks.findings import CODES, of_error, of_sample, some, split_place
from vesalius.errors import AnnotationError, DataError, ImageError
from vesalius.types import Sample

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(vesalius.data.__file__).parent


def codes_raised() -> dict[str, str]:
    """Every code that the room `data` gives to an error -> where."""
    found = {}
    for path in sorted(DATA.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Error"):
                for part in (each for argument in node.args[1:] for each in ast.walk(argument)):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        found[part.value] = f"{path.relative_to(DATA)}, line {node.lineno}"
    return found


def test_every_code_that_is_raised_stands_in_the_table() -> None:
    raised = codes_raised()
    assert len(raised) > 10
    assert {code: where for code, where in raised.items() if code not in CODES} == {}
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", code) for code in CODES)


def test_the_page_lists_the_table_of_codes() -> None:
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \| (.+) \|$", page, flags=re.MULTILINE)
    assert rows == [(code, each.severity, each.meaning, each.remedy) for code, each in CODES.items()]


@pytest.mark.parametrize("kind", CODES.values(), ids=CODES.keys())
def test_meaning_and_remedy_are_one_sentence_each(kind: object) -> None:
    for text in (kind.meaning, kind.remedy):  # type: ignore[attr-defined]
        assert text
        assert not text.endswith(".")
        assert "|" not in text


def test_an_error_of_a_reader_is_taken_apart() -> None:
    text = "d/annotations.json, entry 3 (a.png): has 2 masks but 1 texts; give one text an object"
    found = of_error(AnnotationError(text, code="unequal_counts"))
    assert (found.file, found.place) == ("d/annotations.json", "entry 3 (a.png)")
    assert (found.message, found.remedy) == ("has 2 masks but 1 texts", "give one text an object")
    assert found.severity == "error"


def test_an_error_without_place_or_remedy_is_told_whole() -> None:
    found = of_error(DataError("all is lost"))
    assert (found.code, found.file, found.place, found.message) == ("data", "", "", "all is lost")
    assert found.remedy == CODES["data"].remedy


def test_what_stops_a_reader_is_an_error_whatever_its_code() -> None:
    assert of_error(AnnotationError("a.json: x", code="turned_image")).severity == "error"
    assert of_error(ImageError("a.dcm: x", code="a_code_of_tomorrow")).code == "image"


def test_a_place_is_told_by_the_file_where_the_sample_has_no_entry() -> None:
    sample = Sample("a", Path("d/images/a.png"), ("v",), None, source="d/images/a.png")
    found = of_sample("overlap", sample, "m", within="'v'")
    assert (found.file, found.place, found.samples) == ("d/images/a.png", "a.png: 'v'", ("a",))
    assert split_place("d/clip.mp4, frame 7") == ("d/clip.mp4", "frame 7")


def test_long_lists_say_how_many_more_there_are() -> None:
    assert some("abc") == "a, b, c"
    assert some("abcdefg") == "a, b, c, d, e and 2 more"
