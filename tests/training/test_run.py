"""A run from recipe to folder: golden losses, resumption, validation, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.codes import raises_code

from vesalius.config import make_settings
from vesalius.errors import OutputError, SettingError, TrainingError
from vesalius.lineage import fingerprint_weights
from vesalius.models.cards import read_card
from vesalius.models.checkpoint import open_model
from vesalius.synth import write_dataset
from vesalius.training.run import resume, train
from vesalius.training.settings import RunSettings

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, 4, seed=7, size=96)
    return folder


def settings(data: Path, out: Path, **changes: Any) -> RunSettings:
    stored = json.loads((GOLDEN / "first_losses_settings.json").read_text())
    values = {**stored, "data": {"train": data, "val": data}, "trackers": [], "out": out}
    return make_settings(RunSettings, {**values, **changes}, "test")


def lines(run: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run)]


def test_first_five_losses_are_the_stored_ones(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # of the whole `tiny`
    run = train(settings(data, tmp_path / "run"))
    # a run of another machine rounds otherwise; a change of model, data, loss or order is far larger
    np.testing.assert_allclose(losses(run), json.loads((GOLDEN / "first_losses.json").read_text()), rtol=2e-3)


def test_workers_and_resumption_change_no_loss(data: Path, tmp_path: Path) -> None:
    whole = train(settings(data, tmp_path / "whole", num_workers=2, steps=4))
    # the first part ends after 2 of 4 steps, with the learning rates of a run of 4
    part = settings(data, tmp_path / "part", steps=4)
    stopped = StopAfter(2)
    with pytest.raises(KeyboardInterrupt):
        train(settings(data, tmp_path / "part", steps=4, validate={"every_epochs": 1}), on_step=stopped)
    assert lines(tmp_path / "part")[-1]["step"] == 3
    resumed = resume(part)
    assert losses(resumed) == losses(whole)
    assert fingerprint_weights(resumed / "last") == fingerprint_weights(whole / "last")


class StopAfter:
    """Interrupts in the step after the given one, as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, line: dict[str, Any]) -> None:
        if line["step"] > self.step:
            raise KeyboardInterrupt


def test_run_folder_holds_what_the_contract_says(data: Path, tmp_path: Path) -> None:
    run = train(settings(data, tmp_path / "run", steps=4, validate={"every_epochs": 1}))
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml",
        "manifest.json",
        "log.jsonl",
        "validation.jsonl",
        "validation",
        "curves.png",
        "checkpoints",
        "best",
        "last",
    }
    wanted = {
        "step",
        "epoch",
        "loss",
        "loss_mask",
        "loss_dice",
        "loss_text",
        "lr",
        "grad_norm",
        "images_per_s",
        "peak_bytes",
    }
    assert all(wanted <= line.keys() for line in lines(run))
    assert [line["step"] for line in lines(run, "validation.jsonl")] == [2, 4]
    assert (run / "last").readlink() == Path("checkpoints/step-000004")
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        (run / name).resolve().name for name in ("best", "last")
    }
    manifest = json.loads((run / "manifest.json").read_text())
    assert len(manifest["train"]["samples"]) == 4
    card = read_card(run / "last")
    assert card.step == 4
    assert set(card.training_images) == set(manifest["train"]["samples"].values())
    assert card.lineage["start"] == "random weights, seed 0"
    opened = open_model(run / "last")
    assert not opened.model.training


def test_best_is_the_best_validation_by_the_metric(data: Path, tmp_path: Path) -> None:
    run = train(settings(data, tmp_path / "run", steps=6, validate={"every_epochs": 1, "metric": "recall"}))
    values = {line["step"]: line["recall"] for line in lines(run, "validation.jsonl")}
    best = int((run / "best").resolve().name.removeprefix("step-"))
    assert values[best] == max(values.values())


def test_accumulation_of_two_batches_makes_half_the_steps(data: Path, tmp_path: Path) -> None:
    run = train(
        settings(
            data,
            tmp_path / "run",
            steps=None,
            epochs=2,
            batch_size=1,
            optim={"lr": 1e-3, "gradient_accumulation_steps": 2},
        )
    )
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4]


