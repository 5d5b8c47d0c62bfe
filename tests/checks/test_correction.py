"""Correction of one sample: unambiguous faults are corrected, and nothing else is changed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import binary_dilation

from vesalius.checks.correction import Correction, correct, resample
from vesalius.data.dataset import load_item
from vesalius.masks import EIGHT_CONNECTED, decode_rle, encode_rle, rasterize
from vesalius.types import Absent, MaskFile, MaskReference, Polygons, RleMask, Sample

SQUARE = Polygons(((10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0),))
OTHER = Polygons(((20.0, 20.0, 50.0, 20.0, 50.0, 40.0, 20.0, 40.0),))
NAN = math.nan


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gray image of 64 x 96 (h x w)."""
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.fromarray(np.arange(64 * 96, dtype=np.uint8).reshape(64, 96)).save(path)
    return path


def sample(image: Path, *objects: MaskReference, **changes: Any) -> Sample:
    values: dict[str, Any] = {"prompts": ("v",), "masks": (objects,), **changes}
    return Sample("a", image, **values)


def actions(correction: Correction) -> list[tuple[str, str]]:
    return [(change.action, change.part) for change in correction.changes]


def mask_of(correction: Correction) -> np.ndarray:
    assert correction.sample is not None
    masks = load_item(correction.sample).masks
    assert masks is not None
    return masks[0, 0]


def test_a_valid_sample_is_unchanged(image: Path) -> None:
    right = sample(image, SQUARE, size=(64, 96), group="p", metadata={"k": 1})
    assert correct(right).sample == right
    assert correct(right).changes == ()
    absent = sample(image, Absent())
    assert correct(absent).sample == absent


def test_polygons_drawn_on_another_size_are_rescaled(image: Path) -> None:
    correction = correct(sample(image, SQUARE, size=(128, 191)))  # 191: rounded from an odd side
    assert actions(correction) == [("rescaled", "'v'")]
    assert correction.changes[0].reason == "128 x 191 to 64 x 96"
    assert correction.sample is not None and correction.sample.size == (64, 96)
    (reference,) = correction.sample.masks[0]
    assert isinstance(reference, Polygons)
    expected = [value * (96 / 191, 1 / 2)[i % 2] for i, value in enumerate(SQUARE.parts[0])]
    np.testing.assert_allclose(reference.parts[0], expected)


FAR = Polygons(((10.0, 10.0, 98.1, 10.0, 80.0, 30.0),))
WIDE = RleMask(encode_rle(rasterize(SQUARE.parts, (128, 288))))
PHRASE, IMAGE = ("dropped", "'v'"), ("dropped", "image")


@pytest.mark.parametrize(
    ("objects", "size", "expected", "reason"),
    [
        ([SQUARE], (128, 288), [PHRASE, IMAGE], "the ratios of height and width differ"),
        ([WIDE], (128, 288), [PHRASE, IMAGE], "the ratios of height and width differ"),
        ([SQUARE], (96, 64), [PHRASE, IMAGE], "rotated"),
        ([SQUARE, FAR], None, [IMAGE], "outside the image, so it is unknown at which image size it was annotated"),
        ([SQUARE, FAR], (64, 96), [IMAGE], "outside its stated size of 64 x 96"),
        ([SQUARE, FAR], (32, 48), [IMAGE], "outside its stated size of 32 x 48"),
        ([SQUARE, RleMask({"size": [64, 96], "counts": [5]})], None, [PHRASE, IMAGE], "RLE"),
        ([RleMask({"size": [10**9, 10**9], "counts": [10**18]})], None, [PHRASE, IMAGE], "megapixels"),
        ([MaskFile(Path("none.png"))], None, [PHRASE, IMAGE], "none.png"),
    ],
)
def test_an_uncertain_sample_is_dropped_with_the_reason(
    image: Path, objects: list[Any], size: Any, expected: list[tuple[str, str]], reason: str
) -> None:
    correction = correct(sample(image, *objects, size=size))
    assert correction.sample is None
    assert correction.has_unknown_scale == (FAR in objects)
    assert actions(correction) == expected
    assert reason in correction.changes[0].reason


