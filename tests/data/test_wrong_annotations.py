"""Invalid entries of every annotation format: each raises one error with its code, file and location in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vesalius.data.formats import FORMATS
from vesalius.data.source import Source
from vesalius.errors import AnnotationError, DataError

from ..codes import raises_code
from . import wrong_annotations
from .annotation_files import make_images, read

IMAGES = "a.png images/b.png images/p1/d.png images/p1/e.png images/p2/e.png images/frame_000000.png"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_images(tmp_path, *IMAGES.split())


CASES = [
    pytest.param(kind, *case, id=f"{kind} {index}: {case[1]}")
    for kind, cases in wrong_annotations.ENTRIES.items()
    for index, case in enumerate(cases)
]


@pytest.mark.parametrize(("kind", "value", "code", "within", "holds"), CASES)
def test_a_wrong_entry_is_named_and_left_out(
    root: Path, kind: str, value: Any, code: str, within: str, holds: str
) -> None:
    data, file, entry, kept = wrong_annotations.FILES[kind](root, value)
    with raises_code(AnnotationError, code, holds) as caught:
        read(kind.split(maxsplit=1)[0], data)
    error = caught.value
    if within == wrong_annotations.KEPT:
        assert within in str(error) and str(error).startswith(str(file))
        return
    assert error.path == str(file)
    assert (error.field or "").startswith(entry) and within in (error.field or "")
    assert str(error).startswith(f"{file}, {error.field}: " if error.field else f"{file}: ")
    assert error.remedy is not None and str(error).endswith(f"; {error.remedy}")
    assert "\n" not in str(error)
    problems: list[DataError] = []
    assert [sample.id for sample in read(kind.split(maxsplit=1)[0], data, problems)] == kept
    assert [problem.code for problem in problems] == [code]


@pytest.mark.parametrize(
    ("kind", "name", "content", "code", "field"),
    [pytest.param(*case, id=f"{case[0]} {index}") for index, case in enumerate(wrong_annotations.WHOLE_FILES)],
)
def test_a_file_that_is_wrong_as_a_whole_raises_even_if_errors_are_collected(
    tmp_path: Path, kind: str, name: str, content: bytes, code: str, field: str | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with raises_code(AnnotationError, code) as caught:
        FORMATS[kind].read(Source(path), "", [])
    assert (caught.value.path, caught.value.field) == (str(path), field)


@pytest.mark.parametrize(("kind", "name"), [("vesalius", "a.json"), ("coco", "a.json"), ("cvat", "a.xml")])
def test_a_missing_file_is_named(tmp_path: Path, kind: str, name: str) -> None:
    with raises_code(AnnotationError, "unreadable_file", "No such file") as caught:
        FORMATS[kind].read(Source(tmp_path / name), "", [])
    assert caught.value.path == str(tmp_path / name)
