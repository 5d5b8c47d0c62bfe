"""Whole runs: reference losses, exact resumption, validation, refused settings."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.codes import raises_code
from tests.training.run_files import StopAfter, lines, losses

from vesalius.config import make_settings
from vesalius.errors import OutputError, SettingError, TrainingError
from vesalius.lineage import fingerprint_weights
from vesalius.models import presets
from vesalius.models.cards import ModelCard, read_card
from vesalius.models.checkpoint import new_model, open_model, save_bundle
from vesalius.models.specs import ModelSpec
from vesalius.synth import write_dataset
from vesalius.training.context import Monitoring
from vesalius.training.distributed import join_processes
from vesalius.training.loop import lr_factor
from vesalius.training.preparation import prepare
from vesalius.training.run import resume, train
from vesalius.training.run_folder import TrainState
from vesalius.training.settings import RunSettings

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def whole_tiny() -> ModelSpec:
    """Architecture of the shipped `tiny`, as a reference beside the small model."""
    return presets.find_spec("tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, 4, seed=7, size=96)
    return folder


def settings(data: Path, out: Path, /, **changes: Any) -> RunSettings:
    stored = json.loads((GOLDEN / "first_losses_settings.json").read_text())
    values = {**stored, "data": {"train": data}, "trackers": [], "out": out}
    return make_settings(RunSettings, {**values, **changes}, "test")


def with_val(data: Path, **validate: Any) -> dict[str, Any]:
    return {"data": {"train": data, "val": data}, "validate": {"every_epochs": 1, **validate}}


def test_the_first_five_losses_are_the_stored_ones(
    data: Path, tmp_path: Path, whole_tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: whole_tiny)
    run = train(settings(data, tmp_path / "run"))
    # tolerance for rounding on other machines; changes of model, data, loss or order have far larger effects
    np.testing.assert_allclose(losses(run), json.loads((GOLDEN / "first_losses.json").read_text()), rtol=2e-3)


def test_workers_resumption_and_a_short_last_step_change_no_loss(data: Path, tmp_path: Path) -> None:
    """An epoch has 4 batches and a step accumulates 3, so that the last step of an epoch has one batch."""
    changes = {"steps": None, "epochs": 2, "batch_size": 1, "optim": {"lr": 1e-3, "gradient_accumulation_steps": 3}}
    whole = train(settings(data, tmp_path / "whole", num_workers=2, **changes))
    assert [(line["step"], line["epoch"]) for line in lines(whole)] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    part = settings(data, tmp_path / "part", **changes, validate={"every_epochs": 1})
    with pytest.raises(KeyboardInterrupt):
        train(part, on_step=StopAfter(2))
    assert lines(tmp_path / "part")[-1]["step"] == 3
    resumed = resume(part)
    assert losses(resumed) == losses(whole)
    assert fingerprint_weights(resumed / "last") == fingerprint_weights(whole / "last")


def test_the_run_folder_has_the_documented_files_and_best_follows_the_metric(data: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    changes = with_val(data, metric="recall", figures=1)
    run = train(settings(data, tmp_path / "run", steps=4, **changes), on_note=notes.append)
    files = "config.yaml manifest.json log.jsonl validation.jsonl validation checkpoints best last"
    assert {path.name for path in run.iterdir()} == set(files.split())
    wanted = "step epoch loss loss_mask loss_dice loss_text lr grad_norm images_per_s peak_bytes".split()
    assert all(set(wanted) <= line.keys() for line in lines(run))
    assert [line["lr"] for line in lines(run)] == pytest.approx([1e-3 * each for each in factors(4, 0.2)])
    scores = {line["step"]: line["recall"] for line in lines(run, "validation.jsonl")}
    assert list(scores) == [2, 4]
    best = int((run / "best").resolve().name.removeprefix("step-"))
    assert scores[best] == max(scores.values())
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
    assert not open_model(run / "last").model.training
    assert "4 validation images are also training images: scores will be too high" in notes
    groups = "4 groups (patients, sequences) are in both training and validation data: scores will be too high"
    assert groups in notes


def test_separate_validation_data_give_no_warning(data: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "val", 1, seed=8, size=96)
    notes: list[str] = []
    asked = settings(data, tmp_path / "run", data={"train": data, "val": tmp_path / "val"})
    prepare(asked, join_processes("fp32"), Monitoring(notes.append))
    assert notes
    assert not any("too high" in note for note in notes)


def test_an_overfit_run_uses_the_first_samples_and_keeps_its_data_and_settings(data: Path, tmp_path: Path) -> None:
    run = train(settings(data, tmp_path / "run", steps=2), overfit=2)
    manifest = json.loads((run / "manifest.json").read_text())
    assert list(manifest["train"]["samples"]) == manifest["val"]["samples"] == ["synth_00000", "synth_00001"]
    resume(settings(data, run, steps=3))
    assert len(read_card(run / "last").training_images) == 2
    with raises_code(TrainingError, "changed_setting", "trainable."):
        resume(settings(data, run, steps=6, trainable="projector"))
    write_dataset(tmp_path / "other", 2, seed=8, size=96)
    with raises_code(TrainingError, "changed_data"):
        resume(settings(tmp_path / "other", run, steps=6))


def test_fine_tuning_inherits_the_training_images_of_its_start(data: Path, run: Path, tmp_path: Path) -> None:
    asked = settings(data, tmp_path / "second", model=str(run), init="pretrained")
    card = prepare(asked, join_processes("fp32"), Monitoring()).card
    first = read_card(run / "best")
    assert set(first.training_images) < set(card.training_images or ())
    assert len(card.training_images or ()) == 8
    assert card.lineage["start_lineage"] == first.lineage


def test_the_card_lists_the_phrases_of_the_last_run_unless_the_start_knows_any(
    data: Path, run: Path, tmp_path: Path
) -> None:
    assert read_card(run / "best").phrases == ("blood vessel", "catheter")

    def prepared(start: Path, name: str, **about: Any) -> tuple[ModelCard, list[str]]:
        notes: list[str] = []
        asked = settings(data, tmp_path / name, model=str(start), init="pretrained", **about)
        return prepare(asked, join_processes("fp32"), Monitoring(notes.append)).card, notes

    card, notes = prepared(run, "second", data={"train": data, "prompt": "vessel"})
    assert card.phrases == ("vessel",)  # the phrases of the first run may have been erased
    assert not [note for note in notes if "lack" in note]
    write_dataset(tmp_path / "val", 1, seed=8, size=96)
    file = tmp_path / "val" / "annotations.json"
    file.write_text(file.read_text().replace('"blood vessel"', '"Blood Vessels"').replace('"catheter"', '"stent"'))
    _, notes = prepared(run, "third", data={"train": data, "val": tmp_path / "val"})
    assert [note for note in notes if 'the training data lack: "stent"' in note]
    opened = open_model(run / "best")
    save_bundle(tmp_path / "open", replace(opened, card=opened.card.changed(phrases=None)))
    assert prepared(tmp_path / "open", "fourth")[0].phrases is None


def factors(steps: int, warmup: float) -> list[float]:
    """The learning rate of each step as a fraction of `optim.lr`."""
    context: Any = SimpleNamespace(
        total_steps=steps,
        settings=SimpleNamespace(optim=SimpleNamespace(warmup_ratio=warmup)),
        progress=lambda state: state.step / steps,
    )
    return [lr_factor(context, TrainState(step=step)) for step in range(steps)]


def test_the_learning_rate_rises_then_falls_and_is_never_zero() -> None:
    rates = factors(10, 0.4)
    assert rates[:4] == pytest.approx([0.125, 0.375, 0.625, 0.875])
    assert rates[4:] == pytest.approx([0.5 * (1 + np.cos(np.pi * (k + 0.5) / 6)) for k in range(6)])
    assert min(factors(1000, 0.0)) == 1e-3


def test_a_run_by_minutes_ends_in_time_with_a_checkpoint(data: Path, tmp_path: Path) -> None:
    run = train(settings(data, tmp_path / "run", steps=None, minutes=0.01))
    assert lines(run)[-1]["lr"] < 1e-3
    assert (run / "best" / "vesalius.json").is_file()


def test_an_accumulated_step_has_the_gradient_of_the_whole_batch(data: Path, tmp_path: Path) -> None:
    """Accumulated, two batches of one image have the gradient norm of one batch of two images, within 0.1 %."""
    plain = {"augment": {}, "steps": 1, "loss": {"text": 0, "iou": 0}, "trainable": "projector"}
    norms = []
    for batch_size, accumulation in ((2, 1), (1, 2)):
        optim = {"lr": 1e-3, "warmup_ratio": 0, "gradient_accumulation_steps": accumulation}
        out = tmp_path / str(batch_size)
        run = train(settings(data, out, batch_size=batch_size, optim=optim, **plain))
        norms.append(lines(run)[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_only_the_projector_trains_when_asked(run: Path) -> None:
    seed = torch.random.initial_seed()
    fresh, trained = new_model("tiny", seed=0).model, open_model(run / "last").model
    changed = {
        name.partition(".")[0]
        for (name, a), b in zip(fresh.named_parameters(), trained.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {"projector"}
    assert torch.random.initial_seed() == seed


def test_a_phrase_with_a_control_token_is_refused_before_the_run(data: Path, tmp_path: Path) -> None:
    with raises_code(SettingError, "invalid_prompt", "[SEG]"):
        train(settings(data, tmp_path / "run", data={"train": data, "prompt": "a [SEG] vessel"}))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with raises_code(OutputError, "output_exists"):
        train(settings(data, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(data: Path, tmp_path: Path) -> None:
    optim = {"lr": 1e12, "warmup_ratio": 0, "max_grad_norm": 1e30}
    with raises_code(TrainingError, "not_finite_loss", "synth_0000"):
        train(settings(data, tmp_path / "run", optim=optim, steps=40))


@pytest.mark.parametrize(
    ("changes", "code", "names"),
    [
        ({"epochs": 3}, "bad_value", "got steps, epochs"),
        ({"steps": None}, "bad_value", "got none"),
        ({"trainabel": "full"}, "unknown_setting", "did you mean trainable"),
        ({"optim": {"learning_rate": 1}}, "unknown_setting", "optim.learning_rate"),
        ({"validate": {"evry_epochs": 1}}, "unknown_setting", "did you mean validate.every_epochs"),
        ({"batch_size": 0}, "bad_value", "batch_size: "),
    ],
)
def test_wrong_settings_are_refused_by_name(
    data: Path, tmp_path: Path, changes: dict[str, Any], code: str, names: str
) -> None:
    with raises_code(SettingError, code, names):
        settings(data, tmp_path / "run", **changes)


@pytest.mark.slow
def test_four_samples_pass_the_overfit_test(tmp_path: Path) -> None:
    """The shipped `tiny` reaches a Dice above 0.9 on four samples in 200 steps."""
    write_dataset(tmp_path / "data", 4, seed=3)
    run = train(
        settings(
            tmp_path / "data",
            tmp_path / "run",
            init="pretrained",
            steps=200,
            batch_size=4,
            loss={"text": 1.0, "bce": 3.0, "dice": 1.0},
            optim={"lr": 1e-3, "betas": (0.9, 0.98), "weight_decay": 0.0},
        ),
        overfit=4,
    )
    assert lines(run, "validation.jsonl")[-1]["dice"] > 0.9
