"""All metrics together: names, shared computations, regions of interest, crops and properties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vesalius.evaluation import overlap, shape
from vesalius.evaluation.metrics import METRICS, score

CONTRACT = {"dice", "iou", "precision", "recall", "accuracy", "cldice", "hd95_px", "nsd_2px"}
pairs = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(
    lambda size: st.tuples(hnp.arrays(bool, size), hnp.arrays(bool, size))
)
BACKGROUND_METRICS = {"specificity", "accuracy", "balanced_accuracy"}


def without(scores: dict, *more: str) -> dict:
    """The scores that do not depend on the amount of background."""
    return {name: value for name, value in scores.items() if name not in {*BACKGROUND_METRICS, *more}}


def test_scores_have_the_names_of_the_table_in_its_order():
    mask = np.eye(6, dtype=bool)

    assert list(score(mask, mask)) == list(METRICS)
    assert set(METRICS) >= CONTRACT
    assert len({metric.title + metric.unit for metric in METRICS.values()}) == len(METRICS)


def test_docs_list_every_metric():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")

    assert [name for name in METRICS if f"`{name}`" not in page] == []


def test_scores_agree_with_the_separate_functions(vessel_pairs):
    target, prediction = vessel_pairs[0]
    scores = score(target, prediction)

    assert overlap.score(target, prediction).items() <= scores.items()


def test_metrics_in_mm_need_the_spacing(vessel_pairs):
    target, prediction = vessel_pairs[0]
    unknown, square, oblong = (score(target, prediction, spacing_mm=each) for each in (None, (0.5, 0.5), (0.5, 0.25)))
    in_mm = {name for name in METRICS if name.endswith("mm")}

    assert {name for name, value in unknown.items() if value is None} == in_mm
    assert without(square, *in_mm) == without(oblong, *in_mm) == without(unknown, *in_mm)
    assert square["hd_mm"] == pytest.approx(0.5 * square["hd_px"])
    assert square["nsd_1mm"] == square["nsd_2px"]
    assert 0.25 * square["hd_px"] <= oblong["hd_mm"] < square["hd_mm"]


def test_skeletons_distances_and_labels_are_computed_once(vessel_pairs, monkeypatch):
    calls = []
    for name in ("skeletonize", "cKDTree", "label"):
        found = getattr(shape, name)
        monkeypatch.setattr(
            shape, name, lambda *args, name=name, found=found, **options: calls.append(name) or found(*args, **options)
        )

    score(*vessel_pairs[0], spacing_mm=(0.3, 0.3))

    # one distance tree for each boundary and one for the widths
    assert {name: calls.count(name) for name in calls} == {"skeletonize": 2, "cKDTree": 3, "label": 2}


@given(pairs)
def test_a_mask_against_itself_is_perfect(masks):
    mask = masks[0]
    for name, value in score(mask, mask, spacing_mm=(0.5, 0.5)).items():
        perfect = 1.0 if METRICS[name].better == "higher" else 0.0
        nothing = METRICS[name].rule == "skeleton_recall_of_width" or not mask.any() or mask.all()
        assert value == perfect or (value is None and nothing), name


@settings(max_examples=50)
@given(pairs, st.tuples(*[st.integers(1, 4)] * 4))
def test_padding_changes_only_metrics_that_count_background(masks, sides):
    target, prediction = (np.pad(mask, 1) for mask in masks)
    top, bottom, left, right = sides
    around = ((top, bottom), (left, right))
    small = score(target, prediction, spacing_mm=(0.5, 0.25))
    large = score(np.pad(target, around), np.pad(prediction, around), spacing_mm=(0.5, 0.25))

    lengths = [name for name in METRICS if METRICS[name].unit]
    only_one = target.any() != prediction.any()
    if only_one:  # then distances are the image diagonal
        small, large = (without(scores, *lengths) for scores in (small, large))
    assert without(small) == pytest.approx(without(large))


@settings(max_examples=50)
@given(pairs, st.integers(0, 3), st.integers(0, 3))
def test_shifting_both_masks_changes_nothing(masks, down, right):
    here = [np.pad(mask, ((1, 4), (1, 4))) for mask in masks]
    there = [np.roll(mask, (down, right), axis=(0, 1)) for mask in here]

    assert score(*here) == pytest.approx(score(*there))


@settings(max_examples=50)
@given(pairs)
def test_transposing_both_masks_changes_only_skeleton_metrics(masks):
    target, prediction = masks
    lines = [name for name in METRICS if METRICS[name].rule.startswith(("cldice", "topology", "skeleton", "breaks"))]
    turned = score(target.T.copy(), prediction.T.copy(), spacing_mm=(0.25, 0.5))

    assert without(score(target, prediction, spacing_mm=(0.5, 0.25)), *lines) == pytest.approx(without(turned, *lines))


@settings(max_examples=50)
@given(pairs, st.data())
def test_rectangular_region_scores_as_the_crop(masks, data):
    target, prediction = masks
    height, width = target.shape
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = (slice(top, data.draw(st.integers(top + 1, height))), slice(left, data.draw(st.integers(left + 1, width))))
    within = np.zeros_like(target)
    within[box] = True

    assert score(target, prediction, within=within) == score(target[box].copy(), prediction[box].copy())


@settings(max_examples=50)
@given(pairs, st.data())
def test_pixels_outside_the_region_count_nowhere(masks, data):
    target, prediction = masks
    within = data.draw(hnp.arrays(bool, target.shape))
    within[0, 0] = True
    other_target, other_prediction = (mask ^ (data.draw(hnp.arrays(bool, mask.shape)) & ~within) for mask in masks)

    assert score(target, prediction, within=within) == score(other_target, other_prediction, within=within)


def test_whole_image_as_region_is_no_restriction(vessel_pairs):
    for target, prediction in vessel_pairs[:3]:
        assert score(target, prediction, within=np.ones_like(target)) == score(target, prediction)


def test_a_vessel_cropped_by_the_region_does_not_count_as_thin():
    target = np.zeros((40, 60), dtype=bool)
    target[10:30] = True
    within = np.zeros_like(target)
    within[:, :30] = True
    within[25:] = False  # cuts 5 of the 20 rows of the vessel

    scores = score(target, target, within=within)

    assert scores["skeleton_recall_over_8px"] == 1.0


@pytest.mark.parametrize("spacing", [(0.5,), (0.5, 0.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_spacing_that_is_not_two_positive_numbers_is_refused(spacing):
    mask = np.eye(4, dtype=bool)
    with pytest.raises(ValueError, match="two positive numbers"):
        score(mask, mask, spacing_mm=spacing)


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="the same size"):
        score(np.eye(4, dtype=bool), np.eye(5, dtype=bool))
