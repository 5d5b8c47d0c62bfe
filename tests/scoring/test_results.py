"""Evaluation folders read back: every fault is refused with file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.codes import raises_code

from vesalius.errors import DataError
from vesalius.scoring.results import read_evaluation

GOOD = {"id": "a", "group": "p", "prompt": "vessel", "status": "ok", "dice": 0.5, "error": None}
FACTS = {
    "model": {"name": "m"},
    "data": {"name": "d"},
    "coverage": {"ok": 2, "failed": 0, "no_seg": 0, "empty": 0},
    "mean": {"dice": 0.5, "seg_rate": 1.0},
}


def folder_of(folder: Path, *lines: str | bytes, facts: Any = FACTS) -> Path:
    (folder / "metrics.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    encoded = [line if isinstance(line, bytes) else line.encode() for line in (json.dumps(GOOD), *lines)]
    (folder / "samples.jsonl").write_bytes(b"\n".join(encoded) + b"\n")
    return folder


def line(**changes: Any) -> str:
    return json.dumps({**GOOD, "id": "b", **changes})


def test_rows_are_found_by_id_and_prompt(tmp_path):
    found = read_evaluation(folder_of(tmp_path, line(dice=None)), "mine")

    assert list(found.rows) == [("a", "vessel"), ("b", "vessel")]
    assert (found.name, found.facts, found.metrics) == ("mine", FACTS, ("dice",))
    assert not found.failed(("b", "vessel"))


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ("{", ()),
        ("", ()),
        (b'{"id": "\xff"}', ()),
        ("[1]", ("[1]",)),
        (line(dice=float("nan")), ("NaN is not JSON",)),
        (line(text=float("-inf")), ("-Infinity is not JSON",)),
        (line().replace("0.5", "1e999"), ("dice", "inf")),
        (line(dice="0.5"), ("dice", "'0.5'")),
        (line(dice=True), ("dice", "True")),
        (line(status="fine"), ("status", "'fine'")),
        (line(status="failed"), ("dice", "0.5")),
        (line(id=7), ("id", "7")),
        (line(group=None), ("group", "None")),
        (line().replace('"dice": 0.5, ', ""), ("dice",)),
    ],
)
def test_invalid_line_is_named(tmp_path, bad, names):
    with raises_code(DataError, "invalid_results", "samples.jsonl, line 2: ", *names):
        read_evaluation(folder_of(tmp_path, bad), "mine")


def test_duplicate_row_is_refused(tmp_path):
    with raises_code(DataError, "duplicate_id", "line 2: a (vessel)"):
        read_evaluation(folder_of(tmp_path, line(id="a")), "mine")


def test_truncated_file_is_refused(tmp_path):
    with raises_code(DataError, "invalid_results", "1 ok, 0 failed, 0 no_seg", "2 ok"):
        read_evaluation(folder_of(tmp_path), "mine")


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ("nothing", ""),
        ({**FACTS, "mean": None}, "mean"),
        ({"mean": {}}, "model"),
        ({**FACTS, "mean": {"dice": float("nan")}}, "NaN is not JSON"),
    ],
)
def test_metrics_of_something_else_are_refused(tmp_path, facts, field):
    with raises_code(DataError, "invalid_results", f"metrics.json: {field}"):
        read_evaluation(folder_of(tmp_path, line(), facts=facts), "mine")


def test_folder_without_an_evaluation_is_refused(tmp_path):
    with raises_code(DataError, "not_found", "metrics.json"):
        read_evaluation(tmp_path, "mine")
