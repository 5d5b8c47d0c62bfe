"""What an evaluation knows so far: rows and counts, never pixels; kept on disk, so that it can be continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.errors import DataError, OutputError
from vesalius.evaluation.calibration import BINS, Curves, Histogram, curves
from vesalius.evaluation.overlap import Confusion, ReferringTally
from vesalius.files import prepare_folder, to_json, write_json
from vesalius.scoring.task import Outcome, Row

STATE = "state.json"
ROWS = "samples.jsonl"
COUNTS = "counts.bin"
RECORD = 2 * BINS
"""Numbers of a row in `COUNTS`, int64; -1 in the first where nobody knows probabilities."""
IDENTICAL_MIN = 5
"""So many predictions that are their ground truth to the pixel, and most of all, are no chance."""


class Tally:
    """Rows of an evaluation, one after the other, in a folder that becomes the result when all are there.

    The folder outlives an interruption. Opened again for the same evaluation it continues where it stopped; for
    another one it is begun anew.
    """

    def __init__(self, folder: Path, state: Mapping[str, Any], ends: Sequence[int]) -> None:
        """`ends` tells, for each sample in order, how many rows there are when it is done."""
        self.folder = folder
        self._ends = ends
        self.rows: list[Row] = []
        self.counts = np.zeros((2, BINS), dtype=np.int64)
        self._curves = {name: np.zeros(BINS - 1) for name in ("dice", "iou", "precision", "recall")}
        self._defined = {name: np.zeros(BINS - 1) for name in self._curves}
        self.missing_font: str | None = None
        if not self._continues(state):
            shutil.rmtree(folder, ignore_errors=True)
            prepare_folder(folder / "figures")
            write_json(folder / STATE, state)
        try:
            self._lines = (folder / ROWS).open("a", encoding="utf-8")
            self._numbers = (folder / COUNTS).open("ab")
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error

    def _continues(self, state: Mapping[str, Any]) -> bool:
        """Whether the folder holds the beginning of this very evaluation, which is then taken in."""
        try:
            known = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
            rows = list(_whole_lines(self.folder / ROWS))
            numbers = np.fromfile(self.folder / COUNTS, dtype=np.int64)
        except (OSError, ValueError):
            return False
        written = min(len(rows), len(numbers) // RECORD)
        # a sample of which a prompt is missing is scored again
        done = max((end for end in self._ends if end <= written), default=0)
        if known != json.loads(to_json(state)):
            return False
        numbers = numbers[: done * RECORD]
        for row, record in zip(rows[:done], numbers.reshape(done, 2, BINS), strict=True):
            self._take(row, None if record[0, 0] < 0 else record)
        text = "".join(to_json(row) + "\n" for row in rows[:done])
        (self.folder / ROWS).write_text(text, encoding="utf-8")
        numbers.tofile(self.folder / COUNTS)
        return True

    def add(self, outcome: Outcome) -> None:
        """Keep one more row; OutputError where the disk says no."""
        record = np.full((2, BINS), -1, dtype=np.int64) if outcome.counts is None else outcome.counts
        try:
            self._lines.write(to_json(outcome.row) + "\n")
            self._lines.flush()
            record.tofile(self._numbers)
            self._numbers.flush()
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written ({error.strerror})") from error
        self._take(outcome.row, outcome.counts)
        self.missing_font = self.missing_font or outcome.missing_font

    def _take(self, row: Row, counts: Histogram | None) -> None:
        self.rows.append(row)
        if counts is None or row["status"] == "failed":
            return
        self.counts += counts
        of_row: Curves = curves(counts)
        for name in self._curves:
            values = getattr(of_row, name)
            defined = ~np.isnan(values)
            self._curves[name] += np.where(defined, values, 0)
            self._defined[name] += defined

    def finish(self) -> None:
        """Close the files and remove what only a continuation needs."""
        self._lines.close()
        self._numbers.close()
        for name in (STATE, COUNTS):
            (self.folder / name).unlink()

    def discard(self) -> None:
        """Remove all of it: the evaluation was refused."""
        self._lines.close()
        self._numbers.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def knows_probabilities(self) -> bool:
        return bool(self.counts.sum())

    @property
    def mean_curves(self) -> dict[str, np.ndarray]:
        """Mean over rows of each metric at each of the thresholds 1 / BINS ... ; NaN where no row defines it."""
        with np.errstate(invalid="ignore"):
            return {name: self._curves[name] / self._defined[name] for name in self._curves}

    @property
    def scored(self) -> list[Row]:
        return [row for row in self.rows if row["status"] != "failed"]

    @property
    def empty(self) -> dict[str, int]:
        """How many scored rows have an empty truth, an empty prediction, both, or neither."""
        kinds = [(row["truth_pixels"] == 0, row["guess_pixels"] == 0) for row in self.scored]
        names = {
            (True, True): "both",
            (True, False): "truth",
            (False, True): "prediction",
            (False, False): "none",
        }
        return {name: kinds.count(kind) for kind, name in names.items()}

    @property
    def referring(self) -> dict[str, float | None]:
        """gIoU and cIoU over all scored rows."""
        tally = ReferringTally()
        for row in self.scored:
            both, true, guessed = (row[f"{name}_pixels"] for name in ("shared", "truth", "guess"))
            tally.add(Confusion(tp=both, fp=guessed - both, fn=true - both, tn=0))
        return {"giou": tally.giou, "ciou": tally.ciou}

    def refuse_copies(self) -> None:
        """Raise DataError when most predictions are the ground truth to the pixel: no model does that."""
        present = [row for row in self.scored if row["truth_pixels"]]
        identical = sum(row["truth_pixels"] == row["guess_pixels"] == row["shared_pixels"] for row in present)
        if identical >= IDENTICAL_MIN and 2 * identical > len(present):
            raise DataError(
                f"{identical} of {len(present)} predictions equal the ground truth exactly; none should: "
                "the ground truth was copied, or was made by this model; nothing was written"
            )


def _whole_lines(path: Path) -> Iterator[Row]:
    """The rows of a file; a last line that an interruption cut short does not count."""
    text = path.read_text(encoding="utf-8")
    for line in text[: text.rfind("\n") + 1].splitlines():
        yield json.loads(line)