def test_an_epoch_ends_with_a_whole_step_and_resumes_exactly(data: Path, tmp_path: Path) -> None:
    changes = {
        "steps": None,
        "epochs": 2,
        "batch_size": 1,
        "optim": {"lr": 1e-3, "gradient_accumulation_steps": 3},
    }
    whole = train(settings(data, tmp_path / "whole", **changes))
    assert [(line["step"], line["epoch"]) for line in lines(whole)] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    with pytest.raises(KeyboardInterrupt):
        part = {**changes, "validate": {"every_epochs": 1}}
        train(settings(data, tmp_path / "part", **part), on_step=StopAfter(2))
    assert losses(resume(settings(data, tmp_path / "part", **changes))) == losses(whole)


def test_resumed_run_keeps_its_data_and_settings(data: Path, tmp_path: Path) -> None:
    run = train(settings(data, tmp_path / "run", steps=2), overfit=2)
    longer = settings(data, run, steps=4)
    resume(longer)  # two samples, as begun
    assert len(read_card(run / "last").training_images) == 2
    with raises_code(TrainingError, "changed_setting", "trainable."):
        resume(settings(data, run, steps=6, trainable="projector"))
    write_dataset(tmp_path / "other", 2, seed=8, size=96)
    with raises_code(TrainingError, "changed_data"):
        resume(settings(tmp_path / "other", run, steps=6))


def test_checkpoints_of_others_and_a_cut_log_line_do_no_harm(data: Path, tmp_path: Path) -> None:
    run = train(settings(data, tmp_path / "run", steps=2))
    (run / "checkpoints" / "mine").mkdir()
    (run / "checkpoints" / "notes.txt").touch()
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "lo')
    resume(settings(data, run, steps=4))
    assert {"mine", "notes.txt", "step-000004"} <= {path.name for path in (run / "checkpoints").iterdir()}
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4]


def test_fine_tuning_remembers_what_its_start_was_trained_on(data: Path, tmp_path: Path) -> None:
    first = train(settings(data, tmp_path / "first", steps=1))
    write_dataset(tmp_path / "other", 2, seed=8, size=96)
    second = train(
        settings(tmp_path / "other", tmp_path / "second", steps=1, model=str(first), init="pretrained")
    )
    first_card, second_card = read_card(first / "best"), read_card(second / "best")
    assert set(first_card.training_images) < set(second_card.training_images)
    assert len(second_card.training_images) == 6
    assert second_card.lineage["start_lineage"] == first_card.lineage


def test_learning_rate_rises_then_falls_and_never_stands_still(data: Path, tmp_path: Path) -> None:
    optim = {"lr": 1e-3, "warmup_ratio": 0.4, "lr_multipliers": {"language model": 0.1}}
    run = train(settings(data, tmp_path / "run", steps=10, batch_size=1, optim=optim, trainable="projector"))
    rates = [line["lr"] / 1e-3 for line in lines(run)]
    assert rates[:4] == pytest.approx([0.125, 0.375, 0.625, 0.875])
    assert rates[4:] == pytest.approx([0.5 * (1 + np.cos(np.pi * (k + 0.5) / 6)) for k in range(6)])


def test_run_by_minutes_ends_in_time_with_a_checkpoint(data: Path, tmp_path: Path) -> None:
    run = train(settings(data, tmp_path / "run", steps=None, minutes=0.03))
    assert lines(run)
    assert lines(run)[-1]["lr"] < 1e-3
    assert (run / "best" / "vesalius.json").is_file()


def test_phrase_with_a_control_token_is_refused_before_the_run(data: Path, tmp_path: Path) -> None:
    with raises_code(SettingError, "invalid_prompt", "[SEG]"):
        train(settings(data, tmp_path / "run").changed(data={"train": data, "prompt": "a [SEG] vessel"}))
    assert not (tmp_path / "run").exists()


