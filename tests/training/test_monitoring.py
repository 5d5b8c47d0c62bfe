"""Monitoring of whole runs: baseline score, figures, EMA, early stopping, model cards, warnings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.codes import raises_code
from tests.training.run_files import StopAfter, lines

from vesalius.cli.main import main
from vesalius.config import make_settings, read_settings
from vesalius.errors import TrainingError
from vesalius.lineage import fingerprint_weights
from vesalius.models.checkpoint import open_model
from vesalius.synth import write_dataset
from vesalius.training import lr_finder
from vesalius.training.run import find_lr, overfit_test_passed, resume, train
from vesalius.training.runs import list_runs
from vesalius.training.settings import RunSettings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people") / "vessels"
    write_dataset(folder, 2, seed=7, size=96)
    return folder


def settings(data: Path, out: Path, /, **changes: Any) -> RunSettings:
    """Settings in which an epoch is one step."""
    values = {
        "model": "tiny",
        "data": {"train": data, "val": data, "prompt": "blood vessel"},
        "trainable": "projector",
        "batch_size": 2,
        "num_workers": 0,
        "steps": 2,
        "optim": {"lr": 1e-3, "warmup_ratio": 0.2},
        "validate": {"figures": 1},
        "trackers": [],
        "out": out,
    }
    return make_settings(RunSettings, {**values, **changes}, "test")


def test_a_run_reports_baseline_validations_figures_trackers_and_its_card(data: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    asked = settings(data, tmp_path / "mine", validate={"metric": "hd95_px", "figures": 2}, trackers=None)
    run = train(asked, on_note=notes.append)
    validations = lines(run, "validation.jsonl")
    assert [line["step"] for line in validations] == [0, 1, 2]
    assert len({line["fingerprint"] for line in validations}) == 3
    trained = {line["step"]: line["hd95_px"] for line in validations[1:]}
    best = int((run / "best").resolve().name.removeprefix("step-"))
    assert trained[best] == min(trained.values()) > 0
    assert any(note.startswith("before training: answers 2 of 2 prompts with [SEG]; mean Dice 0.") for note in notes)
    assert notes[-2].startswith(("better than before training: HD95 ", "NOT better than before training: HD95 "))
    for step in (0, 1, 2):
        with Image.open(run / "validation" / f"step-{step:06d}.png") as sheet:
            assert sheet.width == 1920
    with Image.open(run / "curves.png") as curves:
        assert min(curves.size) > 100
    assert list((run / "trackers" / "tensorboard").glob("events.*"))
    assert lines(run, "log.jsonl")[-1]["progress"] == 1
    (found,) = list_runs(tmp_path)
    assert (found.state, found.best_step, found.baseline) == ("finished", best, validations[0]["hd95_px"])
    check_card(run / "last", validations[-1], data)


def check_card(bundle: Path, line: dict[str, Any], data: Path) -> None:
    """The card contains the scores of its weights but no absolute path, and its recipe can be read."""
    card, recipe = (bundle / "README.md").read_text(), (bundle / "recipe.yaml").read_text()
    assert card.startswith("---\nlibrary_name: vesalius\n")
    assert f"| HD95 | {line['hd95_px']:.4g} px |" in card
    assert all(
        words in card for words in ("training data: vessels, 2 images", "`blood vessel`", "not a medical device")
    )
    assert not any(str(data.parent) in text or str(bundle.parents[2]) in text for text in (card, recipe))
    again = read_settings(RunSettings, bundle / "recipe.yaml")
    assert (again.data.train, again.optim.lr) == (Path("vessels"), 1e-3)
    open_model(bundle)


def test_prompt_collapse_is_reported_at_the_end_of_a_short_run(tmp_path: Path) -> None:
    """The targets are the left and the right half of each image; for two unknown phrases the model predicts one mask."""
    write_dataset(tmp_path / "set", 2, seed=7, size=96)
    path = tmp_path / "set/annotations.json"
    entries = json.loads(path.read_text())
    half = [[0, 0, 48, 0, 48, 96, 0, 96]], [[48, 0, 96, 0, 96, 96, 48, 96]]
    for entry in entries:
        entry["mask"], entry["text"] = list(half), ["blood vessel 1", "blood vessel 2"]
    path.write_text(json.dumps(entries))
    about = {"train": path, "val": path}
    asked = settings(path, tmp_path / "run", data=about, steps=1, validate={"figures": 0})
    notes: list[str] = []
    run = train(asked, on_note=notes.append)
    validations = lines(run, "validation.jsonl")
    assert {line["target_similarity"] for line in validations} == {0.0}
    assert min(line["prediction_similarity"] for line in validations) > 0.9
    (note,) = (note for note in notes if "prompt collapse" in note)
    assert "prompt collapse from step 0 to 1:" in note
    assert note.endswith("set projector: fitted and trainable: decoder")


@pytest.mark.usefixtures("small")
def test_a_run_with_a_weight_average_saves_it_and_resumes_exactly(data: Path, tmp_path: Path) -> None:
    changes = {"optim": {"lr": 1e-3, "warmup_ratio": 0.2, "ema_decay": 0.9}, "init": "random"}

    def asked(name: str) -> RunSettings:
        return settings(data, tmp_path / name, **changes).changed(data={"train": data})

    whole = train(asked("whole"))

    with pytest.raises(KeyboardInterrupt):
        train(asked("part"), on_step=StopAfter(1))
    part = resume(asked("part"))
    assert fingerprint_weights(part / "last") == fingerprint_weights(whole / "last")
    ours, theirs = (torch.load(run / "last" / "average.pt", weights_only=True) for run in (whole, part))
    assert ours["updates"] == theirs["updates"] == 2
    for name in ("weights", "average"):
        assert all(torch.equal(a, b) for a, b in zip(ours[name], theirs[name], strict=True))
    saved = open_model(whole / "last").model.projector.state_dict().values()
    assert {each.sum().item() for each in saved} == {each.sum().item() for each in ours["average"]}
    assert not torch.equal(ours["weights"][0], ours["average"][0])


@pytest.mark.usefixtures("small")
def test_training_without_effect_stops_at_the_first_validation(data: Path, small_bundle: Path, tmp_path: Path) -> None:
    optim = {"lr": 1e-30, "weight_decay": 0}
    still = settings(data, tmp_path / "run", model=str(small_bundle), optim=optim)
    with raises_code(TrainingError, "unchanged_predictions", "step 0 and step 1"):
        train(still)


@pytest.mark.usefixtures("small")
def test_early_stopping_ends_a_run_and_an_overfit_test_reports_its_result(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notes: list[str] = []
    # undefined, because no image has vessels of this width
    patient = {"metric": "skeleton_recall_over_8px", "patience": 2, "figures": 0}
    for module in ("validation", "runs"):
        monkeypatch.setattr(f"vesalius.training.{module}.validations_since_best", lambda lines, _: len(lines))
    asked = settings(data, tmp_path / "run", steps=50, init="random", batch_size=1, validate=patient)
    run = train(asked, overfit=1, on_note=notes.append)
    assert [line["step"] for line in lines(run, "validation.jsonl")] == [1, 2]
    assert notes[-3] == f"early stopping: 2 validations without a better {patient['metric']} (best: none)"
    assert notes[-2].startswith("overfit test failed: mean Dice 0.")
    assert overfit_test_passed(run) is False
    assert main(["train", "--resume", str(run), "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["overfit_test_passed"] is False
    assert not (run / "validation").exists()
    assert any(note.startswith("skeleton_recall_over_8px is undefined for all ") for note in notes)
    assert list_runs(tmp_path)[0].state == "stopped early"


@pytest.mark.usefixtures("small")
def test_a_learning_rate_search_leaves_a_picture_and_no_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lr_finder, "STEPS", 4)
    fractions: list[float] = []
    notes: list[str] = []
    asked, picture = settings(data, tmp_path / "run", init="random"), tmp_path / "lr.png"
    found = find_lr(asked, picture, on_note=notes.append, on_progress=fractions.append)
    assert notes[-2:] == [str(found), f"picture: {picture}"]
    assert found.rates == pytest.approx([1e-7, 2.1544e-05, 4.6416e-3, 1.0], rel=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]
    assert fractions == [0.25, 0.5, 0.75, 1.0]
