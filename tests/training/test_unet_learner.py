"""The U-Net baseline: training, evaluation and comparison, crops and losses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.codes import raises_code
from tests.training.run_files import StopAfter, losses, small_and_quick

from vesalius.config import make_settings
from vesalius.data.dataset import open_dataset
from vesalius.errors import DataError, SettingError
from vesalius.jobs.folder import write_predictions
from vesalius.jobs.opening import load_predictor
from vesalius.models.cards import read_any_card
from vesalius.models.specs import UNetShape
from vesalius.models.unet import new_unet
from vesalius.scoring.compare import compare
from vesalius.scoring.evaluate import evaluate
from vesalius.synth import write_dataset
from vesalius.training.losses import LossSettings
from vesalius.training.run import resume, train
from vesalius.training.settings import RunSettings
from vesalius.training.unet_learner import CropBatch, UNetLearner, batch_dice_loss, cut, draw_corner
from vesalius.types import Item

PHRASES = ("blood vessel", "catheter")
SHAPE = {"widths": [4, 8, 16], "patch": 64}

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, n, seed in (("train", 4, 7), ("val", 2, 8)):
        write_dataset(folder / name, n, seed=seed, size=96)
    return folder


def settings(data: Path, out: Path, **changes: Any) -> RunSettings:
    values: dict[str, Any] = {
        "model": "unet",
        "unet": SHAPE,
        "data": {"train": data / "train"},
        "steps": 6,
        "batch_size": 2,
        "num_workers": 0,
        "loss": {"bce": 1, "dice": 1},
        "optim": {"lr": 1e-2, "warmup_ratio": 0},
        "trackers": [],
        "out": out,
    }
    values |= changes
    return make_settings(RunSettings, {key: each for key, each in values.items() if each is not None}, "test")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with small_and_quick():
        return train(settings(data, tmp_path_factory.mktemp("runs") / "run", augment={"flip": 0.5}))


def test_it_trains_predicts_and_is_evaluated_and_compared_like_any_model(data: Path, run: Path, tmp_path: Path) -> None:
    assert losses(run)[-1] < losses(run)[0]
    val = open_dataset(data / "val")
    predictor = load_predictor(run, device="cpu")
    found = evaluate(predictor, val, tmp_path / "unet", num_workers=0, figures=False)
    assert found["model"]["kind"] == "unet"
    assert found["coverage"] == {"ok": 4, "failed": 0, "no_seg": 0}
    evaluate(load_predictor("frangi"), val, tmp_path / "frangi", num_workers=0, figures=False)
    table = compare([tmp_path / "unet", tmp_path / "frangi"], tmp_path / "both", only=["dice"])
    assert [row["prompt"] for row in table["comparisons"]] == [None, *PHRASES]
    summary = write_predictions(predictor, val.samples, PHRASES, tmp_path / "masks")
    assert summary["coverage"]["ok"] == 4
    assert len(list((tmp_path / "masks" / "masks").iterdir())) == 4


def test_its_card_lists_phrases_start_and_training_images(data: Path, run: Path) -> None:
    card = read_any_card(run / "best")
    assert card.kind == "unet"
    assert card.spec.phrases == PHRASES
    assert card.lineage["start"] == "random weights, seed 0"
    assert len(card.training_images or ()) == 4


def test_training_images_are_refused(data: Path, run: Path, tmp_path: Path) -> None:
    with raises_code(DataError, "training_leak", "4 of 4 images"):
        evaluate(load_predictor(run, device="cpu"), open_dataset(data / "train"), tmp_path / "leak")


def test_an_unknown_phrase_is_refused_and_not_answered_with_an_empty_mask(
    data: Path, run: Path, tmp_path: Path
) -> None:
    val = open_dataset(data / "val")
    predictor = load_predictor(run, device="cpu")
    with pytest.raises(SettingError, match='"liver"; it knows "blood vessel", "catheter"'):
        write_predictions(predictor, val.samples, ["liver"], tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


def test_a_new_run_keeps_the_channels_of_its_own_phrases(data: Path, run: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    asked = settings(data, tmp_path / "run", model=str(run), unet=None, steps=1).changed(
        data={"train": data / "val", "prompt": "blood vessel"}
    )
    second = train(asked, on_note=notes.append)
    assert "channels of the U-Net: 1 kept; removed: catheter" in notes
    assert any("have no effect" in note for note in notes)
    before, after = read_any_card(run / "best"), read_any_card(second / "best")
    assert after.phrases == after.spec.phrases == ("blood vessel",)
    assert set(before.training_images or ()) < set(after.training_images or ())
    assert after.lineage["start_lineage"] == before.lineage
    wrong = asked.changed(unet={"widths": (4, 8, 32), "patch": 64}, out=tmp_path / "other")
    with raises_code(SettingError, "conflicting_settings", "[4, 8, 16]", "patch of 64"):
        train(wrong)


def test_a_resumed_run_continues_its_losses(data: Path, tmp_path: Path) -> None:
    whole = train(settings(data, tmp_path / "whole", steps=4))
    asked = settings(data, tmp_path / "part", steps=4)
    with pytest.raises(KeyboardInterrupt):
        train(asked, on_step=StopAfter(2))
    resumed = resume(asked)
    assert losses(resumed) == losses(whole)


def test_a_shape_without_a_unet_is_refused(data: Path, tmp_path: Path) -> None:
    with raises_code(SettingError, "conflicting_settings", "unet:"):
        train(settings(data, tmp_path / "run", model="tiny"))


def test_crops_are_zero_padded() -> None:
    planes = np.arange(2 * 6 * 8).reshape(2, 6, 8)
    part = cut(planes, (4, 5), 4)
    assert part.shape == (2, 4, 4)
    np.testing.assert_array_equal(part[:, :2, :3], planes[:, 4:, 5:])
    assert part[:, 2:].sum() + part[:, :, 3:].sum() == 0


def test_a_third_of_the_crops_is_centered_on_an_object() -> None:
    objects = np.zeros((200, 300), bool)
    objects[10, 290] = True
    rng = np.random.default_rng(0)
    corners = np.array([draw_corner(objects, 32, rng) for _ in range(3000)])
    assert corners.min() >= 0
    assert (corners <= [168, 268]).all()
    about = (corners == [0, 268]).all(axis=1).mean()
    assert about == pytest.approx(1 / 3, abs=0.03)
    assert draw_corner(objects[:20], 32, rng)[0] == 0
    nothing = np.zeros((40, 40), bool)
    assert len({draw_corner(nothing, 32, rng) for _ in range(200)}) > 30


def test_dice_is_computed_over_all_crops_of_a_phrase() -> None:
    targets = torch.zeros(3, 4, 4)
    targets[0, 0] = 1
    targets[2, :2] = 1
    sure = 40 * (2 * targets - 1)
    sure[1, 0, 0] = 40  # a false positive in a crop without the object
    loss = batch_dice_loss(sure, targets, torch.tensor([5, 5, 2]))
    together = 1 - (2 * 4 + 1) / (4 + 5 + 1)
    assert loss.item() == pytest.approx((together + 0) / 2, abs=1e-6)


def test_each_row_uses_the_channel_of_its_phrase() -> None:
    """Correct maps for all annotated phrases have a loss of 0."""
    opened = new_unet(UNetShape(widths=(4, 8, 8), patch=16), ("a", "b", "c"), seed=0)
    learner = UNetLearner(opened, LossSettings(bce=1, dice=1))
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 1, 16, 16, 3), dtype=np.uint8)
    masks = rng.random((3, 1, 16, 16)) > 0.5
    items = [Item("1", frames[0], ("c", "a"), masks[:2]), Item("2", frames[1], ("b",), masks[2:])]
    batch = learner.make_batch(items, draws=[1, 2, 3])
    assert batch.image.tolist() == [0, 0, 1]
    assert batch.channel.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(batch.masks.numpy(), masks[:, 0])
    right = torch.zeros(2, 3, 3, 16, 16)
    for row in range(3):
        right[batch.image[row], :, batch.channel[row]] = 40 * (2 * batch.masks[row] - 1)
    found = learner.losses(lambda pixels: right, batch)  # type: ignore[arg-type]
    assert {name: pytest.approx(0, abs=1e-6) for name in ("total", "mask", "dice")} == {
        name: value.item() for name, value in found.items()
    }
    wrong = learner.losses(lambda pixels: right.flip(2), batch)  # type: ignore[arg-type]
    assert wrong["mask"] > 1


def test_the_first_level_has_twice_the_weight_of_the_second() -> None:
    opened = new_unet(UNetShape(widths=(4, 8, 8), patch=16), ("a",), seed=0)
    learner = UNetLearner(opened, LossSettings(bce=1, dice=0, cldice=0.5, focal=0.25))
    pixels, mask = torch.zeros(1, 3, 16, 16), torch.ones(1, 16, 16)
    batch = CropBatch(pixels, mask, torch.tensor([0]), torch.tensor([0]))
    maps = torch.stack([torch.full((1, 1, 16, 16), 1.0), torch.full((1, 1, 16, 16), -1.0)], dim=1)
    found = learner.losses(lambda _: maps, batch)  # type: ignore[arg-type]
    good, bad = np.log1p(np.exp(-1)), np.log1p(np.exp(1))
    assert found["mask"].item() == pytest.approx((2 * good + bad) / 3, rel=1e-5)
    parts = found["mask"] + 0.5 * found["cldice"] + 0.25 * found["focal"]
    assert found["total"].item() == pytest.approx(parts.item(), rel=1e-6)
