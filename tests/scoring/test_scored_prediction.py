"""One prediction scored against its ground truth: numbers, figure, and the reason if it cannot be scored."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vesalius.evaluation.calibration import BINS
from vesalius.evaluation.metrics import METRICS, score
from vesalius.scoring.scored_prediction import PIXEL_COUNTS, ScoringInput, score_prediction
from vesalius.types import Item
from vesalius.visualization import TP_COLOR

IDENTITY = {"id": "a", "group": "p", "prompt": "vessel"}
IMAGE = np.full((16, 16, 3), 90, np.uint8)
NOTHING = np.zeros((16, 16), bool)


@pytest.fixture
def predict(FakeSegmenter):
    """A function from an answer of the fake segmenter to its prediction."""
    return lambda answer: FakeSegmenter({"a": answer}).answer(Item("a", IMAGE[None], ("vessel",)), "vessel")


def test_row_holds_every_metric_and_the_pixel_counts(predict, square):
    scored = score_prediction(ScoringInput(IDENTITY, predict(square(2)), IMAGE, square()))
    assert {name: scored.row[name] for name in METRICS} == score(square(), square(2))
    assert [scored.row[name] for name in PIXEL_COUNTS] == [4, 4, 2]
    assert scored.histogram.shape == (2, BINS) and scored.histogram.sum() == 256
    assert scored.row["figure"] is None


def test_figure_shows_nothing_outside_of_the_region(tmp_path, predict, square):
    below = NOTHING.copy()
    below[8:] = True
    hits = {}
    for name, roi in (("all", None), ("below", below)):
        given = ScoringInput(IDENTITY, predict(square()), IMAGE, square(), roi, folder=tmp_path, figure=f"{name}.png")
        assert score_prediction(given).row["figure"] == f"{name}.png"
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png"))[:-60]
        hits[name] = int((pixels == TP_COLOR).all(axis=2).sum())
    assert hits["all"] > 1000 and hits["below"] == 0


@pytest.mark.parametrize(
    ("answer", "target", "roi", "reason"),
    [
        (np.ones((16, 16), bool), np.zeros((9, 16), bool), None, "(9, 16) and (16, 16)"),
        (np.ones((16, 16), bool), NOTHING, NOTHING, "`within` has no pixel"),
        (np.ones((16, 16), bool), None, None, "without a reason"),
        (np.full((16, 16), np.nan), NOTHING, None, "[0, 1]"),
    ],
    ids=["another size", "empty region", "no ground truth", "probabilities are NaN"],
)
def test_prediction_that_cannot_be_scored_is_a_failed_row_with_the_reason(predict, answer, target, roi, reason):
    scored = score_prediction(ScoringInput(IDENTITY, predict(answer), IMAGE, target, roi))
    assert scored.row["status"] == "failed" and scored.histogram is None
    assert reason in scored.row["error"]
    assert {scored.row[name] for name in (*METRICS, *PIXEL_COUNTS, "figure")} == {None}
