"""What is kept of an evaluation: sums that a continuation takes in again, and a disk that may be full."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vesalius.errors import DataError, OutputError
from vesalius.evaluation.calibration import THRESHOLDS, curves, histogram
from vesalius.scoring.results_log import COUNTS, NO_COUNTS, PLACES, ROWS, STATE, TRIED, ResultsLog
from vesalius.scoring.task import Outcome

STATE_OF_ALL: dict[str, Any] = {"model": "m"}


def outcome(name: str, true: int = 10, guessed: int = 10, shared: int = 5, counts: Any = None) -> Outcome:
    pixels = {"target_pixels": true, "prediction_pixels": guessed, "intersection": shared}
    return Outcome({"id": name, "status": "ok", **pixels}, counts)


def some_counts(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return histogram(random.random((20, 20)), random.random((20, 20)) < 0.3)


def test_tried_thresholds_are_among_those_of_the_curves():
    assert (THRESHOLDS[PLACES] == TRIED).all()


def test_sums_are_those_of_the_rows_before_and_after_an_interruption(tmp_path):
    counts = [some_counts(seed) for seed in range(4)]
    with ResultsLog(tmp_path / "out", STATE_OF_ALL, [1, 2, 3, 4]) as tally:
        for seed in range(3):
            tally.add(outcome(str(seed), counts=counts[seed]))
    with ResultsLog(tmp_path / "out", STATE_OF_ALL, [1, 2, 3, 4]) as tally:
        assert (tally.samples_done, tally.n_with_probabilities) == (3, 3)
        tally.add(outcome("3", counts=counts[3]))
        tally.add(outcome("4"))
        assert (tally.counts == sum(counts)).all() and tally.n_with_probabilities == 4
        mean = np.mean([curves(each).dice for each in counts], axis=0)
        assert tally.mean_curves["dice"] == pytest.approx(mean[PLACES])


def test_sample_without_all_its_prompts_is_not_done(tmp_path):
    with ResultsLog(tmp_path / "out", STATE_OF_ALL, [2, 3, 6]) as tally:
        for name in "abcde":
            tally.add(outcome(name))
    with ResultsLog(tmp_path / "out", STATE_OF_ALL, [2, 3, 6]) as tally:
        assert (tally.samples_done, [row["id"] for row in tally.rows]) == (2, ["a", "b", "c"])
        assert (tally.folder / COUNTS).stat().st_size == 3 * NO_COUNTS.nbytes
        assert (tally.folder / ROWS).read_bytes().count(b"\n") == 3


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / ROWS).write_text("no json\n" * 9),
        lambda folder: (folder / STATE).write_text("{"),
        lambda folder: (folder / COUNTS).unlink(),
    ],
)
def test_folder_that_cannot_be_read_is_begun_anew(tmp_path, harm):
    with ResultsLog(tmp_path / "out", STATE_OF_ALL, [1, 2]) as tally:
        tally.add(outcome("a"))
    harm(tally.folder)
    with ResultsLog(tmp_path / "out", STATE_OF_ALL, [1, 2]) as tally:
        assert tally.rows == []
        tally.add(outcome("a"))
    assert (tally.folder / ROWS).read_bytes().count(b"\n") == 1


def test_two_at_once_are_refused_and_one_after_the_other_are_not(tmp_path):
    with (
        ResultsLog(tmp_path / "out", STATE_OF_ALL, [1]),
        pytest.raises(OutputError, match="another evaluation"),
    ):
        ResultsLog(tmp_path / "out", STATE_OF_ALL, [1])
    with ResultsLog(tmp_path / "out", STATE_OF_ALL, [1]) as tally:
        assert tally.rows == []


def test_full_disk_is_one_sentence_and_costs_only_the_last_row(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ResultsLog(tmp_path / "out", STATE_OF_ALL, [1, 2, 3]) as tally:
        tally.add(outcome("a"))
        tally.add(outcome("b"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * NO_COUNTS.nbytes + 100, limits[1]))
        try:
            with pytest.raises(OutputError, match=r"\.out\.unfinished: cannot be written \(File too large\)"):
                tally.add(outcome("c"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with ResultsLog(tmp_path / "out", STATE_OF_ALL, [1, 2, 3]) as tally:
        assert [row["id"] for row in tally.rows] == ["a", "b"]


def test_finished_folder_takes_the_place_of_the_old_one(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("")
    with ResultsLog(out, STATE_OF_ALL, [1]) as tally:
        tally.add(outcome("a"))
        tally.finish()
    assert [path.name for path in out.iterdir()] == [ROWS] and [path.name for path in tmp_path.iterdir()] == [
        "out"
    ]


def test_killed_between_the_two_moves_nothing_is_lost(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("")
    move = Path.replace

    def die(self: Path, target: Path) -> Path:
        if target == out:
            raise KeyboardInterrupt
        return move(self, target)

    with (
        monkeypatch.context() as patch,
        pytest.raises(KeyboardInterrupt),
        ResultsLog(out, STATE_OF_ALL, [1]) as tally,
    ):
        tally.add(outcome("a"))
        patch.setattr(Path, "replace", die)
        tally.finish()
    with ResultsLog(out, STATE_OF_ALL, [1]) as tally:
        assert [row["id"] for row in tally.rows] == ["a"]
        tally.finish()
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
def test_copies_are_many_or_large_and_most_of_all_that_is_there(tmp_path, pixels, refused):
    with ResultsLog(tmp_path / "out", STATE_OF_ALL, [len(pixels)]) as tally:
        for each in pixels:
            tally.add(outcome("a", *each))
        if not refused:
            return tally.refuse_copies()
        with pytest.raises(DataError, match="ground truth"):
            tally.refuse_copies()
    return None
