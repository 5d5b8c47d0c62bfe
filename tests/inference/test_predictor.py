"""Prediction of images: original sizes, order, thresholds, and input masks that have no influence."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.codes import raises_code

from vesalius.errors import ImageError, SettingError
from vesalius.inference.predictor import Predictor
from vesalius.jobs.opening import load_predictor
from vesalius.masks import resize_bilinear
from vesalius.models.checkpoint import OpenedModel
from vesalius.synth import draw
from vesalius.types import Item


@pytest.fixture(scope="module")
def forced(opened: OpenedModel) -> Predictor:
    return Predictor(opened, answer="force", batch_size=2)


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_masks_and_probabilities_have_the_original_size(forced: Predictor) -> None:
    prediction = forced(pixels(70, 110), "blood vessel")
    assert prediction.status == "ok"
    assert prediction.masks.shape == (1, 70, 110)
    assert prediction.masks.dtype == np.bool_
    assert prediction.probabilities.shape == (1, 70, 110)
    assert prediction.probabilities.dtype == np.float32
    assert 0 <= prediction.probabilities.min() <= prediction.probabilities.max() <= 1
    np.testing.assert_array_equal(prediction.mask, (prediction.probabilities > 0.5).any(axis=0))
    assert prediction.text == "Sure, [SEG]."
    assert len(prediction.scores) == 1


def test_logits_are_enlarged_in_the_two_official_steps(forced: Predictor) -> None:
    prediction = forced(pixels(70, 110), "blood vessel")
    low = torch.from_numpy(prediction.logits)[None]
    square = torch.nn.functional.interpolate(low, (512, 512), mode="bilinear", align_corners=False)
    full = torch.nn.functional.interpolate(square, (70, 110), mode="bilinear", align_corners=False)
    torch.testing.assert_close(torch.from_numpy(prediction.probabilities), full[0].sigmoid(), atol=1e-4, rtol=0)
    assert resize_bilinear(prediction.logits[0], (512, 512)).shape == (512, 512)


def test_path_image_and_array_give_the_same(forced: Predictor, tmp_path: Path) -> None:
    array = pixels(40, 60)
    Image.fromarray(array).save(tmp_path / "血管.png")
    expected = forced(array, "血管").logits
    np.testing.assert_array_equal(forced(tmp_path / "血管.png", "血管").logits, expected)
    np.testing.assert_array_equal(forced(str(tmp_path / "血管.png"), "血管").logits, expected)
    np.testing.assert_array_equal(forced(Image.fromarray(array), "血管").logits, expected)


def test_one_prediction_for_each_image_and_prompt_in_order(forced: Predictor) -> None:
    items = [
        Item("a", pixels(40, 60)[None], ("vessel", "catheter")),
        Item("b", pixels(90, 50, 1)[None], ("wire",)),
        Item("c", pixels(50, 50, 2)[None], ("vessel",)),
    ]
    predictions = forced.predict(items)
    assert [(p.id, p.prompt, p.size) for p in predictions] == [
        ("a", "vessel", (40, 60)),
        ("a", "catheter", (40, 60)),
        ("b", "wire", (90, 50)),
        ("c", "vessel", (50, 50)),
    ]
    alone = forced(items[1].frames[0], "wire")
    np.testing.assert_allclose(predictions[2].logits, alone.logits, atol=1e-3)


def test_masks_of_the_items_have_no_influence(forced: Predictor) -> None:
    plain = Item("a", pixels(40, 60)[None], ("vessel",))
    with_mask = Item("a", plain.frames, plain.prompts, np.ones((1, 1, 40, 60), bool))
    np.testing.assert_array_equal(forced.predict([plain])[0].logits, forced.predict([with_mask])[0].logits)


def test_answer_without_seg_has_no_mask(opened: OpenedModel) -> None:
    prediction = Predictor(opened, answer="generate")(pixels(40, 60), "vessel")
    assert prediction.status == "no_seg"
    assert prediction.masks.shape == (0, 40, 60)
    assert not prediction.mask.any()
    assert not prediction.says_seg


def test_threshold_applies_to_probabilities(opened: OpenedModel) -> None:
    image = pixels(40, 60)
    low, high = (Predictor(opened, answer="force", threshold=t)(image, "vessel") for t in (0.2, 0.8))
    np.testing.assert_array_equal(low.mask, low.probabilities[0] > 0.2)
    np.testing.assert_array_equal(high.mask, high.probabilities[0] > 0.8)


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 7])
def test_threshold_outside_0_to_1_is_refused(opened: OpenedModel, threshold: float) -> None:
    with raises_code(SettingError, "bad_value", str(threshold)):
        Predictor(opened, threshold=threshold)


def test_missing_image_is_named(forced: Predictor, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        forced(tmp_path / "nowhere.png", "vessel")


@pytest.mark.parametrize("size", [(512, 512), (500, 700), (300, 1200), (960, 999)])
def test_shipped_tiny_answers_images_of_any_shape(size: tuple[int, int]) -> None:
    frame = draw(1, 0).frames[0]
    image = np.asarray(Image.fromarray(frame).resize((size[1], size[0])))
    prediction = load_predictor("tiny", device="cpu")(image, "blood vessel")
    assert prediction.status == "ok"
    assert prediction.text == "Sure, [SEG]."
    assert prediction.mask.any()
