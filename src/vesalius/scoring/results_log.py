"""What an evaluation knows so far: rows and counts, never pixels; kept on disk, so that it can be continued."""

from __future__ import annotations

import json
import logging
import os
import shutil
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from vesalius.errors import DataError, OutputError
from vesalius.evaluation.calibration import BINS, THRESHOLDS, Histogram, curves
from vesalius.evaluation.empty import CASES
from vesalius.evaluation.overlap import Confusion, ReferringMetrics
from vesalius.files import hold_folder, prepare_folder, to_json, write_json
from vesalius.scoring.task import Outcome, Row

log = logging.getLogger(__name__)

STATE = "state.json"
ROWS = "samples.jsonl"
COUNTS = "counts.bin"
NO_COUNTS = np.full((2, BINS), -1, dtype=np.int32)
"""Stands in `COUNTS` for a row of which nobody knows probabilities; each row has one such table, as int32."""
TRIED = np.arange(1, 100) / 100
"""Thresholds at which means over rows are known: finer ones differ by less than another sample would."""
PLACES = THRESHOLDS.searchsorted(TRIED)
"""Where they stand among all."""
CURVES = ("dice", "iou", "precision", "recall")
IDENTICAL_MIN, IDENTICAL_PIXELS = 5, 1000
"""So many predictions that are their ground truth to the pixel, or with so many pixels, and most of all, are no
chance."""


