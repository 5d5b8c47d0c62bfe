"""Cross-validation from the command line: all folds trained, continued, opened as an ensemble."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.codes import raises_code
from tests.training.run_files import MakeSettings, StopAfter, lines, small_and_quick

from vesalius import load_item, load_predictor, load_samples
from vesalius.cli.main import main
from vesalius.errors import CheckpointError, OutputError, SettingError, TrainingError, VesaliusError
from vesalius.inference.ensemble import Ensemble, average_maps, combine_cards
from vesalius.inference.official import OfficialPredictor
from vesalius.mask_maps import Full, LowRes, Tile, Tiled, Window
from vesalius.models.cards import ModelCard
from vesalius.models.info import describe
from vesalius.models.reference import resolve_model
from vesalius.training.folds import find_folds, train_folds
from vesalius.training.settings import RunSettings
from vesalius.training.terminal import shown
from vesalius.types import Prediction
from vesalius.window import Window as Shown

pytestmark = pytest.mark.usefixtures("small")
NAMES = ["fold1", "fold2"]


@pytest.fixture(scope="module")
def parts(four_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parts") / "parts"
    assert main(["split", str(four_images), str(out), "--folds", "2"]) == 0
    return out


def of_folds(plain_settings: MakeSettings, out: Path, **changes: Any) -> RunSettings:
    return plain_settings(out, steps=1, trainable="decoder", validate={"figures": 0}, **changes)


@pytest.fixture(scope="module")
def finished(plain_settings: MakeSettings, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of two folds."""
    out = tmp_path_factory.mktemp("cross") / "runs"
    with small_and_quick():
        train_folds(of_folds(plain_settings, out), parts, shown)
    return out


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs", symlinks=True))


