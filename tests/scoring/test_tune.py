"""The tuned threshold is the one that trying all of them would find, and so is the gain of several views."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vesalius.data.images import read_image
from vesalius.errors import DataError, SettingError
from vesalius.evaluation.metrics import score
from vesalius.evaluation.statistics import paired_bootstrap
from vesalius.files import to_json
from vesalius.inference.tta import ViewedPrediction
from vesalius.lineage import hash_pixels
from vesalius.scoring.tune import as_json, find_threshold, summarize
from vesalius.types import Item


@pytest.fixture
def case(tmp_path, FakeSegmenter, dataset):
    """Images with several objects, an empty truth and an answer without [SEG], and noisy logits of them."""
    random = np.random.default_rng(5)
    truth = np.zeros((24, 24), dtype=bool)
    truth[4:9, 3:20] = True
    drawn = dataset(tmp_path / "drawn", ids=list("abcde"), truth=truth, groups=["p", "p", "q", "q", "r"])
    absent = dataset(tmp_path / "absent", ids=["f"], truth=np.zeros_like(truth))
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


def test_of_equal_thresholds_that_nearest_to_a_half_is_taken(tmp_path, FakeSegmenter, dataset, square):
    data = dataset(tmp_path / "data")
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


class ViewedSegmenter:
    """A FakeSegmenter whose views each have an answer of their own: `flip a` is what the flip of image a shows."""

    def __init__(self, plain: Any, views: dict[str, dict[str, np.ndarray]]) -> None:
        self.plain, self.shown, self.views = plain, views, ()
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def trying(self, views: Any, prompts: Any) -> Any:
        self.views, self.asked = tuple(views), list(prompts)
        return self

    def predict(self, items: Any) -> Any:
        return [
            ViewedPrediction(
                **vars(prediction),
                maps={"plain": prediction.logits}
                | {view: self.shown[view][prediction.id][None].astype(np.float32) for view in self.views},
            )
            for prediction in self.plain.predict(items)
        ]


@pytest.fixture
def viewed(tmp_path, FakeSegmenter, dataset):
    """Noise over the truth: independent noise in `flip`, which a mean lowers, and worse noise in `smaller`."""
    random = np.random.default_rng(3)
    truth = np.zeros((24, 24), dtype=bool)
    truth[4:9, 3:20] = True
    ids = [f"{k:02d}" for k in range(12)]
    data = dataset(
        tmp_path / "val", ids=ids, truth=truth, groups=[name[0] + str(int(name) % 8) for name in ids]
    )

    def draw(noise: float) -> dict[str, np.ndarray]:
        return {name: random.normal(-2, noise, (24, 24)) + 3 * truth for name in ids}

    views = {"flip": draw(2), "smaller": draw(30)}
    return ViewedSegmenter(FakeSegmenter(draw(2), batch=5), views), data


def test_gain_of_each_choice_of_views_is_that_of_trying_it(viewed):
    segmenter, data = viewed
    tuned = find_threshold(segmenter, data, views=["flip", "smaller"])
    assert segmenter.asked == ["vessel"] * 12
    assert sum(map(len, segmenter.calls)) == 12  # one pass
    assert [trial.views for trial in tuned.trials] == [("flip",), ("smaller",), ("flip", "smaller")]
    assert [trial.is_gain for trial in tuned.trials] == [True, False, False]

    truth = np.asarray(Image.open(data.samples[0].masks[0][0].path)) > 0
    groups = [sample.group for sample in data.samples]

    def scores(views: tuple[str, ...], threshold: float) -> np.ndarray:
        found = []
        for sample in data.samples:
            maps = [segmenter.answers[sample.id], *(segmenter.shown[view][sample.id] for view in views)]
            mean = np.mean([1 / (1 + np.exp(-each)) for each in maps], axis=0)
            guess = mean > threshold
            found.append(2 * (guess & truth).sum() / (guess.sum() + truth.sum()))
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
    card = tuned.view_gain
    assert (card.views, card.threshold, card.gain) == (("flip",), tuned.gain.threshold, tuned.gain.gain)
    assert (card.data, card.n_samples, card.n_groups) == ("squares", 12, 10)
    lines = summarize(tuned, Path("bundle"), had_gain=False)
    assert lines[1].endswith(": a gain")
    assert lines[2].endswith(": no gain")
    assert "--tta see flip too" in lines[4]
    assert to_json(as_json(tuned))


def test_plain_threshold_is_the_same_whatever_views_are_tried(viewed):
    segmenter, data = viewed
    plain, tried = find_threshold(segmenter, data), find_threshold(segmenter, data, views=["flip"])
    assert replace(tried, trials=()) == plain
    assert (plain.gain, plain.view_gain) == (None, None)


def test_views_that_do_not_help_or_of_one_group_alone_leave_no_gain(viewed):
    segmenter, data = viewed
    worse = find_threshold(segmenter, data, views=["smaller"])
    assert worse.trials[0].gain < 0
    assert worse.view_gain is None
    assert "--tta stays refused" in summarize(worse, Path("b"), had_gain=True)[2]
    one = replace(data, samples=tuple(replace(sample, group="p") for sample in data.samples))
    alone = find_threshold(segmenter, one, views=["flip"])
    assert alone.trials[0].gain > 0
    assert (alone.trials[0].interval, alone.view_gain) == (None, None)


def test_card_holds_the_gain_until_the_next_tuning_and_its_images_are_never_scored(tmp_path, viewed, dataset):
    from vesalius.inference.predictor import load_predictor
    from vesalius.models.cards import read_card
    from vesalius.models.reference import resolve_model
    from vesalius.models.threshold import store_threshold
    from vesalius.scoring.evaluate import evaluate

    segmenter, data = viewed
    tuned = find_threshold(segmenter, data, views=["flip"])
    bundle = Path(shutil.copytree(resolve_model("tiny").folder, tmp_path / "bundle"))
    with pytest.raises(SettingError, match="no gain of test-time augmentation was measured"):
        load_predictor(bundle, tta=True)
    store_threshold(bundle, bundle, tuned.threshold, tuned.origin, tuned.images, tuned.view_gain)
    assert read_card(bundle).tta == tuned.view_gain

    predictor = load_predictor(bundle, tta=True, threshold=0.77)
    with pytest.raises(DataError, match="tuned on 12 of 12 images"):
        evaluate(predictor, data, tmp_path / "out", figures=False, workers=0)
    other = dataset(tmp_path / "test", ids=["x"], truth=np.ones((20, 20), dtype=bool))
    metrics = evaluate(load_predictor(bundle, tta=True), other, tmp_path / "out", figures=False, workers=0)
    assert metrics["settings"]["tta"] == ["flip"]
    assert metrics["threshold"] == tuned.gain.threshold
    assert metrics["threshold_origin"]["gain"] == tuned.gain.gain

    again = find_threshold(segmenter, data)
    assert "no longer known" in summarize(again, bundle, had_gain=True)[1]
    store_threshold(bundle, bundle, again.threshold, again.origin, again.images, again.view_gain)
    with pytest.raises(SettingError, match="no gain of test-time augmentation was measured"):
        load_predictor(bundle, tta=True)
