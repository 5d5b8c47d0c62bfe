"""Resumed runs: accepted and refused changes, damaged folders, repeated checks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.codes import raises_code
from tests.training.run_files import MakeSettings, lines

from vesalius.errors import OutputError, SettingError, TrainingError
from vesalius.models.cards import ModelCard, read_card
from vesalius.training.context import Monitoring
from vesalius.training.distributed import join_processes
from vesalius.training.learner import TextSegLearner
from vesalius.training.preparation import prepare
from vesalius.training.run import read_run_settings, resume, train
from vesalius.window import Window

pytestmark = pytest.mark.usefixtures("small")


def test_a_resumed_run_stores_its_new_settings_and_passes_the_gradient_check(
    plain_settings: MakeSettings, run: Path
) -> None:
    def checked() -> bool:
        return json.loads((run / "last" / "train_state.json").read_text())["gradients_checked"]

    (run / "checkpoints" / "mine").mkdir()
    (run / "checkpoints" / "notes.txt").touch()
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "lo')  # cut by a crash
    assert not checked(), "two steps are too few"
    resume(plain_settings(run, steps=5, num_workers=2))
    assert checked()
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"mine", "notes.txt", "step-000005"}
    # without validation the last checkpoint is the best
    assert {(run / name).resolve().name for name in ("best", "last")} == {"step-000005"}
    assert not (run / "validation.jsonl").exists()
    stored = read_card(run / "last").lineage["settings"]
    assert (stored["steps"], stored["num_workers"]) == (5, 2)
    assert "num_workers: 2" in (run / "config.yaml").read_text()


def test_an_edited_config_is_compared_with_the_settings_of_the_checkpoint(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("lr: 4.0e-05", "lr: 0.01"))
    edited = read_run_settings(run, ["steps=3"]).changed(out=run)
    assert edited.optim.lr == 0.01
    with raises_code(TrainingError, "changed_setting", "optim.lr (it was 4e-05)"):
        resume(edited)


def test_a_copy_that_followed_links_is_refused_before_it_trains(plain_settings: MakeSettings, run: Path) -> None:
    moved = Path(shutil.copytree(run, run.with_name("moved")))
    with raises_code(TrainingError, "damaged_checkpoint", "cp -a"):
        resume(plain_settings(moved, steps=3))
    assert len(lines(moved)) == 2


@pytest.mark.parametrize("line", [b"5", b'{"a": 1}', b"\xff\xfe", b"nonsense"])
def test_a_damaged_log_is_named(plain_settings: MakeSettings, run: Path, line: bytes) -> None:
    with (run / "log.jsonl").open("ab") as log:
        log.write(line + b"\n")
    with raises_code(TrainingError, "damaged_log", "log.jsonl"):
        resume(plain_settings(run, steps=3))


@pytest.mark.parametrize("text", ["", "{", '{"step": 1, "unknown": 2}'])
def test_a_damaged_state_is_named(plain_settings: MakeSettings, run: Path, text: str) -> None:
    (run / "last" / "train_state.json").write_text(text)
    with raises_code(TrainingError, "damaged_checkpoint", "train_state.json"):
        resume(plain_settings(run, steps=3))


def test_paths_that_are_no_run_are_refused(plain_settings: MakeSettings, run: Path, tmp_path: Path) -> None:
    with raises_code(SettingError, "no_run", "last: "):
        read_run_settings(run / "last", [])
    with raises_code(SettingError, "conflicting_settings", "out="):
        read_run_settings(run, ["out=elsewhere"])
    with raises_code(TrainingError, "no_checkpoint"):
        resume(plain_settings(tmp_path / "absent"))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").touch()
    with raises_code(OutputError, "output_exists") as caught:
        train(plain_settings(tmp_path / "config"))
    assert "--resume" not in str(caught.value)


def test_lost_validations_are_reported(plain_settings: MakeSettings, four_images: Path, tmp_path: Path) -> None:
    changes = {"data": {"train": four_images, "val": four_images}, "validate": {"every_epochs": 100, "figures": 0}}
    run = train(plain_settings(tmp_path / "run", steps=1, **changes))
    (run / "validation.jsonl").unlink()
    notes: list[str] = []
    resume(plain_settings(run, steps=2, **changes), on_note=notes.append)
    assert "no earlier validation is stored: `best` is chosen among new validations" in notes


def test_the_gradient_check_of_an_interrupted_run_is_repeated(
    plain_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A component without gradient is found even if the run was interrupted before its third step."""
    compute = TextSegLearner.losses

    def without_gradient(self: TextSegLearner, module: torch.nn.Module, batch: Any) -> Any:
        losses = compute(self, module, batch)
        return {**losses, "total": 0.0 * losses["total"]}

    monkeypatch.setattr(TextSegLearner, "losses", without_gradient)
    with raises_code(TrainingError, "no_gradient", "projector"):
        train(plain_settings(tmp_path / "run", steps=1))
    with raises_code(TrainingError, "no_gradient", "projector"):
        resume(plain_settings(tmp_path / "run", steps=5))