def test_the_command_trains_each_fold_and_reports_mean_and_spread(
    plain_settings: MakeSettings, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, recipe = tmp_path / "runs", tmp_path / "recipe.yaml"
    recipe.write_text(of_folds(plain_settings, out).to_yaml())
    assert main(["train", str(recipe), "--folds", str(parts)]) == 0
    result = json.loads((out / "folds.json").read_text())
    assert result["folds"] == NAMES and result["metric"] == "dice"
    values = [lines(out / name, "validation.jsonl")[-1]["dice"] for name in NAMES]
    assert [result["values"][name] for name in NAMES] == values
    assert (result["mean"], result["sd"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    for name in NAMES:
        ids = [json.loads((out / name / "manifest.json").read_text())[part]["samples"] for part in ("train", "val")]
        assert {*ids[0]} | {*ids[1]} == {f"synth_0000{n}" for n in range(4)} and not {*ids[0]} & {*ids[1]}
    assert f"mean {result['mean']:.4g}, standard deviation {result['sd']:.4g}" in capsys.readouterr().out


def test_finished_folds_are_skipped_and_an_unfinished_one_is_continued(
    plain_settings: MakeSettings, parts: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (runs / "fold1" / "log.jsonl").stat().st_mtime_ns
    shutil.rmtree(runs / "fold2")
    with raises_code(CheckpointError, "unfinished_folds", "fold2"):
        load_predictor(runs)
    train_folds(of_folds(plain_settings, runs), parts, shown)
    assert "fold1: is finished" in capsys.readouterr().out
    assert (runs / "fold1" / "log.jsonl").stat().st_mtime_ns == before
    assert [line["step"] for line in lines(runs / "fold2")] == [1]
    train_folds(of_folds(plain_settings, runs).changed(steps=2), parts, shown)
    assert [[line["step"] for line in lines(runs / name)] for name in NAMES] == [[1, 2]] * 2
    with raises_code(TrainingError, "changed_setting", "seed"):
        train_folds(of_folds(plain_settings, runs, seed=3), parts, shown)


def test_a_fold_that_ended_in_its_first_step_begins_anew(
    plain_settings: MakeSettings, parts: Path, tmp_path: Path
) -> None:
    asked = of_folds(plain_settings, tmp_path / "runs").changed(steps=3)
    with pytest.raises(KeyboardInterrupt):
        train_folds(asked, parts, lambda settings, name: nullcontext({"on_step": StopAfter(0)}))
    assert train_folds(asked, parts, shown)["folds"] == NAMES


def test_other_content_is_refused(plain_settings: MakeSettings, parts: Path, runs: Path, tmp_path: Path) -> None:
    with raises_code(SettingError, "no_folds"):
        train_folds(of_folds(plain_settings, tmp_path / "new"), tmp_path, shown)
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with raises_code(OutputError, "output_exists"):
        train_folds(of_folds(plain_settings, tmp_path / "mine"), parts, shown)
    (runs / "folds.json").write_text('{"folds": ["fold1", "fold2", "fold3"]}')
    with raises_code(OutputError, "output_exists", "other folds"):
        train_folds(of_folds(plain_settings, runs), parts, shown)
    assert find_folds(parts) == NAMES
    refused = of_folds(plain_settings, tmp_path / "refused").changed(init="random", model="unknown/model")
    with pytest.raises(VesaliusError):
        train_folds(refused, parts, shown)
    assert not (tmp_path / "refused" / "folds.json").exists()


def test_the_folder_predicts_the_mean_probability(runs: Path, four_images: Path) -> None:
    item = load_item(load_samples(four_images)[0])
    ensemble, *members = (load_predictor(each, answer="force") for each in (runs, *(runs / name for name in NAMES)))
    found = ensemble.predict([item])
    each = [member.predict([item]) for member in members]
    assert [prediction.prompt for prediction in found] == list(item.prompts)
    for prediction, *others in zip(found, *each, strict=True):
        expected = np.mean([1 / (1 + np.exp(-other.logits)) for other in others], axis=0)
        np.testing.assert_allclose(1 / (1 + np.exp(-prediction.logits)), expected, rtol=1e-4, atol=1e-6)
        assert prediction.status == "ok" and prediction.scores == pytest.approx([np.mean([o.scores for o in others])])
    described = ensemble.description
    assert described.kind == "ensemble" and described.threshold == 0.5
    assert set(described.training_images or ()) == {i for m in members for i in m.description.training_images or ()}
    assert described.fingerprint not in {member.fingerprint for member in members}
    assert described.phrases == ("blood vessel", "catheter")
    assert ensemble(item.frames[0], "catheter").prompt == "catheter"


def test_verbs_take_the_folder_and_leaks_are_refused(
    runs: Path, parts: Path, four_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(next((four_images / "images").iterdir()))
    assert main(["predict", str(runs), image, "--prompt", "catheter", "--out", str(tmp_path / "masks")]) == 0
    assert main(["evaluate", str(runs), str(four_images), "--out", str(tmp_path / "scores"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["error"]["code"] == "training_leak"
    assert main(["info", str(runs)]) == 0
    assert "ensemble of 2 models" in capsys.readouterr().out
    facts = describe(runs)
    assert facts["parameters"]["total"] == 2 * describe(runs / "fold1")["parameters"]["total"]
    with raises_code(CheckpointError, "wrong_model_kind", "fold1"):
        print(resolve_model(runs).folder)
    with raises_code(SettingError, "conflicting_settings", "tta"):
        load_predictor(runs, tta=True)
    (runs / "folds.json").write_text("[]")
    with raises_code(CheckpointError, "damaged_model", "folds"):
        load_predictor(runs)


def test_models_of_different_windows_are_no_ensemble() -> None:
    cards = [ModelCard(kind="textseg", window=window) for window in (Shown.of("auto"), Shown.of((0, 100)))]
    assert combine_cards(cards[:1] * 2).window == cards[0].window
    with raises_code(CheckpointError, "conflicting_settings", "0 100"):
        combine_cards(cards)


def test_members_without_seg_count_as_empty_masks(small_predictor: OfficialPredictor) -> None:
    ensemble = Ensemble([small_predictor] * 3)
    yes = Prediction("a", "vessel", "ok", (2, 2), LowRes(np.full((1, 2, 2), 2.0, np.float32)), (0.9,), "Sure, [SEG].")
    no = Prediction("a", "vessel", "no_seg", (2, 2), text="There is none.", says_seg=False)
    most = ensemble._combined([yes, no, yes])
    assert (most.status, most.says_seg, most.text) == ("ok", True, "Sure, [SEG].")
    assert most.scores == pytest.approx([0.6])
    assert most.probabilities == pytest.approx(np.full((1, 2, 2), 2 / 3 / (1 + np.exp(-2))))
    few = ensemble._combined([no, yes, no])
    assert (few.status, few.says_seg, len(few.maps), few.scores) == ("no_seg", False, 0, ())
    assert ensemble._combined([no, no, no]).text == "There is none."


def test_maps_of_every_kind_are_averaged() -> None:
    low, high, empty = (np.full((n, 2, 2), v, np.float32) for n, v in ((1, 0.0), (2, np.log(3)), (0, 0)))
    mean = np.log(0.625 / 0.375)
    for make in (LowRes, Full, lambda logits: Tiled((Tile(Window(0, 0, 2, 2), logits),))):
        both = average_maps([make(low), make(high)])
        assert both.masks((2, 2), 0.6).all() and not both.masks((2, 2), 0.65).any()
        assert float(both.full_logits((2, 2)).mean()) == pytest.approx(mean)
        alone = average_maps([make(empty), make(high)])
        assert float(alone.probabilities((2, 2)).mean()) == pytest.approx(0.375)
