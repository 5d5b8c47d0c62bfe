"""U-Net and Frangi filter as segmenters: full-size maps, known phrases, refused settings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.codes import raises_code

from vesalius.cleaning import Cleaning
from vesalius.data.dataset import Dataset
from vesalius.errors import CheckpointError, SettingError
from vesalius.inference.baselines import FLOOR, SIGMAS, FrangiFilter, UNetPredictor
from vesalius.inference.plan import make_plan
from vesalius.inference.tiles import TileSettings
from vesalius.jobs.clip_folder import prepare_clips
from vesalius.jobs.folder import write_predictions
from vesalius.jobs.opening import load_predictor
from vesalius.models.specs import UNetShape
from vesalius.models.threshold_store import check_target
from vesalius.models.unet import new_unet, standardize, write_unet
from vesalius.scoring.evaluate import evaluate
from vesalius.scoring.tune import find_threshold
from vesalius.types import Absent, Item, Sample


def line_image(dark: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A gray image uint8 (60, 80, 3) with a line 6 pixels wide, and the mask of the line."""
    line = np.zeros((60, 80), bool)
    line[27:33] = True
    # without noise the curvature along a line is 0, and scikit-image finds bright lines too
    noise = np.random.default_rng(0).normal(0, 2, line.shape)
    gray = np.where(line, 60 if dark else 200, 130) + noise
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2), line


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    opened = new_unet(UNetShape(widths=(4, 8, 8), patch=32), ("vessel", "catheter"), seed=0)
    folder = tmp_path_factory.mktemp("unet") / "bundle"
    card = opened.card.changed(threshold=0.4, training_images=("a" * 64,), tuning_images=("b" * 64,))
    write_unet(folder, opened, card)
    return folder


def test_the_filter_finds_a_dark_line_and_no_bright_one() -> None:
    image, line = line_image()
    prediction = FrangiFilter()(image, "blood vessel")
    shared = (prediction.mask & line).sum()
    assert shared > 0.95 * prediction.mask.sum()
    assert shared > 0.6 * line.sum()
    bright, _ = line_image(dark=False)
    assert not FrangiFilter()(bright, "blood vessel").mask[29:31].any()


def test_the_filter_gives_every_phrase_the_same_mask() -> None:
    image, _ = line_image()
    segmenter = FrangiFilter()
    vessel, liver = segmenter.predict([Item("a", image[None], ("vessel", "liver"))])
    assert (vessel.prompt, liver.prompt) == ("vessel", "liver")
    np.testing.assert_array_equal(vessel.mask, liver.mask)
    description = segmenter.description
    assert description.card == {"name": "frangi", "kind": "frangi", "fingerprint": None, "step": None}
    assert description.settings["text"] == "not read"
    assert description.training_images == ()


def test_half_is_otsus_threshold_and_a_flat_image_has_nothing() -> None:
    from skimage.filters import frangi, threshold_otsu

    image, _ = line_image()
    response = frangi(image[:, :, 1] / 255, sigmas=SIGMAS, black_ridges=True)
    prediction = FrangiFilter()(image, "vessel")
    np.testing.assert_array_equal(prediction.mask, response > threshold_otsu(response))
    more = FrangiFilter(threshold=0.01)(image, "vessel").mask
    assert more.sum() > prediction.mask.sum()
    flat = FrangiFilter()(np.full((40, 40, 3), 90, np.uint8), "vessel")
    assert not flat.mask.any()
    np.testing.assert_allclose(flat.probabilities, FLOOR, rtol=1e-4)


