"""Results log: sums survive an interruption, and a full disk costs one row at most."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.codes import raises_code

from vesalius.errors import DataError, OutputError
from vesalius.evaluation.calibration import THRESHOLDS, curves, histogram
from vesalius.scoring.results import ROWS
from vesalius.scoring.results_log import CURVE_INDICES, CURVE_THRESHOLDS, HISTOGRAMS, NO_HISTOGRAM, STATE, ResultsLog
from vesalius.scoring.scored_prediction import PIXEL_COUNTS, ScoredPrediction

STATE_OF_ALL: dict[str, Any] = {"model": "m"}


def scored(name: str, pixels: tuple[int, int, int] = (10, 10, 5), histogram: Any = None) -> ScoredPrediction:
    counts = dict(zip(PIXEL_COUNTS, pixels, strict=True))
    return ScoredPrediction({"id": name, "status": "ok", **counts}, histogram)


def open_log(folder: Path, *ends: int) -> ResultsLog:
    """A log of samples whose rows end at `ends`."""
    return ResultsLog(folder / "out", STATE_OF_ALL, ends)


def random_histogram(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return histogram(random.random((20, 20)), random.random((20, 20)) < 0.3)


def test_thresholds_of_mean_curves_are_among_those_of_the_histograms():
    assert (THRESHOLDS[CURVE_INDICES] == CURVE_THRESHOLDS).all()


def test_sums_are_those_of_the_rows_before_and_after_an_interruption(tmp_path):
    counts = [random_histogram(seed) for seed in range(4)]
    with open_log(tmp_path, 1, 2, 3, 4) as results:
        for seed in range(3):
            results.add(scored(str(seed), histogram=counts[seed]))
    with open_log(tmp_path, 1, 2, 3, 4) as results:
        assert (results.samples_done, results.n_with_probabilities) == (3, 3)
        results.add(scored("3", histogram=counts[3]))
        results.add(scored("4"))
        assert (results.histogram == sum(counts)).all() and results.n_with_probabilities == 4
        mean = np.mean([curves(each).dice for each in counts], axis=0)
        assert results.mean_curves["dice"] == pytest.approx(mean[CURVE_INDICES])


def test_sample_without_all_its_prompts_is_not_done(tmp_path):
    with open_log(tmp_path, 2, 3, 6) as results:
        for name in "abcde":
            results.add(scored(name))
    with open_log(tmp_path, 2, 3, 6) as results:
        assert (results.samples_done, [row["id"] for row in results.rows]) == (2, ["a", "b", "c"])
        assert (results.folder / HISTOGRAMS).stat().st_size == 3 * NO_HISTOGRAM.nbytes
        assert (results.folder / ROWS).read_bytes().count(b"\n") == 3


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / ROWS).write_text("no json\n" * 9),
        lambda folder: (folder / STATE).write_text("{"),
        lambda folder: (folder / HISTOGRAMS).unlink(),
    ],
)
def test_unreadable_folder_is_started_anew(tmp_path, harm):
    with open_log(tmp_path, 1, 2) as results:
        results.add(scored("a"))
    harm(results.folder)
    with open_log(tmp_path, 1, 2) as results:
        assert results.rows == []
        results.add(scored("a"))
    assert (results.folder / ROWS).read_bytes().count(b"\n") == 1


def test_two_at_once_are_refused_and_one_after_the_other_are_not(tmp_path):
    with open_log(tmp_path, 1), raises_code(OutputError, "folder_in_use"):
        open_log(tmp_path, 1)
    with open_log(tmp_path, 1) as results:
        assert results.rows == []


def test_full_disk_costs_only_the_last_row(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_log(tmp_path, 1, 2, 3) as results:
        results.add(scored("a"))
        results.add(scored("b"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * NO_HISTOGRAM.nbytes + 100, limits[1]))
        try:
            with raises_code(OutputError, "write_failed", ".out.unfinished", "File too large"):
                results.add(scored("c"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with open_log(tmp_path, 1, 2, 3) as results:
        assert [row["id"] for row in results.rows] == ["a", "b"]


def test_finished_folder_replaces_the_old_one(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("")
    with open_log(tmp_path, 1) as results:
        results.add(scored("a"))
        results.finish()
    assert [path.name for path in out.iterdir()] == [ROWS] and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_lost_when_killed_between_the_two_moves(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("")
    move = Path.replace

    def die(self: Path, target: Path) -> Path:
        if target == out:
            raise KeyboardInterrupt
        return move(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), open_log(tmp_path, 1) as results:
        results.add(scored("a"))
        patch.setattr(Path, "replace", die)
        results.finish()
    with open_log(tmp_path, 1) as results:
        assert [row["id"] for row in results.rows] == ["a"]
        results.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("pixels", "refused"),
    [
        ([(4, 4, 4)] * 5, True),
        ([(4, 4, 4)] * 4, False),
        ([(600, 600, 600)] * 2, True),
        ([(600, 600, 600)] * 2 + [(9, 9, 8)] * 2, False),
        ([(0, 0, 0)] * 9, False),
        ([(600, 600, 600)] * 2 + [(0, 0, 0)] * 9, True),
    ],
)
def test_copied_ground_truth_is_many_or_large_and_the_majority(tmp_path, pixels, refused):
    with open_log(tmp_path, len(pixels)) as results:
        for each in pixels:
            results.add(scored("a", each))
        if not refused:
            return results.refuse_copies()
        with raises_code(DataError, "copied_ground_truth"):
            results.refuse_copies()
    return None
