"""Shared types: shapes are checked on construction, and predictions agree with torch."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.codes import raises_code

from vesalius.errors import SettingError
from vesalius.mask_maps import LowRes
from vesalius.types import Absent, Item, Prediction, Sample

FRAMES = np.zeros((2, 4, 5, 3), dtype=np.uint8)


def prediction(logits: np.ndarray, size: tuple[int, int] = (7, 11), **values: Any) -> Prediction:
    values = {"status": "ok", "scores": (0.5,) * len(logits)} | values
    return Prediction("a", "vessel", size=size, maps=LowRes(logits, 16), **values)


def test_a_sample_has_masks_for_every_prompt_or_none() -> None:
    assert Sample("a", Path("a.png"), ("x",), None).masks is None
    with pytest.raises(ValueError, match="a: 2 prompts but 1 masks"):
        Sample("a", Path("a.png"), ("x", "y"), ((Absent(),),))


def test_an_item_has_the_size_of_its_frames() -> None:
    item = Item("a", FRAMES, ("x",), np.zeros((1, 2, 4, 5), dtype=bool))
    assert item.size == (4, 5)
    with pytest.raises(FrozenInstanceError):
        item.id = "b"  # type: ignore[misc]


@pytest.mark.parametrize("frames", [FRAMES[0], FRAMES.astype(np.float32), FRAMES[..., :1], FRAMES[:0], FRAMES[:, :0]])
def test_frames_of_another_shape_or_dtype_are_refused(frames: np.ndarray) -> None:
    with raises_code(SettingError, "wrong_shape", "frames"):
        Item("a", frames, ())


@pytest.mark.parametrize(
    "masks",
    [
        np.zeros((2, 2, 4, 5), bool),
        np.zeros((1, 2, 5, 4), bool),
        np.zeros((1, 4, 5), bool),
        np.zeros((1, 2, 4, 5), np.uint8),
    ],
)
def test_masks_of_another_shape_or_dtype_are_refused(masks: np.ndarray) -> None:
    with raises_code(SettingError, "wrong_shape", "(1, 2, 4, 5)"):
        Item("a", FRAMES, ("x",), masks)


def test_probabilities_and_masks_equal_the_official_interpolation() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32) * 4
    result = prediction(logits)
    tensor = torch.from_numpy(logits)[None]
    for size in ((16, 16), (7, 11)):
        tensor = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
    expected = tensor[0].sigmoid().numpy()
    assert result.probabilities.dtype == np.float32
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(result.masks, tensor[0].numpy() > 0)
    np.testing.assert_array_equal(result.mask, result.masks.any(axis=0))


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_masks_are_probabilities_above_the_threshold(threshold: float) -> None:
    logits = np.random.default_rng(1).normal(size=(1, 8, 8)).astype(np.float32) * 4
    result = prediction(logits, threshold=threshold)
    np.testing.assert_array_equal(result.masks, result.probabilities > threshold)


def test_extreme_logits_give_probabilities_without_a_warning() -> None:
    result = prediction(np.full((1, 8, 8), -1000, dtype=np.float32))
    assert (result.probabilities < 1e-37).all()
    assert not result.mask.any()


@pytest.mark.parametrize("status", ["no_seg", "failed"])
def test_an_answer_without_masks_has_an_empty_mask(status: Any) -> None:
    result = prediction(np.zeros((0, 8, 8), dtype=np.float32), status=status)
    assert result.masks.shape == result.probabilities.shape == (0, 7, 11)
    assert result.mask.shape == (7, 11)
    assert not result.mask.any()


def test_contradicting_predictions_are_refused() -> None:
    some, none = np.zeros((1, 8, 8), dtype=np.float32), np.zeros((0, 8, 8), dtype=np.float32)
    cases: list[tuple[np.ndarray, dict[str, Any], str]] = [
        (some, {"status": "no_seg"}, "status no_seg with 1 masks"),
        (some, {"status": "failed"}, "status failed with 1 masks"),
        (none, {}, "status ok with 0 masks"),
        (some, {"scores": (0.5, 0.5)}, "1 masks with 2 scores"),
    ]
    for logits, values, reason in cases:
        with pytest.raises(ValueError, match=reason):
            prediction(logits, **values)
    with raises_code(SettingError, "wrong_shape", "(8, 8)"):
        prediction(some[0])