@pytest.mark.parametrize("size", [(48, 70), (20, 100), (32, 32)])
def test_maps_have_the_size_of_the_image(unet: Path, size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    predictor = load_predictor(unet, device="cpu", batch_size=2)
    vessel, catheter = predictor.predict([Item("a", frame[None], ("vessel", "catheter"))])
    assert vessel.logits.shape == vessel.masks.shape == (1, *size)
    assert 0 <= vessel.scores[0] <= 1
    assert not np.array_equal(vessel.logits, catheter.logits)
    np.testing.assert_array_equal(vessel.masks, vessel.probabilities > np.float32(0.4))


def test_a_single_window_equals_the_network(unet: Path) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    predictor = load_predictor(unet, device="cpu")
    assert isinstance(predictor, UNetPredictor)
    with torch.no_grad():
        expected = predictor.model(torch.from_numpy(standardize(frame))[None])[0, 1].numpy()
    np.testing.assert_allclose(predictor(frame, "catheter").logits[0], expected, atol=1e-5)


def test_a_phrase_without_a_channel_is_refused_with_the_known_ones(unet: Path) -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    with raises_code(SettingError, "unknown_phrase", '"liver"', '"vessel", "catheter"'):
        load_predictor(unet, device="cpu")(frame, "liver")
    known, respelled = load_predictor(unet, device="cpu")(frame, ["catheter", "Catheters"])
    assert (respelled.prompt, respelled.phrase) == ("Catheters", "catheter")
    np.testing.assert_array_equal(known.logits, respelled.logits)


def test_masks_are_cleaned(unet: Path) -> None:
    frame = np.random.default_rng(2).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    cleaning = Cleaning(fill_holes=5, drop_specks=5)
    plain = load_predictor(unet, device="cpu")(frame, "vessel")
    mended = load_predictor(unet, device="cpu", cleaning=cleaning)
    np.testing.assert_array_equal(mended(frame, "vessel").mask, cleaning(plain.mask))
    assert mended.description.settings["cleaning"] == {"fill_holes": 5, "drop_specks": 5}


def test_description_has_the_origin_of_threshold_and_weights(unet: Path) -> None:
    own = load_predictor(unet, device="cpu").description
    given = load_predictor(unet, device="cpu", threshold=0.7).description
    assert (own.threshold, own.tuning_images) == (0.4, ("b" * 64,))
    assert own.training_images == ("a" * 64,)
    assert own.kind == "unet"
    assert len(own.fingerprint or "") == 64
    assert (given.threshold_origin, given.tuning_images) == ({"how": "given"}, ())


def test_settings_for_text_prompted_models_are_refused(unet: Path) -> None:
    for model, settings, code, part in (
        (unet, {"tiles": TileSettings()}, "conflicting_settings", "tiles"),
        ("frangi", {"gpus": "2x24GiB"}, "conflicting_settings", "gpus"),
        ("frangi", {"threshold": 2}, "bad_value", "got 2"),
        (unet, {"device": "cpu", "batch_size": 0}, "bad_value", "got 0"),
    ):
        with raises_code(SettingError, code, part):
            load_predictor(model, **settings)


def test_tuning_the_filter_says_how_its_threshold_is_given() -> None:
    with pytest.raises(CheckpointError, match=r"--threshold"):
        check_target("frangi", None)


def test_a_file_can_be_asked_about(unet: Path, tmp_path: Path) -> None:
    image, _ = line_image()
    Image.fromarray(image).save(tmp_path / "frame.png")
    prediction = load_predictor(unet, device="cpu")(tmp_path / "frame.png", "vessel")
    assert (prediction.id, prediction.size) == ("frame", (60, 80))


def test_phrases_without_a_channel_are_refused_together_before_the_job_starts(unet: Path, tmp_path: Path) -> None:
    image, _ = line_image()
    sample = Sample("a", tmp_path / "a.png", ("vessel",), masks=((Absent(),),))
    Image.fromarray(image).save(sample.image)
    segmenter, out = load_predictor(unet, device="cpu"), tmp_path / "out"
    asked = replace(sample, prompts=("vessel", "liver", "bone"), masks=sample.masks * 3)
    for refused in (
        lambda: write_predictions(segmenter, [sample], asked.prompts, out),
        lambda: evaluate(segmenter, [asked], out, num_workers=0),
        lambda: find_threshold(segmenter, Dataset.of([asked])),
    ):
        with raises_code(SettingError, "unknown_phrase", '"liver", "bone"', '"vessel", "catheter"'):
            refused()
    assert not out.exists()


@pytest.mark.parametrize("model", ["unet", "frangi"])
@pytest.mark.parametrize("propagation", ["sam2", "official"])
def test_baselines_have_no_memory_of_a_clip(unet: Path, model: str, propagation: str) -> None:
    segmenter = load_predictor(unet if model == "unet" else model, device="cpu")
    with raises_code(SettingError, "not_supported", model):
        prepare_clips(segmenter, None, [], ["vessel"], ["masks"], propagation=propagation)


def test_a_plan_of_the_filter_says_what_it_is() -> None:
    with pytest.raises(CheckpointError, match="frangi: is a filter without weights"):
        make_plan("frangi")
