"""Whether a run can go on, and as what: settings, folders and rails of the part before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.codes import raises_code

from vesalius.config import make_settings
from vesalius.errors import CheckpointError, OutputError, SettingError, TrainingError
from vesalius.models.cards import read_card
from vesalius.synth import write_dataset
from vesalius.training.distributed import join_processes
from vesalius.training.learner import TextSegLearner
from vesalius.training.run import read_run_settings, resume, train
from vesalius.training.settings import RunSettings

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, 4, seed=7, size=64, num_workers=0)
    return folder


def settings(data: Path, out: Path, **changes: Any) -> RunSettings:
    values = {
        "model": "tiny",
        "init": "random",
        "trainable": "projector",
        "data": {"train": data},
        "steps": 2,
        "batch_size": 2,
        "trackers": [],
        "out": out,
    }
    return make_settings(RunSettings, {**values, **changes}, "test")


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, to be copied; its model sees all of the pixels of `tiny`."""
    return train(settings(data, tmp_path_factory.mktemp("begun") / "run"))


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run", symlinks=True))


def test_without_validation_the_last_checkpoint_stays_the_best(data: Path, run: Path) -> None:
    resume(settings(data, run, steps=3))
    assert {(run / name).resolve().name for name in ("best", "last")} == {"step-000003"}
    assert not (run / "validation.jsonl").exists()


def test_the_bundle_says_by_which_settings_it_was_trained_last(data: Path, run: Path) -> None:
    resume(settings(data, run, steps=3, num_workers=2))
    told = read_card(run / "last").lineage["settings"]
    assert (told["steps"], told["num_workers"]) == (3, 2)
    assert "num_workers: 2" in (run / "config.yaml").read_text()


def test_a_config_that_was_edited_is_compared_with_what_was_trained(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("lr: 4.0e-05", "lr: 0.01"))
    edited = read_run_settings(run, ["steps=3"]).changed(out=run)
    assert edited.optim.lr == 0.01
    with raises_code(TrainingError, "changed_setting", "optim.lr (it was 4e-05)"):
        resume(edited)