def test_unreadable_files_are_dropped_with_the_reason(image: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    for broken in (sample(tmp_path / "a.png", SQUARE), sample(image, MaskFile(tmp_path / "a.png"))):
        correction = correct(broken)
        assert correction.sample is None and "a.png" in correction.changes[0].reason


def test_a_small_overshoot_is_clipped_with_and_without_a_stated_size(image: Path) -> None:
    over = Polygons(((10.0, -2.0, 98.0, 10.0, 80.0, 30.0),))
    for size in (None, (64, 96)):
        correction = correct(sample(image, over, size=size))
        assert actions(correction) == [("clipped", "'v'")] and not correction.has_unknown_scale
        np.testing.assert_array_equal(mask_of(correction), rasterize(over.parts, (64, 96)))


def test_a_broken_part_does_not_hide_another_part_far_outside(image: Path) -> None:
    broken = Polygons(((5.0, 5.0, 9.0, 9.0, 5.0, 9.0, NAN, 1.0), (10.0, 10.0, 150.0, 10.0, 150.0, 30.0)))
    assert correct(sample(image, prompts=("v", "w"), masks=((broken,), (SQUARE,)))).has_unknown_scale


def test_an_overshoot_on_a_smaller_copy_is_clipped_on_the_image(image: Path) -> None:
    over = Polygons(((2.0, 2.0, 24.9, 2.0, 24.9, 12.0),))  # 24 wide; an overshoot of 0.9 becomes 3.6
    correction = correct(sample(image, over, size=(16, 24)))
    assert actions(correction) == [("rescaled", "'v'"), ("clipped", "'v'")]  # measured at the size it was drawn on
    np.testing.assert_array_equal(mask_of(correction), rasterize([[8, 8, 99.6, 8, 99.6, 48]], (64, 96)))


coordinates = st.floats(-2, 66, allow_nan=False).map(lambda value: round(value, 2))


@given(
    st.lists(st.lists(coordinates, min_size=6, max_size=20).filter(lambda p: len(p) % 2 == 0), min_size=1, max_size=3)
)
def test_clipped_polygons_keep_their_mask_exactly(image: Path, parts: list[list[float]]) -> None:
    correction = correct(sample(image, Polygons(tuple(map(tuple, parts))), size=(64, 96)))
    whole = rasterize(parts, (64, 96))
    if correction.sample is None:
        assert not whole.any()
    else:
        np.testing.assert_array_equal(mask_of(correction), whole)


@pytest.mark.parametrize(
    "part",
    [
        (),
        (1.0, 2.0),
        (1.0, 2.0, 3.0, 4.0),
        (1.0, 2.0, 3.0),
        (5.0, 5.0, 9.0, 9.0, 7.0, 7.0),
        (0.1, 0.2, 0.3, 0.6, 0.2, 0.4),
        (4.0, 4.0, 4.0, 4.0, 4.0, 4.0),
        (NAN, NAN, 3.0, 4.0, 5.0, 6.0),
        (NAN, 1.0, NAN, 1.0, NAN, 1.0),
        (math.inf, 1.0, 2.0, 2.0, 3.0, 2.0),
        (1e308, 1e308, -1e308, -1e308, 0.0, 0.0),
    ],
)
def test_parts_without_an_area_are_dropped(image: Path, part: tuple[float, ...]) -> None:
    correction = correct(sample(image, Polygons((*SQUARE.parts, part))))
    assert correction.sample is not None
    assert correction.sample.masks == ((SQUARE,),)
    assert actions(correction) == [("dropped", "'v', polygon 1")]
    alone = correct(sample(image, Polygons((part,))))
    assert alone.sample is None
    assert actions(alone)[-2:] == [("dropped", "'v'"), ("dropped", "image")]


@pytest.mark.parametrize("more", [(NAN, 3.0), (40.0,), (0.0, math.inf)])
def test_an_unknown_part_drops_the_whole_phrase(image: Path, more: tuple[float, ...]) -> None:
    broken = Polygons((*SQUARE.parts, (*OTHER.parts[0], *more)))
    two = sample(image, prompts=("v", "w"), masks=((broken,), (OTHER,)))
    correction = correct(two)
    assert correction.sample is not None
    assert correction.sample.prompts == ("w",)
    assert actions(correction) == [("dropped", "'v'")]


def test_objects_of_one_phrase_are_merged(image: Path) -> None:
    correction = correct(sample(image, SQUARE, OTHER))
    assert correction.sample is not None
    assert correction.sample.masks == ((Polygons((*SQUARE.parts, *OTHER.parts)),),)
    assert actions(correction) == [("merged", "'v'")]
    whole = rasterize([*SQUARE.parts, *OTHER.parts], (64, 96))
    np.testing.assert_array_equal(mask_of(correction), whole)
    rle = RleMask(encode_rle(rasterize(OTHER.parts, (64, 96))))
    mixed = correct(sample(image, SQUARE, rle))
    assert mixed.sample is not None and isinstance(mixed.sample.masks[0][0], RleMask)
    np.testing.assert_array_equal(mask_of(mixed), whole)


def test_an_empty_mask_is_dropped_and_not_marked_absent(image: Path) -> None:
    nothing = Polygons(((2.1, 2.1, 2.3, 2.1, 2.1, 2.3),))
    correction = correct(sample(image, prompts=("v", "w", "x"), masks=((nothing,), (Absent(),), (SQUARE, nothing))))
    assert correction.sample is not None
    assert correction.sample.prompts == ("w", "x")
    assert correction.sample.masks == ((Absent(),), (SQUARE,))
    assert actions(correction) == [("dropped", "'v'"), ("dropped", "'x', object 1")]


def test_samples_without_annotation_are_kept_with_the_correct_size(image: Path) -> None:
    plain = Sample("a", image, (), None, size=(128, 192))
    correction = correct(plain)
    assert correction.sample == Sample("a", image, (), None, size=(64, 96))
    assert actions(correction) == [("rescaled", "stated size")]
    assert correction.key is None


def vessel(side: int) -> np.ndarray:
    """A curved line that forks, with a width of 1/60 of the side."""
    y, x = np.mgrid[0:side, 0:side] / side
    first = np.abs(y - 0.5 - 0.2 * np.sin(5 * x)) < 1 / 120
    second = (np.abs(y + 0.4 * x - 0.8) < 1 / 120) & (x > 0.3) & (x < 0.6)
    return (first | second) & (x > 0.1) & (x < 0.9)


@pytest.mark.parametrize(("before", "after"), [(800, 512), (512, 800), (512, 1024), (1000, 999), (600, 400)])
def test_pixel_masks_are_rescaled_if_their_shape_stays(before: int, after: int) -> None:
    right = resample(vessel(before), (after, after))
    target = vessel(after)
    assert right is not None
    assert not (right & ~binary_dilation(target, EIGHT_CONNECTED)).any()
    assert not (target & ~binary_dilation(right, EIGHT_CONNECTED)).any()


def test_pixel_masks_are_not_rescaled_if_their_shape_would_change() -> None:
    assert resample(vessel(512), (25, 25)) is None  # breaks
    assert resample(vessel(512), (1100, 1100)) is None  # enlarged too much
    dots = np.zeros((64, 64), dtype=bool)
    dots[10, 10] = dots[40, 40] = True
    assert resample(dots, (32, 32)) is None  # a dot vanishes
    close = np.zeros((64, 64), dtype=bool)
    close[10:20, 10:20] = close[10:20, 21:30] = True
    assert resample(close, (32, 32)) is None  # two dots merge


def test_rle_and_mask_files_of_another_size_are_rescaled_or_dropped(tmp_path: Path) -> None:
    Image.new("L", (512, 512)).save(tmp_path / "a.png")
    Image.fromarray(vessel(800)).save(tmp_path / "m.png")
    for reference in (RleMask(encode_rle(vessel(800))), MaskFile(tmp_path / "m.png")):
        correction = correct(sample(tmp_path / "a.png", reference))
        assert actions(correction) == [("rescaled", "'v'")]
        np.testing.assert_array_equal(mask_of(correction), resample(vessel(800), (512, 512)))
    fine = correct(sample(tmp_path / "a.png", RleMask(encode_rle(np.eye(1500, dtype=bool)))))
    assert fine.sample is None and "change its shape" in fine.changes[0].reason


def test_only_equal_samples_have_equal_keys(image: Path, tmp_path: Path) -> None:
    key = correct(sample(image, SQUARE)).key
    assert key is not None
    rle = RleMask(encode_rle(rasterize(SQUARE.parts, (64, 96))))
    assert correct(sample(image, rle)).key == key
    for other in (
        sample(image, OTHER),
        sample(image, SQUARE, prompts=("w",)),
        sample(image, SQUARE, group="p"),
        sample(image, SQUARE, metadata={"k": 1}),
    ):
        assert correct(other).key not in (key, None)
    assert correct(sample(image, SQUARE, sequence="clip")).key is None


json_numbers = st.one_of(st.floats(), st.integers(-(10**6), 10**6).map(float))


@given(
    st.lists(st.lists(json_numbers, max_size=9), min_size=1, max_size=4),
    st.one_of(st.none(), st.tuples(st.integers(1, 300), st.integers(1, 300))),
)
def test_kept_polygons_can_be_loaded_for_any_input(
    image: Path, parts: list[list[float]], size: tuple[int, int] | None
) -> None:
    correction = correct(sample(image, Polygons(tuple(map(tuple, parts))), SQUARE, size=size))
    if correction.sample is None:
        assert {"dropped"} == {change.action for change in correction.changes[-2:]}
    else:
        assert mask_of(correction).any()
        assert correction.sample.size in (None, (64, 96))
    json.dumps([vars(change) for change in correction.changes], allow_nan=False)


def test_clipped_masks_have_the_size_of_the_image(image: Path) -> None:
    over = Polygons(((10.0, 10.0, 98.0, 10.0, 98.0, 30.0),))
    correction = correct(sample(image, over, size=(64, 96)))
    assert correction.sample is not None
    (reference,) = correction.sample.masks[0]
    assert isinstance(reference, RleMask)
    assert decode_rle(reference.rle).shape == (64, 96)
