"""The tuned threshold is the one that trying all of them would find."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vesalius.data.images import read_image
from vesalius.errors import DataError, SettingError
from vesalius.evaluation.metrics import score
from vesalius.lineage import hash_pixels
from vesalius.scoring.tune import find_threshold
from vesalius.types import Item


@pytest.fixture
def case(tmp_path, FakeSegmenter, data_set):
    """Images with several objects, an empty truth and an answer without [SEG], and noisy logits of them."""
    random = np.random.default_rng(5)
    truth = np.zeros((24, 24), dtype=bool)
    truth[4:9, 3:20] = True
    drawn = data_set(tmp_path / "drawn", ids=list("abcde"), truth=truth, groups=["p", "p", "q", "q", "r"])
    absent = data_set(tmp_path / "absent", ids=["f"], truth=np.zeros_like(truth))
    answers: dict[str, Any] = {}
    for name in "abdef":
        answers[name] = random.normal(-1.5, 1, (24, 24)) + 1.8 * truth * (name != "f")
    answers["b"] = np.stack([answers["b"], np.roll(answers["b"], 4)])
    answers["c"] = None
    return FakeSegmenter(answers, batch=3), replace(drawn, samples=drawn.samples + absent.samples)


def by_trying(segmenter: Any, data: Any, metric: str, threshold: float) -> float:
    """The mean of the metric itself on masks that are cut at the threshold."""
    segmenter.threshold = threshold
    values = []
    for sample in data.samples:
        pixels = read_image(sample.image)
        prediction = segmenter.predict([Item(sample.id, pixels[None], sample.prompts)])[0]
        truth = np.asarray(Image.open(sample.masks[0][0].path)) > 0
        values.append(score(truth, prediction.mask)[metric])
    return float(np.mean(values))


@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_threshold_and_curve_are_those_of_trying_all(case, metric):
    segmenter, data = case
    tuned = find_threshold(segmenter, data, metric)
    assert segmenter.calls == [["a", "b", "c"], ["d", "e", "f"]]

    tried = {k / 100: by_trying(segmenter, data, metric, k / 100) for k in range(1, 100)}
    assert dict(tuned.curve) == pytest.approx(tried)
    assert tuned.value == pytest.approx(max(tried.values())) == pytest.approx(tried[tuned.threshold])
    assert tuned.at_default == pytest.approx(tried[0.5]) and tuned.threshold != 0.5
    assert (tuned.n_samples, tuned.n_groups, tuned.metric, tuned.data) == (6, 4, metric, "squares")
    assert tuned.images == tuple(hash_pixels(read_image(sample.image)) for sample in data.samples)


def test_of_equal_thresholds_that_nearest_to_a_half_is_taken(tmp_path, FakeSegmenter, data_set, square):
    data = data_set(tmp_path / "data")
    assert find_threshold(FakeSegmenter(), data).threshold == 0.5
    logits = np.where(square(), 0.0, np.log(0.3 / 0.7))  # a half inside, 0.3 outside
    assert find_threshold(FakeSegmenter(dict.fromkeys("abc", logits)), data).threshold == 0.49


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda s, d: s.answers.update(b="out of memory"), "b: out of memory; no threshold was found"),
        (lambda s, d: s.answers.update(b=RuntimeError("no")), "b: RuntimeError: no"),
        (lambda s, d: d.samples[4].image.write_bytes(b""), "is empty"),
        (lambda s, d: d.samples[4].masks[0][0].path.unlink(), "there is no such file"),
    ],
)
def test_sample_that_cannot_be_used_leaves_no_threshold(case, harm, words):
    segmenter, data = case
    harm(segmenter, data)
    with pytest.raises(DataError, match=words):
        find_threshold(segmenter, data)


def test_training_images_bare_samples_no_samples_and_other_metrics_are_refused(case):
    segmenter, data = case
    with pytest.raises(SettingError, match="choose from dice, iou"):
        find_threshold(segmenter, data, "hd95_px")
    with pytest.raises(DataError, match="no samples"):
        find_threshold(segmenter, replace(data, samples=()))
    bare = replace(data.samples[0], masks=None)
    with pytest.raises(DataError, match=r"1 of 1 samples have no masks \(first: a\)"):
        find_threshold(segmenter, replace(data, samples=(bare,)))
    segmenter.training_images = (hash_pixels(read_image(data.samples[1].image)),)
    with pytest.raises(DataError, match=r"1 of 6 images are among .* trained on \(first: b\)"):
        find_threshold(segmenter, data)
    assert segmenter.seen == []
