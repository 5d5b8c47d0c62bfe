"""`predictor.refine`: clicks correct a prediction of an image, again and again, with and without SAM 2's point prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from tests.codes import raises_code

from vesalius import load_item, load_predictor, load_samples
from vesalius.cleaning import Cleaning
from vesalius.errors import SettingError
from vesalius.inference.baselines import FrangiFilter
from vesalius.inference.predictor import Predictor
from vesalius.inference.tiles import TileSettings
from vesalius.models.cards import RANDOM_START, ModelCard
from vesalius.models.checkpoint import OpenedModel
from vesalius.synth import write_dataset
from vesalius.types import Prediction

SIZE = (48, 64)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def is_right(prediction: Prediction) -> bool:
    return all(prediction.mask[int(y), int(x)] == positive for (x, y), positive in prediction.points)


@pytest.fixture(scope="module")
def untrained(opened: OpenedModel) -> OpenedModel:
    """A model with random point prompts."""
    return replace(opened, card=opened.card.model_copy(update={"lineage": {"start": RANDOM_START}}))


@pytest.fixture(scope="module")
def predictor(untrained: OpenedModel) -> Predictor:
    return Predictor(untrained, answer="force")


@pytest.fixture(scope="module")
def base(predictor: Predictor) -> Prediction:
    return predictor(IMAGE, "vessel")


@pytest.fixture
def with_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a model with a pretrained SAM 2."""
    monkeypatch.setattr(ModelCard, "has_random_points", property(lambda card: False))


def test_clicks_are_obeyed_and_remembered(predictor: Predictor, base: Prediction) -> None:
    second = predictor.refine(base, points=[((10, 20), True), ((40.5, 30.2), False)])
    third = predictor.refine(second, [((63, 47), True), ((10, 20), False)])
    assert second.points == (((10, 20), True), ((40.5, 30.2), False))
    assert third.points == (((40.5, 30.2), False), ((63, 47), True), ((10, 20), False))
    assert is_right(second)
    assert is_right(third)
    assert (third.status, third.prompt, third.masks.shape) == ("ok", "vessel", (1, *SIZE))
    assert base.points == ()
    together = predictor.refine(base, list(third.points))
    np.testing.assert_allclose(together.probabilities, third.probabilities, atol=1e-5)
    assert third.overlay().size == SIZE[::-1]


@settings(max_examples=12, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.integers(0, SIZE[1] - 1), st.integers(0, SIZE[0] - 1)), st.booleans(), min_size=1, max_size=6
    )
)
def test_the_mask_has_every_positive_point_and_no_negative_one(
    predictor: Predictor, base: Prediction, points: dict[tuple[int, int], bool]
) -> None:
    assert is_right(predictor.refine(base, list(points.items())))


def test_sam_points_are_obeyed_and_give_a_score(predictor: Predictor, base: Prediction, with_points: None) -> None:
    second = predictor.refine(base, [((10, 20), True), ((40, 30), False)])
    third = predictor.refine(second, [((50, 5), True)])
    assert is_right(second)
    assert is_right(third)
    assert len(third.scores) == 1
    assert not np.allclose(second.maps.before.logits, third.maps.before.logits)  # type: ignore[attr-defined]


@pytest.mark.parametrize("trained", [False, True])
def test_an_answer_without_mask_needs_a_positive_click(
    untrained: OpenedModel, trained: bool, request: pytest.FixtureRequest
) -> None:
    if trained:
        request.getfixturevalue("with_points")
    predictor = Predictor(untrained, answer="generate")
    none = predictor(IMAGE, "vessel")
    assert none.status == "no_seg"
    with raises_code(SettingError, "bad_value"):
        predictor.refine(none, [((3, 3), False)])
    refined = predictor.refine(none, [((30, 20), True), ((3, 3), False)])
    assert refined.status == "ok"
    assert is_right(refined)
    assert is_right(predictor.refine(refined, [((31, 40), True)]))


def test_cleaning_does_not_remove_a_click(untrained: OpenedModel) -> None:
    predictor = Predictor(untrained, answer="force", cleaning=Cleaning(drop_specks=4000), threshold=0.9)
    base = predictor(IMAGE, "vessel")
    assert base.area_px == 0
    refined = predictor.refine(base, [((30, 20), True)])
    assert is_right(refined)
    assert is_right(predictor.refine(refined, [((5, 5), True)]))


def test_tiles_are_corrected(opened: OpenedModel, with_points: None) -> None:
    predictor = Predictor(opened, answer="force", tiles=TileSettings(sides=(48,)))
    refined = predictor.refine(predictor(IMAGE, "vessel"), [((10, 20), True), ((40, 30), False)])
    assert is_right(refined)


def test_wrong_calls_are_refused(predictor: Predictor, base: Prediction) -> None:
    kept_no_image = Prediction("a", "vessel", "ok", SIZE, base.maps)
    cases: list[tuple[Any, Any, str]] = [
        (base, [((64, 3), True)], "invalid_point"),
        (base, [], "invalid_point"),
        ([base], [((1, 1), True)], "bad_value"),
        (None, [((1, 1), True)], "bad_value"),
        (kept_no_image, [((1, 1), True)], "no_image"),
        (Prediction.failure("a", "vessel", SIZE, "broken"), [((1, 1), True)], "prediction_failed"),
    ]
    for prediction, points, code in cases:
        with raises_code(SettingError, code):
            predictor.refine(prediction, points)
    with raises_code(SettingError, "unknown_setting"):
        predictor.refine(base, clicks=[((1, 1), True)])  # type: ignore[call-arg]
    frangi = FrangiFilter()
    with raises_code(SettingError, "not_supported"):
        frangi.refine(frangi(IMAGE, "vessel"), [((1, 1), True)])


def test_points_are_random_where_the_model_began_with_random_weights() -> None:
    assert load_predictor("tiny").model_card.has_random_points
    assert ModelCard(kind="x", lineage={"start": f"{RANDOM_START} (seed 0)"}).has_random_points
    assert ModelCard(kind="x", lineage={"start_lineage": {"start": RANDOM_START}}).has_random_points
    assert not ModelCard(kind="x").has_random_points


def test_clicks_on_missed_pixels_raise_the_dice_of_the_shipped_model(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", n=1, seed=902)
    item = load_item(load_samples(tmp_path / "data")[0])
    assert item.masks is not None
    target = item.masks[item.prompts.index("catheter"), 0]
    predictor = load_predictor("tiny")
    prediction = predictor(item.frames[0], "catheter")

    def dice(found: Prediction) -> float:
        return 2 * float((target & found.mask).sum()) / float(target.sum() + found.mask.sum())

    before = dice(prediction)
    refined = predictor.refine(prediction, deepest(target & ~prediction.mask, True))
    refined = predictor.refine(refined, deepest(refined.mask & ~target, False))
    assert dice(refined) > before + 0.01


def deepest(region: np.ndarray, positive: bool) -> list[tuple[tuple[float, float], bool]]:
    """A click on the pixel of the region that is farthest from its edge."""
    y, x = np.unravel_index(ndimage.distance_transform_edt(region).argmax(), region.shape)
    return [((float(x), float(y)), positive)]