def test_a_copy_that_followed_links_is_refused_before_it_trains(data: Path, run: Path) -> None:
    moved = Path(shutil.copytree(run, run.with_name("moved")))
    with raises_code(TrainingError, "damaged_checkpoint", "cp -a"):
        resume(settings(data, moved, steps=3))
    assert len((moved / "log.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("line", [b"5", b'{"a": 1}', b"\xff\xfe", b"nonsense"])
def test_a_damaged_log_is_named(data: Path, run: Path, line: bytes) -> None:
    with (run / "log.jsonl").open("ab") as log:
        log.write(line + b"\n")
    with raises_code(TrainingError, "damaged_log", "log.jsonl"):
        resume(settings(data, run, steps=3))


def test_what_names_no_run_is_refused(run: Path) -> None:
    with raises_code(SettingError, "no_run", "last: "):
        read_run_settings(run / "last", [])
    with raises_code(SettingError, "conflicting_settings", "out="):
        read_run_settings(run, ["out=elsewhere"])


def test_where_validations_are_lost_it_is_said(data: Path, tmp_path: Path) -> None:
    both = {"train": data, "val": data}
    run = train(settings(data, tmp_path / "run", steps=1).changed(data=both))
    (run / "validation.jsonl").unlink()
    notes: list[str] = []
    resume(settings(data, run, steps=2).changed(data=both), on_note=notes.append)
    assert "no earlier validation is stored: `best` is chosen among new validations" in notes


def test_a_run_that_was_interrupted_early_is_checked_when_it_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path without gradient is found though the run ended before its third step."""
    measured = TextSegLearner.losses

    def unreached(self: TextSegLearner, module: torch.nn.Module, batch: Any) -> Any:
        found = measured(self, module, batch)
        return {**found, "total": 0.0 * found["total"]}

    monkeypatch.setattr(TextSegLearner, "losses", unreached)
    with raises_code(TrainingError, "no_gradient", "projector"):
        train(settings(data, tmp_path / "run", steps=1))
    with raises_code(TrainingError, "no_gradient", "projector"):
        resume(settings(data, tmp_path / "run", steps=5))


def test_a_run_that_was_checked_is_not_checked_again(data: Path, run: Path) -> None:
    def checked() -> bool:
        return json.loads((run / "last" / "train_state.json").read_text())["gradients_checked"]

    assert not checked()
    resume(settings(data, run, steps=6))
    assert checked()


def test_weights_that_are_no_number_are_not_saved(
    data: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step before a checkpoint may be the one that spoils them, after its loss was looked at."""
    step = torch.optim.AdamW.step

    def spoiled(self: torch.optim.AdamW, *args: Any) -> Any:
        found = step(self, *args)
        with torch.no_grad():
            self.param_groups[0]["params"][0].view(-1)[0] = float("inf")
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiled)
    with raises_code(TrainingError, "not_finite_weights", "weights of projector", "step 3"):
        resume(settings(data, run, steps=3))
    assert (run / "last").readlink().name == "step-000002"


def test_a_run_does_not_go_into_its_data(data: Path) -> None:
    with raises_code(SettingError, "output_inside_data"):
        train(settings(data, data / "run"))
    assert not (data / "run").exists()


def test_a_folder_without_a_checkpoint_is_not_called_a_run(data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(OutputError, match=r"choose another `out`$"):  # without --resume
        train(settings(data, tmp_path))


def test_an_adapter_that_is_missing_is_missed(data: Path, tmp_path: Path) -> None:
    run = train(settings(data, tmp_path / "run", steps=1, trainable="lora"))
    shutil.rmtree(run / "last" / "adapter")
    with pytest.raises(TrainingError, match="adapter: is missing; copy the model again"):
        resume(settings(data, run, trainable="lora"))


def test_images_that_nobody_knows_stay_unknown(data: Path, run: Path, tmp_path: Path) -> None:
    """As of an official model, with which fine-tuning begins."""
    path = run / "last" / "vesalius.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "training_images": None}))
    tuned = train(settings(data, tmp_path / "tuned", model=str(run / "last"), init="pretrained", steps=1))
    card = read_card(tuned / "last")
    assert len(card.training_images) == 4 and card.trained_on_unknown
    again = train(settings(data, tmp_path / "again", model=str(tuned), init="pretrained", steps=1))
    assert read_card(again / "last").trained_on_unknown


def test_more_images_by_heart_than_there_are(data: Path, tmp_path: Path) -> None:
    with raises_code(SettingError, "bad_value", "--overfit 9", "between 1 and 4"):
        train(settings(data, tmp_path / "run"), overfit=9)


def test_new_weights_of_a_folder_are_refused_and_a_factor_of_nothing_is_told(
    data: Path, run: Path, tmp_path: Path
) -> None:
    with raises_code(SettingError, "conflicting_settings", "init: random"):
        train(settings(data, tmp_path / "other", model=str(run)))
    notes: list[str] = []
    multipliers = {"lr": 4e-5, "lr_multipliers": {"language model": 0.05}}
    train(settings(data, tmp_path / "idle", steps=1, optim=multipliers), on_note=notes.append)
    assert "optim.lr_multipliers: language model does not train, so its multiplier has no effect" in notes


def test_runs_of_one_program_may_differ_in_precision() -> None:
    for precision in ("fp32", "bf16", "fp32"):
        assert join_processes(precision).accelerator.mixed_precision == (
            "bf16" if precision == "bf16" else "no"
        )


def test_a_bundle_without_its_adapter_does_not_open(run: Path) -> None:
    from vesalius.models.checkpoint import open_model

    path = run / "last" / "vesalius.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "adapter": True}))
    with pytest.raises(CheckpointError, match="adapter: is missing"):
        open_model(run / "last")
