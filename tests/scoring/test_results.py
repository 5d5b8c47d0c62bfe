"""Evaluation folders read back: every way to be wrong has its sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vesalius.errors import DataError
from vesalius.scoring.results import read_evaluation

GOOD = {"id": "a", "group": "p", "prompt": "vessel", "status": "ok", "dice": 0.5, "error": None}
FACTS = {
    "model": {"name": "m"},
    "data": {"name": "d"},
    "coverage": {"ok": 2, "failed": 0, "no_seg": 0, "empty": 0},
    "mean": {"dice": 0.5, "seg_rate": 1.0},
}


def folder_of(folder: Path, *lines: str, facts: Any = FACTS) -> Path:
    (folder / "metrics.json").write_text(
        facts if isinstance(facts, str) else json.dumps(facts), encoding="utf-8"
    )
    (folder / "samples.jsonl").write_text("\n".join([json.dumps(GOOD), *lines]) + "\n", encoding="utf-8")
    return folder


def line(**changes: Any) -> str:
    return json.dumps({**GOOD, "id": "b", **changes})


def test_rows_are_found_by_id_and_prompt(tmp_path):
    found = read_evaluation(folder_of(tmp_path, line(dice=None)), "mine")

    assert list(found.rows) == [("a", "vessel"), ("b", "vessel")]
    assert (found.name, found.facts, found.metrics) == ("mine", FACTS, ("dice",))
    assert not found.failed(("b", "vessel"))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{", "line 2: cannot be read as JSON"),
        ("", "line 2: cannot be read as JSON"),
        ("[1]", "line 2: must be a JSON object; got list"),
        (line(dice=float("nan")), r"line 2: cannot be read as JSON \(NaN is not JSON\)"),
        (line().replace("0.5", "1e999"), "line 2: dice must be a number or null; got inf"),
        (line(dice="0.5"), "line 2: dice must be a number or null; got '0.5'"),
        (line(dice=True), "line 2: dice must be a number or null; got True"),
        (line(status="fine"), "line 2: status must be ok, failed or no_seg; got 'fine'"),
        (line(status="failed"), "line 2: failed, and yet dice is 0.5; a failed row has no score"),
        (line(id=7), "line 2: id must be text; got 7"),
        (line(group=None), "line 2: group must be text; got None"),
        (line().replace('"dice": 0.5, ', ""), "line 2: has no dice"),
        (line(id="a"), r"line 2: a \(vessel\) is there twice"),
    ],
)
def test_line_that_cannot_be_trusted_is_named(tmp_path, bad, words):
    with pytest.raises(DataError, match=rf"samples\.jsonl, {words}"):
        read_evaluation(folder_of(tmp_path, bad), "mine")


def test_bytes_that_are_no_text_are_named(tmp_path):
    folder = folder_of(tmp_path, line())
    (folder / "samples.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(DataError, match=r"samples\.jsonl, line 1: cannot be read as JSON"):
        read_evaluation(folder, "mine")


def test_file_that_was_cut_short_is_refused(tmp_path):
    with pytest.raises(DataError, match="has 1 ok, 0 failed, 0 no_seg, but metrics"):
        read_evaluation(folder_of(tmp_path), "mine")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ("nothing", r"metrics\.json: cannot be read as JSON"),
        ({**FACTS, "mean": None}, r"metrics\.json: has no mean, so it is not what evaluate writes"),
        ({"mean": {}}, r"metrics\.json: has no model"),
    ],
)
def test_metrics_of_something_else_are_refused(tmp_path, facts, words):
    with pytest.raises(DataError, match=words):
        read_evaluation(folder_of(tmp_path, line(), facts=facts), "mine")


def test_folder_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"metrics\.json: cannot be read \(No such file or directory\); name a folder"
    ):
        read_evaluation(tmp_path, "mine")