def test_loss_of_an_accumulated_step_is_the_mean_of_its_gradients(data: Path, tmp_path: Path) -> None:
    """Two batches of one image accumulated give nearly the weights of one batch of two."""
    plain = {"augment": {}, "steps": 1, "loss": {"text": 0, "iou": 0}, "trainable": "projector"}
    one = train(
        settings(data, tmp_path / "one", batch_size=2, optim={"lr": 1e-3, "warmup_ratio": 0}, **plain)
    )
    two = train(
        settings(
            data,
            tmp_path / "two",
            batch_size=1,
            optim={"lr": 1e-3, "warmup_ratio": 0, "gradient_accumulation_steps": 2},
            **plain,
        )
    )
    assert lines(one)[0]["grad_norm"] == pytest.approx(lines(two)[0]["grad_norm"], rel=1e-3)


def test_only_the_projector_trains_when_asked(data: Path, tmp_path: Path) -> None:
    run = train(settings(data, tmp_path / "run", trainable="projector", steps=2))
    start = torch.random.initial_seed()
    from vesalius.models.checkpoint import new_model

    fresh, trained = new_model("tiny", seed=0).model, open_model(run / "last").model
    changed = {
        name.partition(".")[0]
        for (name, a), b in zip(fresh.named_parameters(), trained.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {"projector"}
    assert torch.random.initial_seed() == start


def test_overfit_uses_the_first_samples_for_both(data: Path, tmp_path: Path) -> None:
    run = train(settings(data, tmp_path / "run", steps=2), overfit=2)
    manifest = json.loads((run / "manifest.json").read_text())
    assert list(manifest["train"]["samples"]) == manifest["val"]["samples"] == ["synth_00000", "synth_00001"]


def test_folder_that_is_not_empty_is_refused_and_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with raises_code(OutputError, "output_exists"):
        train(settings(data, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_resume_without_checkpoint_is_refused(data: Path, tmp_path: Path) -> None:
    with raises_code(TrainingError, "no_checkpoint"):
        resume(settings(data, tmp_path / "run"))


def test_loss_that_is_not_finite_stops_and_names_the_samples(data: Path, tmp_path: Path) -> None:
    wild = settings(
        data, tmp_path / "run", optim={"lr": 1e12, "warmup_ratio": 0, "max_grad_norm": 1e30}, steps=40
    )
    with raises_code(TrainingError, "not_finite_loss", "synth_0000"):
        train(wild)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, "exactly one of steps, epochs and minutes; got steps, epochs"),
        ({"steps": None}, "exactly one of steps, epochs and minutes; got none"),
        ({"trainabel": "full"}, "unknown key trainabel; did you mean trainable"),
        ({"optim": {"learning_rate": 1}}, "unknown key optim.learning_rate; known keys: lr"),
        ({"validate": {"evry_epochs": 1}}, "unknown key validate.evry_epochs; did you mean every_epochs"),
        ({"batch_size": 0}, "batch_size: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused_in_the_words_that_were_typed(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        settings(data, tmp_path / "run", **changes)


@pytest.mark.slow
def test_four_samples_are_learned_by_heart(tmp_path: Path) -> None:
    """Dice above 0.9 on four samples: a model that cannot do that cannot learn anything."""
    write_dataset(tmp_path / "data", 4, seed=3)
    loss = {"text": 1.0, "bce": 3.0, "dice": 1.0}
    run = train(
        settings(
            tmp_path / "data",
            tmp_path / "run",
            init="pretrained",
            steps=200,
            batch_size=4,
            loss=loss,
            optim={"lr": 1e-3, "betas": (0.9, 0.98), "weight_decay": 0.0},
        ),
        overfit=4,
    )
    assert lines(run, "validation.jsonl")[-1]["dice"] > 0.9


def test_images_and_groups_that_are_validated_and_trained_on_are_told(data: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    train(settings(data, tmp_path / "run", steps=1, trainable="projector"), on_note=notes.append)
    assert "4 validation images are also training images: scores will be too high" in notes
    assert (
        "4 groups (patients, sequences) are in both training and validation data: scores will be too high"
        in notes
    )
    notes.clear()
    write_dataset(tmp_path / "val", 1, seed=8, size=96)
    other = settings(data, tmp_path / "other", steps=1, trainable="projector")
    train(other.changed(data=other.data.changed(val=tmp_path / "val")), on_note=notes.append)
    assert not any("too high" in note for note in notes)
