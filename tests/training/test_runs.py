"""`vesalius runs` on intact and damaged run folders."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.codes import raises_code

from vesalius.cli import main
from vesalius.errors import SettingError
from vesalius.files import hold_folder
from vesalius.training.runs import as_json, differing, list_runs, tabulate


def make_run(
    folder: Path, settings: dict[str, Any], log: list[dict[str, Any]], validation: list[dict[str, Any]]
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"out": str(folder), **settings}))
    for name, lines in (("log.jsonl", log), ("validation.jsonl", validation)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    plain: dict[str, Any] = {"batch_size": 4, "optim": {"lr": 1e-4}, "validate": {"metric": "dice", "patience": None}}
    steps = [{"step": step, "progress": step / 20} for step in range(1, 21)]
    scores = [{"step": 0, "dice": 0.1}, {"step": 10, "dice": 0.7}, {"step": 20, "dice": 0.6}]
    make_run(tmp_path / "a", plain, steps, scores)
    make_run(tmp_path / "b" / "fast", {**plain, "optim": {"lr": 1e-3}}, steps[:7], scores[:1])
    stopped = {**plain, "validate": {"metric": "hd95_px", "patience": 1}}
    distances = [{"step": 5, "hd95_px": 3.0}, {"step": 10, "hd95_px": 4.0}]
    make_run(tmp_path / "b" / "stopped", stopped, steps[:10], distances)
    (tmp_path / "a" / "checkpoints" / "step-000020").mkdir(parents=True)
    return tmp_path


def test_each_run_is_listed_with_its_state_and_its_best(runs: Path) -> None:
    found = {run.name: run for run in list_runs(runs)}
    assert {name: run.state for name, run in found.items()} == {
        "a": "finished",
        "b/fast": "unfinished",
        "b/stopped": "stopped early",
    }
    assert (found["a"].best, found["a"].best_step, found["a"].baseline) == (0.7, 10, 0.1)
    assert (found["b/fast"].best, found["b/fast"].step, found["b/fast"].progress) == (None, 7, 0.35)
    assert (found["b/stopped"].metric, found["b/stopped"].best) == ("hd95_px", 3.0)


def test_only_settings_that_differ_are_columns(runs: Path) -> None:
    found = list_runs(runs)
    assert differing(found) == ["optim.lr", "validate.metric", "validate.patience"]
    head, *rows = tabulate(found)
    assert head.split()[-3:] == ["optim.lr", "validate.metric", "validate.patience"]
    assert "0.001" in rows[1]
    assert differing(list_runs(runs / "a")) == []
    assert json.loads(json.dumps(as_json(found)))["runs"][0]["best_step"] == 10


def test_a_locked_run_is_running(runs: Path) -> None:
    with ExitStack() as held:
        hold_folder(runs / "b" / "fast", "run", held)
        assert {run.name for run in list_runs(runs) if run.state == "running"} == {"b/fast"}
    assert "running" not in {run.state for run in list_runs(runs)}


def test_damaged_runs_are_listed_with_their_problems(runs: Path) -> None:
    (runs / "a" / "config.yaml").write_text("optim: {lr: [")
    with (runs / "b" / "fast" / "log.jsonl").open("a") as log:
        log.write('{"step": 8, "lo')  # cut by a crash, which does not count as damage
    (runs / "b" / "stopped" / "validation.jsonl").write_text("{}\n")
    found = {run.name: run for run in list_runs(runs)}
    assert found["a"].state == found["b/stopped"].state == "damaged"
    assert (found["b/fast"].state, found["b/fast"].step) == ("unfinished", 7)
    shown = "\n".join(tabulate(list(found.values())))
    assert "a: config.yaml: cannot be read" in shown
    assert "b/stopped: validation.jsonl: cannot be read (a line has no step)" in shown


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with raises_code(SettingError, "no_run"):
        list_runs(tmp_path)
    with pytest.raises(SettingError, match="is not a folder"):
        list_runs(tmp_path / "absent")


def test_the_verb_prints_the_table_and_its_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(runs), "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("run        state")
    assert [run["name"] for run in json.loads(shown.out)["runs"]] == ["a", "b/fast", "b/stopped"]
    assert main(["runs", str(runs / "a" / "checkpoints")]) == 1
