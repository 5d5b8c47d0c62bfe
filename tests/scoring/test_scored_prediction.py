"""One answer against its truth: numbers, picture, and a reason where it cannot be scored."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vesalius.evaluation.calibration import BINS
from vesalius.evaluation.metrics import METRICS, score
from vesalius.scoring.task import Task, perform
from vesalius.types import Item
from vesalius.visualization import TP_COLOR

ABOUT = {"id": "a", "group": "p", "prompt": "vessel"}


@pytest.fixture
def ask(FakeSegmenter):
    """A function that gives the prediction for an answer of the fake segmenter."""
    return lambda answer: FakeSegmenter({"a": answer}).answer(
        Item("a", np.full((1, 16, 16, 3), 90, np.uint8), ("vessel",)), "vessel"
    )


IMAGE = np.full((16, 16, 3), 90, np.uint8)


def test_row_holds_every_metric_and_the_counts_of_pixels(ask, square):
    outcome = perform(Task(ABOUT, ask(square(2)), IMAGE, square()))
    scores = score(square(), square(2))
    assert {name: outcome.row[name] for name in METRICS} == scores
    assert (outcome.row["target_pixels"], outcome.row["prediction_pixels"], outcome.row["intersection"]) == (
        4,
        4,
        2,
    )
    assert outcome.counts.shape == (2, BINS) and outcome.counts.sum() == 256
    assert outcome.row["figure"] is None


def test_figure_shows_nothing_outside_of_the_region(tmp_path, ask, square):
    within = np.zeros((16, 16), dtype=bool)
    within[8:] = True
    logits = np.where(square(), 9.0, -9.0)  # a hit, but outside
    for name, region in (("all", None), ("below", within)):
        task = Task(ABOUT, ask(logits), IMAGE, square(), region, folder=tmp_path, figure=f"{name}.png")
        assert perform(task).row["figure"] == f"{name}.png"
    hits = {
        name: int((np.asarray(Image.open(tmp_path / f"{name}.png"))[:-60] == TP_COLOR).all(axis=2).sum())
        for name in ("all", "below")
    }
    assert hits["all"] > 1000 and hits["below"] == 0


@pytest.mark.parametrize(
    ("truth", "within", "words"),
    [
        (np.zeros((9, 16), bool), None, "cannot be scored: truth and guess must have one size"),
        (np.zeros((16, 16), bool), np.zeros((16, 16), bool), "the region within which to count has no pixel"),
        (None, None, "no answer, and no reason given"),
    ],
)
def test_what_cannot_be_scored_is_a_failed_row_with_the_reason(ask, square, truth, within, words):
    outcome = perform(Task(ABOUT, ask(square()), IMAGE, truth, within))
    assert outcome.row["status"] == "failed" and words in outcome.row["error"] and outcome.counts is None
    assert {outcome.row[name] for name in (*METRICS, "target_pixels", "figure")} == {None}


def test_probabilities_that_are_no_numbers_fail(ask):
    outcome = perform(Task(ABOUT, ask(np.full((16, 16), np.nan)), IMAGE, np.zeros((16, 16), bool)))
    assert outcome.row["status"] == "failed" and "probabilities must lie in [0, 1]" in outcome.row["error"]
