"""The tuned threshold and the gain of test-time augmentation equal those of an exhaustive search."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.data.images import read_image
from vesalius.errors import AnnotationError, DataError, SettingError
from vesalius.evaluation.metrics import score
from vesalius.evaluation.statistics import paired_bootstrap
from vesalius.files import to_json
from vesalius.lineage import hash_pixels
from vesalius.mask_maps import LowRes
from vesalius.scoring.tune import as_json, find_threshold, summarize
from vesalius.segmenter import Segmenter
from vesalius.types import Item, Prediction


@pytest.fixture
def case(tmp_path, FakeSegmenter, dataset):
    """Noisy logits of images, with several objects, an empty ground target and an answer without [SEG]."""
    random = np.random.default_rng(5)
    target = np.zeros((24, 24), dtype=bool)
    target[4:9, 3:20] = True
    drawn = dataset(tmp_path / "drawn", ids=list("abcde"), target=target, groups=["p", "p", "q", "q", "r"])
    absent = dataset(tmp_path / "absent", ids=["f"], target=np.zeros_like(target))
    answers: dict[str, Any] = {}
    for name in "abdef":
        answers[name] = random.normal(-1.5, 1, (24, 24)) + 1.8 * target * (name != "f")
    answers["b"] = np.stack([answers["b"], np.roll(answers["b"], 4)])
    answers["c"] = None
    return FakeSegmenter(answers, batch_size=3), replace(drawn, samples=drawn.samples + absent.samples)


def by_trying(segmenter: Any, data: Any, metric: str, threshold: float) -> float:
    """Mean of the metric on masks at the threshold."""
    segmenter.describe(threshold=threshold)
    values = []
    for sample in data.samples:
        pixels = read_image(sample.image)
        prediction = segmenter.predict([Item(sample.id, pixels[None], sample.prompts)])[0]
        target = np.asarray(Image.open(sample.masks[0][0].path)) > 0
        values.append(score(target, prediction.mask)[metric])
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


def test_among_equal_thresholds_the_nearest_to_one_half_is_taken(tmp_path, FakeSegmenter, dataset, square):
    data = dataset(tmp_path / "data")
    assert find_threshold(FakeSegmenter(), data).threshold == 0.5
    logits = np.where(square(), 0.0, np.log(0.3 / 0.7))  # a half inside, 0.3 outside
    assert find_threshold(FakeSegmenter(dict.fromkeys("abc", logits)), data).threshold == 0.49


@pytest.mark.parametrize(
    ("harm", "code", "name"),
    [
        (lambda s, d: s.answers.update(b="out of memory"), "prediction_failed", "b: out of memory"),
        (lambda s, d: s.answers.update(b=RuntimeError("no")), "prediction_failed", "b: RuntimeError: no"),
        (lambda s, d: d.samples[4].image.write_bytes(b""), "unreadable_image", "e.png"),
        (lambda s, d: d.samples[4].masks[0][0].path.unlink(), "prediction_failed", "e.mask.png"),
    ],
)
def test_sample_that_cannot_be_used_leaves_no_threshold(case, harm, code, name):
    segmenter, data = case
    harm(segmenter, data)
    with pytest.raises(DataError) as caught:
        find_threshold(segmenter, data)
    assert caught.value.code == code and name in str(caught.value)


def test_training_images_bare_samples_no_samples_and_other_metrics_are_refused(case):
    segmenter, data = case
    with raises_code(SettingError, "unknown_metric", "dice, iou"):
        find_threshold(segmenter, data, "hd95_px")
    with raises_code(DataError, "no_samples"):
        find_threshold(segmenter, replace(data, samples=()))
    bare = replace(data.samples[0], masks=None)
    with raises_code(AnnotationError, "unlabeled_image", "1 of 1", "first: a"):
        find_threshold(segmenter, replace(data, samples=(bare,)))
    segmenter.describe(training_images=(hash_pixels(read_image(data.samples[1].image)),))
    with raises_code(DataError, "training_leak", "1 of 6 images", "first: b"):
        find_threshold(segmenter, data)
    assert segmenter.seen == []


class ViewedSegmenter(Segmenter):
    """A FakeSegmenter with separate answers for each view of test-time augmentation."""

    def __init__(self, plain: Any, views: dict[str, dict[str, np.ndarray]]) -> None:
        self.plain, self.shown, self.views = plain, views, ()
        self.description = plain.description
        self.asked: list[str] = []

    description: Any = None

    def with_views(self, views: Any, prompts: Any) -> Any:
        self.views, self.asked = tuple(views), list(prompts)
        return self, self.views

    def predict(self, items: Any) -> Any:
        return [replace(each, maps=self.maps(each)) for each in self.plain.predict(items)]

    def maps(self, prediction: Prediction) -> LowRes:
        shown = {view: self.shown[view][prediction.id][None].astype(np.float32) for view in self.views}
        return LowRes(prediction.logits, prediction.maps.input_size, {"plain": prediction.logits, **shown})


@pytest.fixture
def viewed(tmp_path, FakeSegmenter, dataset):
    """Noisy ground truth: independent noise in `flip`, which averaging lowers, and stronger noise in `scale_0.75`."""
    random = np.random.default_rng(3)
    target = np.zeros((24, 24), dtype=bool)
    target[4:9, 3:20] = True
    ids = [f"{k:02d}" for k in range(12)]
    data = dataset(tmp_path / "val", ids=ids, target=target, groups=[name[0] + str(int(name) % 8) for name in ids])

    def draw(noise: float) -> dict[str, np.ndarray]:
        return {name: random.normal(-2, noise, (24, 24)) + 3 * target for name in ids}

    views = {"flip": draw(2), "scale_0.75": draw(30)}
    return ViewedSegmenter(FakeSegmenter(draw(2), batch_size=5), views), data


def test_gain_of_each_choice_of_views_is_that_of_trying_it(viewed):
    segmenter, data = viewed
    tuned = find_threshold(segmenter, data, tta=["flip", "scale_0.75"])
    assert segmenter.asked == ["vessel"] * 12
    assert sum(map(len, segmenter.plain.calls)) == 12  # one pass
    assert [trial.views for trial in tuned.trials] == [("flip",), ("scale_0.75",), ("flip", "scale_0.75")]
    assert [trial.is_significant for trial in tuned.trials] == [True, False, False]

    target = np.asarray(Image.open(data.samples[0].masks[0][0].path)) > 0
    groups = [sample.group for sample in data.samples]

    def scores(views: tuple[str, ...], threshold: float) -> np.ndarray:
        found = []
        for sample in data.samples:
            maps = [segmenter.plain.answers[sample.id], *(segmenter.shown[view][sample.id] for view in views)]
            mean = np.mean([1 / (1 + np.exp(-each)) for each in maps], axis=0)
            mask = mean > threshold
            found.append(2 * (mask & target).sum() / (mask.sum() + target.sum()))
        return np.array(found)

    for trial in tuned.trials:
        tried = {k / 100: scores(trial.views, k / 100).mean() for k in range(1, 100)}
        assert trial.value == pytest.approx(max(tried.values())) == pytest.approx(tried[trial.threshold])
        differences = scores(trial.views, trial.threshold) - scores((), tuned.threshold)
        assert trial.gain == pytest.approx(differences.mean())
        interval = paired_bootstrap([(differences.tolist(), groups)], level=1 - 0.05 / 3)[0]
        assert trial.level == pytest.approx(1 - 0.05 / 3)
        assert trial.interval == pytest.approx((interval.low, interval.high))

    assert tuned.gain == tuned.trials[0]
    card = tuned.tta_gain
    assert (card.views, card.threshold, card.gain) == (("flip",), tuned.gain.threshold, tuned.gain.gain)
    assert (card.data, card.n_samples, card.n_groups) == ("squares", 12, 10)
    lines = summarize(tuned, Path("bundle"), had_gain=False)
    assert lines[1].endswith(": significant gain")
    assert lines[2].endswith(": no significant gain")
    assert "--tta is enabled" in lines[4] and "flip" in lines[4]
    assert to_json(as_json(tuned))


def test_plain_threshold_is_the_same_whatever_views_are_tried(viewed):
    segmenter, data = viewed
    plain, tried = find_threshold(segmenter, data), find_threshold(segmenter, data, tta=["flip"])
    assert replace(tried, trials=()) == plain
    assert (plain.gain, plain.tta_gain) == (None, None)


def test_no_gain_from_views_that_do_not_help_or_from_a_single_group(viewed):
    segmenter, data = viewed
    worse = find_threshold(segmenter, data, tta=["scale_0.75"])
    assert worse.trials[0].gain < 0
    assert worse.tta_gain is None
    assert "--tta stays disabled" in summarize(worse, Path("b"), had_gain=True)[2]
    one = replace(data, samples=tuple(replace(sample, group="p") for sample in data.samples))
    alone = find_threshold(segmenter, one, tta=["flip"])
    assert alone.trials[0].gain > 0
    assert (alone.trials[0].interval, alone.tta_gain) == (None, None)


def test_card_stores_the_gain_until_the_next_tuning_and_its_images_are_not_scored(tmp_path, viewed, dataset):
    from vesalius.jobs.opening import load_predictor
    from vesalius.models.cards import read_card
    from vesalius.models.reference import resolve_model
    from vesalius.models.threshold_store import store_threshold
    from vesalius.scoring.evaluate import evaluate

    segmenter, data = viewed
    tuned = find_threshold(segmenter, data, tta=["flip"])
    bundle = Path(shutil.copytree(resolve_model("tiny").folder, tmp_path / "bundle"))
    with pytest.raises(SettingError, match="test-time augmentation"):
        load_predictor(bundle, tta=True)
    store_threshold(bundle, bundle, tuned.threshold, tuned.origin, tuned.images, tuned.tta_gain)
    assert read_card(bundle).tta == tuned.tta_gain

    predictor = load_predictor(bundle, tta=True, threshold=0.77)
    with raises_code(DataError, "tuning_leak", "12 of 12 images"):
        evaluate(predictor, data, tmp_path / "out", figures=False, num_workers=0)
    other = dataset(tmp_path / "test", ids=["x"], target=np.ones((20, 20), dtype=bool))
    metrics = evaluate(load_predictor(bundle, tta=True), other, tmp_path / "out", figures=False, num_workers=0)
    assert metrics["settings"]["tta"] == ["flip"]
    assert metrics["threshold"] == tuned.gain.threshold
    assert metrics["threshold_origin"]["gain"] == tuned.gain.gain

    again = find_threshold(segmenter, data)
    assert "--tta is disabled" in summarize(again, bundle, had_gain=True)[1]
    store_threshold(bundle, bundle, again.threshold, again.origin, again.images, again.tta_gain)
    with pytest.raises(SettingError, match="test-time augmentation"):
        load_predictor(bundle, tta=True)
