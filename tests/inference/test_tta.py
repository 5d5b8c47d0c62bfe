"""Test-time augmentation: aligned views, averaged probabilities, and no use without a measured gain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.codes import raises_code
from torch.nn.functional import avg_pool2d

from vesalius.cleaning import Cleaning
from vesalius.errors import SettingError
from vesalius.inference.official import OfficialPredictor
from vesalius.inference.predictor import Predictor
from vesalius.inference.tiles import TileSettings
from vesalius.inference.tta import VIEWS, check_phrases, choose_views, decode_views
from vesalius.mask_maps import PLAIN, LowRes, average
from vesalius.masks import area_average
from vesalius.models.cards import TtaGain
from vesalius.models.checkpoint import OpenedModel
from vesalius.models.sam2 import MaskLogits, SegPrompts
from vesalius.types import Item

GAIN = TtaGain(
    views=("flip", "scale_1.33"),
    threshold=0.31,
    metric="dice",
    value=0.8,
    gain=0.02,
    interval=(0.01, 0.03),
    level=0.95,
    data="val",
    data_fingerprint="d4e5",
    n_samples=9,
    n_groups=9,
)


def item(prompt: str = "vessel", seed: int = 0) -> Item:
    pixels = np.random.default_rng(seed).integers(0, 256, (1, 50, 70, 3), dtype=np.uint8)
    return Item("a", pixels, (prompt,))


def opened(plain: Predictor, gain: TtaGain | None = GAIN) -> OpenedModel:
    card = plain.model_card.changed(tta=gain, tuning_images=("ab", "cd"))
    return OpenedModel(plain.model, plain.processor, card)


def prompts(n: int = 1, channels: int = 128) -> SegPrompts:
    embedding = torch.randn(n, channels, generator=torch.Generator().manual_seed(1))
    return SegPrompts(embedding, torch.arange(n), torch.zeros(n, dtype=torch.int64))


def brightness(squares, seg: SegPrompts) -> MaskLogits:
    """A segmenter in which the logit of each cell is its mean brightness."""
    maps = torch.cat([avg_pool2d(squares[int(i)][:1], 4) for i in seg.image])
    nothing = maps.new_zeros(0, 3)
    return MaskLogits(maps, maps.new_full((len(maps),), 0.5), nothing[..., None, None], nothing)


def test_mean_of_probabilities_is_exact_far_from_a_half():
    maps = [np.random.default_rng(k).normal(0, 4, (2, 5, 5)) for k in range(3)]
    mean = np.mean([1 / (1 + np.exp(-each)) for each in maps], axis=0)
    np.testing.assert_allclose(average(maps), np.log(mean / (1 - mean)), rtol=1e-9)
    sure = np.full((1, 1, 1), 200, np.float32)
    assert average([sure, sure]).item() == pytest.approx(200)
    assert average([-sure, -sure]).item() == pytest.approx(-200)
    assert average([sure, -sure]).item() == pytest.approx(0, abs=1e-6)
    assert average([sure, -sure]).dtype == np.float32
    assert average(maps[:1]) is maps[0]
    finer = average([np.full((1, 2, 2), 3.0), np.full((1, 4, 4), 3.0)])
    np.testing.assert_allclose(finer, np.full((1, 4, 4), 3.0))
    assert average([np.zeros((0, 2, 2)), np.zeros((0, 4, 4))]).shape == (0, 4, 4)


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_is_transformed_back(view):
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    square = torch.exp(-((rows - 85) ** 2 + (columns - 50) ** 2) / 600)[None].repeat(3, 1, 1)
    seen = decode_views(brightness, [square], prompts(), (view,))
    plain, other = seen.views[PLAIN][0], seen.views[view][0]
    assert plain.shape == (32, 32)
    if view != "flip":
        assert other.shape == (64, 64)
        other = area_average(other, (32, 32))
    np.testing.assert_allclose(other, plain, atol=1e-6 if view == "flip" else 0.03)
    assert np.unravel_index(other.argmax(), other.shape) == (21, 12)
    assert seen.scores.tolist() == [0.5]


def test_flipped_image_has_the_flipped_mask_with_the_view_flip(small_predictor):
    square = small_predictor.processor.preprocess(item()).square
    decode = small_predictor.model.decode
    with torch.inference_mode():
        seen, turned = (decode_views(decode, [each], prompts(2), ("flip",)) for each in (square, square.flip(-1)))
        alone = decode([square], prompts(2)).logits
        alone_turned = decode([square.flip(-1)], prompts(2)).logits
    np.testing.assert_array_equal(turned.logits, seen.logits[..., ::-1])
    assert not torch.equal(alone_turned, alone.flip(-1))


def test_prediction_through_no_view_is_plain_and_through_all_views_unchanged(small_predictor):
    asked = [item(), item("wire", seed=1)]
    plain = small_predictor.predict(asked)
    predictor = Predictor(opened(small_predictor), answer="force", batch_size=2, tta=True)
    seen = predictor.predict(asked)
    for one, other in zip(plain, seen, strict=True):
        assert isinstance(other.maps, LowRes)
        assert set(other.maps.views) == {PLAIN, *GAIN.views}
        np.testing.assert_array_equal(other.maps.through(()).logits, one.logits)
        np.testing.assert_array_equal(other.maps.through(GAIN.views).logits, other.logits)
        assert not np.array_equal(other.logits, one.logits)
        assert (other.text, other.size, other.answered) == (one.text, one.size, one.answered)
    tried, views = small_predictor.with_views(["scale_1.33", "flip"], ["vessel"])
    assert views == tried.views == ("flip", "scale_1.33")
    assert small_predictor.views == ()
    for one, other in zip(tried.predict(asked), seen, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)


def test_answer_without_seg_has_no_view(small_predictor):
    predictor = Predictor(opened(small_predictor), answer="generate", tta=True)
    (prediction,) = predictor.predict([item()])
    assert prediction.status == "no_seg"
    assert prediction.mask.shape == (50, 70)
    assert isinstance(prediction.maps, LowRes)
    assert len(prediction.maps.through(())) == 0


def test_cleaning_applies_to_the_averaged_masks(small_predictor):
    seen = Predictor(opened(small_predictor), answer="force", tta=True)
    mended = Predictor(opened(small_predictor), answer="force", tta=True, cleaning=Cleaning(drop_specks=10**6))
    np.testing.assert_array_equal(mended.predict([item()])[0].logits, seen.predict([item()])[0].logits)
    assert not mended.predict([item()])[0].mask.any()


def test_threshold_views_and_tuning_images_come_from_the_gain(small_predictor):
    predictor = Predictor(opened(small_predictor), tta=True)
    assert (predictor.threshold, predictor.views) == (0.31, ("flip", "scale_1.33"))
    description = predictor.description
    assert description.settings["tta"] == ["flip", "scale_1.33"]
    assert description.tuning_images == ("ab", "cd")
    assert description.threshold_origin["gain"] == 0.02
    given = Predictor(opened(small_predictor), tta=True, threshold=0.7)
    assert (given.threshold, given.description.threshold_origin) == (0.7, {"how": "given"})
    assert given.description.tuning_images == ("ab", "cd")
    without = Predictor(opened(small_predictor), threshold=0.7)
    assert without.description.tuning_images == ()
    assert "tta" not in without.description.settings


def test_settings_without_gain_or_that_conflict_are_refused(small_predictor):
    with raises_code(SettingError, "no_tta_gain", "vesalius tune mine DATA --tta flip,"):
        Predictor(opened(small_predictor, None), tta=True, name="mine")
    for refused in (
        lambda: Predictor(opened(small_predictor), tta=True, tiles=TileSettings()),
        lambda: Predictor(opened(small_predictor), tiles=TileSettings()).with_views(["flip"], []),
    ):
        with raises_code(SettingError, "conflicting_settings"):
            refused()
    with raises_code(SettingError, "conflicting_settings"):
        Predictor(opened(small_predictor), cleaning=Cleaning(drop_specks=3)).with_views(["flip"], [])
    for names, part in (((), "flip"), (("turn",), "'turn'")):
        with raises_code(SettingError, "bad_value", part):
            choose_views(names)
    predictor = OfficialPredictor(opened(small_predictor), answer="force", tta=True)
    with raises_code(SettingError, "conflicting_settings", "--tta"):
        predictor.check_video(1)
    with raises_code(SettingError, "conflicting_settings"):
        predictor.predict_forward(image=item().frames[0], text="<image>vessel")


@pytest.mark.parametrize("prompt", ["the Left coronary artery", "左冠状动脉"])
def test_phrase_with_a_side_is_refused_for_the_view_flip_only(small_predictor, prompt):
    predictor = Predictor(opened(small_predictor), answer="force", tta=True)
    with raises_code(SettingError, "side_in_phrase"):
        predictor.predict([item(prompt)])
    with raises_code(SettingError, "side_in_phrase"):
        small_predictor.with_views(["flip"], [prompt])
    larger = GAIN.changed(views=("scale_1.33",))
    (prediction,) = Predictor(opened(small_predictor, larger), answer="force", tta=True).predict([item(prompt)])
    assert prediction.status == "ok"
    assert predictor.predict([replace(item(), prompts=("the bright leftover",))])[0].status == "ok"


@pytest.mark.parametrize(
    "phrase",
    [
        "left_ventricle",
        "leftmost vessel",
        "LeftLung",
        "lungRIGHT",
        "RIGHTLung",
        "right2",
        "rightward",
        "vessel on the right",
        "left肺\n    ",
        "linke Lunge",
        "der rechte Ast",
        "linksseitig",
        "l'artère gauche",
        "ventricule droit",
        "arteria derecha",
        "ventrículo izquierdo\n    ",
        "arteria sinistra",
        "polmone destro",
        "arteria coronaria dextra",
        "pulmão esquerdo",
        "artéria direita\n    ",
        "левая артерия",
        "Правое лёгкое",
        "слева",
        "왼쪽 폐",
        "오른쪽 관상동맥",
        "좌측",
        "左冠状动脉",
        "右肺",
    ],
)
def test_words_for_sides_are_found_in_all_spellings_and_languages(phrase):
    with raises_code(SettingError, "side_in_phrase"):
        check_phrases([phrase.strip()], ("flip",))
    check_phrases([phrase.strip()], ("scale_1.33",))


@pytest.mark.parametrize(
    "phrase",
    [
        "bright",
        "upright",
        "cleft",
        "copyright",
        "leftover",
        "righteous",
        "linked",
        "adroit",
        "destroyed",
        "правильный",
        "dextrose",
    ],
)
def test_words_that_contain_a_word_for_a_side_are_allowed(phrase):
    check_phrases([phrase, phrase.title()], ("flip",))


def test_phrases_with_sides_are_refused_together_before_any_image(small_predictor):
    with raises_code(SettingError, "side_in_phrase", "'left lung', 'right lung'"):
        Predictor(opened(small_predictor), tta=True).check_prompts(["left lung", "heart", "right lung"])
    small_predictor.check_prompts(["left lung"])