def test_weights_that_are_not_finite_are_not_saved(
    plain_settings: MakeSettings, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer step may make weights infinite although loss and gradient are finite."""
    step = torch.optim.AdamW.step

    def spoiled(self: torch.optim.AdamW, *args: Any) -> Any:
        result = step(self, *args)
        with torch.no_grad():
            self.param_groups[0]["params"][0].view(-1)[0] = float("inf")
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiled)
    with raises_code(TrainingError, "not_finite_weights", "weights of projector", "step 3"):
        resume(plain_settings(run, steps=3))
    assert (run / "last").readlink().name == "step-000002"


def test_a_run_inside_its_dataset_is_refused(plain_settings: MakeSettings, four_images: Path) -> None:
    with raises_code(SettingError, "output_inside_data"):
        train(plain_settings(four_images / "run"))
    assert not (four_images / "run").exists()


def test_unknown_training_images_stay_unknown(plain_settings: MakeSettings, run: Path, tmp_path: Path) -> None:
    """For example, official models list no training images."""
    path = run / "last" / "vesalius.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "training_images": None}))
    asked = plain_settings(tmp_path / "tuned", model=str(run / "last"), init="pretrained")
    card = prepare(asked, join_processes("fp32"), Monitoring()).card
    assert len(card.training_images or ()) == 4
    assert card.trained_on_unknown
    assert card.saw_unknown_images, "and so has every later model"


def test_contradicting_settings_are_refused_and_multipliers_of_frozen_components_noted(
    plain_settings: MakeSettings, run: Path, tmp_path: Path
) -> None:
    with raises_code(SettingError, "bad_value", "--overfit 9", "between 1 and 4"):
        train(plain_settings(tmp_path / "other"), overfit=9)
    with raises_code(SettingError, "conflicting_settings", "init: random"):
        train(plain_settings(tmp_path / "other", model=str(run)))
    notes: list[str] = []
    optim = {"lr": 4e-5, "lr_multipliers": {"language model": 0.05}}
    prepare(plain_settings(tmp_path / "idle", optim=optim), join_processes("fp32"), Monitoring(notes.append))
    assert notes[0] == "optim.lr_multipliers: language model does not train, so its multiplier has no effect"


def test_runs_of_one_program_may_differ_in_precision() -> None:
    for precision in ("fp32", "bf16", "fp32"):
        assert join_processes(precision).accelerator.mixed_precision == ("bf16" if precision == "bf16" else "no")


def test_the_card_stores_the_window_which_a_later_run_inherits_and_a_resumed_run_keeps(
    plain_settings: MakeSettings, four_images: Path, run: Path, tmp_path: Path
) -> None:
    def prepared(resume: bool = False, **changes: Any) -> ModelCard:
        return prepare(plain_settings(**changes), join_processes("fp32"), Monitoring(), resume=resume).card

    window = {"train": four_images, "window": [10, 200]}
    start = {"model": str(run / "last"), "init": "pretrained"}
    assert read_card(run / "last").window == Window()
    card = prepared(out=tmp_path / "second", data=window, **start)
    assert card.window == Window("range", 10, 200)
    # tiny has 8-bit images, whose hashes differ under a window
    assert len(card.training_images or ()) == 8
    with raises_code(TrainingError, "changed_setting", "it was auto"):
        prepared(resume=True, out=run, data=window)
    path = run / "last" / "vesalius.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "window": ["percentile", 1, 99]}))
    assert prepared(out=tmp_path / "third", **start).window == Window("percentile", 1, 99)
    assert prepared(out=tmp_path / "fourth", data={**window, "window": "auto"}, **start).window == Window()


def test_an_impossible_window_in_a_recipe_is_named(plain_settings: MakeSettings, four_images: Path) -> None:
    with raises_code(SettingError, "bad_value", "data.window", "9 5"):
        plain_settings(four_images / "run", data={"train": four_images, "window": [9, 5]})
