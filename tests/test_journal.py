"""Journals: complete lines are read back, incomplete ones are dropped, and writing continues after them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.codes import raises_code

from vesalius.errors import OutputError
from vesalius.journal import Journal, read_journal

LINES = [{"id": "a", "text": "血管\n"}, {"id": "b"}, {"id": "c"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append(*LINES[:2])
        journal.append(LINES[2])
        journal.finish()
    return tmp_path / "journal.jsonl"


def test_lines_are_read_back_with_their_offsets(path: Path, tmp_path: Path) -> None:
    entries = list(read_journal(path))
    assert [entry.value for entry in entries] == LINES
    assert entries[-1].end == path.stat().st_size
    assert list(read_journal(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize("tail", [b'{"id": "d"', b"\0" * 9])
def test_a_last_line_that_was_cut_short_does_not_count(path: Path, tail: bytes) -> None:
    path.write_bytes(path.read_bytes() + tail)
    assert [entry.value for entry in read_journal(path)] == LINES


@pytest.mark.parametrize("line", [b"[1]\n", b"no JSON\n"])
def test_a_complete_line_that_is_no_object_is_an_error(path: Path, line: bytes) -> None:
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(ValueError):
        list(read_journal(path))


def test_writing_continues_after_the_kept_lines(path: Path) -> None:
    keep = [entry.end for entry in read_journal(path)][1]
    with Journal(path, keep) as journal:
        journal.append({"id": "new"})
    assert [entry.value["id"] for entry in read_journal(path)] == ["a", "b", "new"]


def test_a_journal_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with raises_code(OutputError, "write_failed", "Is a directory"):
        Journal(tmp_path)