class ResultsLog:
    """Rows of an evaluation, one after the other, in a folder that takes the place of `out` when all are there.

    The folder outlives an interruption. Opened again for the same evaluation it continues where it stopped; for
    another one it is begun anew. A context manager, which closes its files and lets go of the folder.
    """

    def __init__(self, out: Path, state: Mapping[str, Any], ends: Sequence[int]) -> None:
        """`ends` tells, for each sample in order, how many rows there are when it is done.

        OutputError where the folder cannot be written to, or another process is at the same.
        """
        self.out, self.folder = out, prepare_folder(out.with_name(f".{out.name}.unfinished"))
        self._ends = ends
        self.rows: list[Row] = []
        self.counts = np.zeros((2, BINS), dtype=np.int64)
        self.n_with_probabilities = 0
        self._curves = {name: np.zeros(len(TRIED)) for name in CURVES}
        self._defined = {name: np.zeros(len(TRIED)) for name in CURVES}
        with ExitStack() as files:
            hold_folder(self.folder, "evaluation", files)
            try:
                if not self._continues(json.loads(to_json(state))):
                    self._begin(state)
                self._lines = files.enter_context((self.folder / ROWS).open("ab"))
                self._numbers = files.enter_context((self.folder / COUNTS).open("ab"))
            except OSError as error:
                raise OutputError(f"{self.folder}: cannot be written ({error.strerror})") from error
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what a full disk did not take was told of when it was written
            self._files.close()

    def _begin(self, state: Mapping[str, Any]) -> None:
        old = list(self.folder.iterdir())
        if old:
            log.warning("%s: was of another evaluation, or cannot be read, and is begun anew", self.folder)
        for path in old:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(self.folder / STATE, state)

    def _continues(self, state: Any) -> bool:
        """Whether the folder holds the beginning of this very evaluation, which is then taken in."""
        try:
            if json.loads((self.folder / STATE).read_text(encoding="utf-8")) != state:
                return False
            written = (self.folder / ROWS).read_bytes()
            lines = written.split(b"\n")[:-1]  # a last line that was cut short does not count
            counted = (self.folder / COUNTS).stat().st_size // NO_COUNTS.nbytes
            # a sample of which a prompt is missing is scored again
            whole = bisect_right(self._ends, min(len(lines), counted))
            done = self._ends[whole - 1] if whole else 0
            rows = [json.loads(line) for line in lines[:done]]
        except (OSError, ValueError):
            return False
        with (self.folder / COUNTS).open("rb") as numbers:
            for row in rows:
                record = np.frombuffer(numbers.read(NO_COUNTS.nbytes), dtype=np.int32).reshape(2, BINS)
                self._take(row, None if record[0, 0] < 0 else record)
        os.truncate(self.folder / ROWS, sum(len(line) + 1 for line in lines[:done]))
        os.truncate(self.folder / COUNTS, done * NO_COUNTS.nbytes)
        return True

    @property
    def samples_done(self) -> int:
        """How many samples have all their rows."""
        return bisect_right(self._ends, len(self.rows))

    def add(self, outcome: Outcome) -> None:
        """Keep one more row; OutputError where the disk says no."""
        record = NO_COUNTS if outcome.counts is None else outcome.counts.astype(np.int32)
        try:
            self._lines.write(to_json(outcome.row).encode() + b"\n")
            self._lines.flush()
            self._numbers.write(record.tobytes())
            self._numbers.flush()
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written ({error.strerror})") from error
        self._take(outcome.row, outcome.counts)

    def _take(self, row: Row, counts: Histogram | None) -> None:
        self.rows.append(row)
        if counts is None:
            return
        self.counts += counts
        self.n_with_probabilities += 1
        of_row = curves(counts)
        for name in CURVES:
            values = getattr(of_row, name)[PLACES]
            defined = ~np.isnan(values)
            self._curves[name] += np.where(defined, values, 0)
            self._defined[name] += defined

    def finish(self) -> None:
        """Put the folder, which is complete, in the place of `out`; OutputError where that cannot be done."""
        old = self.out.with_name(f".{self.out.name}.old")
        try:
            shutil.rmtree(old, ignore_errors=True)
            if self.out.exists():
                self.out.replace(old)
            try:
                self.folder.replace(self.out)
            except OSError:
                if old.exists():
                    old.replace(self.out)
                raise
        except OSError as error:
            raise OutputError(
                f"{self.out}: cannot be replaced ({error.strerror}); the new evaluation is complete and lies in "
                f"{self.folder}"
            ) from error
        # only now: killed before, it is continued and has nothing left to do but this
        for name in (STATE, COUNTS):
            (self.out / name).unlink()
        shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Remove all of it: the evaluation was refused."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def mean_curves(self) -> dict[str, np.ndarray]:
        """Mean over rows of each metric at each of the thresholds `TRIED`; NaN where no row defines it."""
        with np.errstate(invalid="ignore"):
            return {name: self._curves[name] / self._defined[name] for name in CURVES}

    @property
    def scored(self) -> list[Row]:
        return [row for row in self.rows if row["status"] != "failed"]

    @property
    def cases(self) -> dict[str, int]:
        """How many scored rows are of which case of the table of empty masks."""
        found = [confusion_of(row).case for row in self.scored]
        return {case: found.count(case) for case in (*CASES, "both")}

    @property
    def referring(self) -> dict[str, float | None]:
        """gIoU and cIoU over all scored rows."""
        tally = ReferringMetrics()
        for row in self.scored:
            tally.add(confusion_of(row))
        return {"giou": tally.giou, "ciou": tally.ciou}

    def refuse_copies(self) -> None:
        """Raise DataError when most predictions are the ground truth to the pixel: no model does that."""
        present = [row for row in self.scored if row["target_pixels"]]
        identical = [
            row["target_pixels"]
            for row in present
            if row["target_pixels"] == row["prediction_pixels"] == row["intersection"]
        ]
        no_chance = len(identical) >= IDENTICAL_MIN or sum(identical) >= IDENTICAL_PIXELS
        if no_chance and 2 * len(identical) > len(present):
            raise DataError(
                f"{len(identical)} of {len(present)} predictions equal the ground truth exactly; none should: "
                "the ground truth was copied, or was made by this model; nothing was written"
            )


def confusion_of(row: Row) -> Confusion:
    """The pixels of a scored row, but those in neither mask."""
    both = row["intersection"]
    return Confusion(tp=both, fp=row["prediction_pixels"] - both, fn=row["target_pixels"] - both, tn=0)
