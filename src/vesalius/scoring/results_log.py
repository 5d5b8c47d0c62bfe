"""Results log: rows and histograms of an unfinished evaluation on disk, so that it can continue."""

from __future__ import annotations

import json
import logging
import os
import shutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import numpy as np

from vesalius.errors import DataError, OutputError
from vesalius.evaluation.calibration import BINS, THRESHOLDS, Histogram, curves
from vesalius.evaluation.empty import CASES
from vesalius.evaluation.overlap import Confusion, ReferringMetrics
from vesalius.evaluation.same_masks import SAME_MASK, PackedMask, SameMasks, find_same
from vesalius.files import hold_folder, prepare_folder, to_json, write_json
from vesalius.journal import Journal, read_journal
from vesalius.scoring.results import ROWS, ResultRow
from vesalius.scoring.scored_prediction import ScoredPrediction
from vesalius.window import ShownRanges

log = logging.getLogger(__name__)

STATE = "state.json"
HISTOGRAMS = "histograms.bin"
NO_HISTOGRAM = np.full((2, BINS), -1, dtype=np.int32)
"""Placeholder in `HISTOGRAMS` for a row without probabilities; each row has one such int32 table."""
CURVE_THRESHOLDS = np.arange(1, 100) / 100
"""Thresholds of the mean curves and of tuning; finer steps would matter less than one more sample."""
CURVE_INDICES = THRESHOLDS.searchsorted(CURVE_THRESHOLDS)
"""Indices of `CURVE_THRESHOLDS` in `calibration.THRESHOLDS`."""
CURVES = ("dice", "iou", "precision", "recall")
IDENTICAL_MIN, IDENTICAL_PIXELS = 5, 1000
"""Minimum number of predictions identical to the ground truth, or of pixels in them, to report copied ground truth."""


class ResultsLog:
    """Rows of an evaluation, written to a temporary folder beside `out` that replaces `out` when complete.

    The temporary folder survives an interruption: the same evaluation continues in it, any other one empties it.
    A context manager that closes its files and releases the lock on the folder.
    """

    def __init__(self, out: Path, state: Mapping[str, Any], ends: Sequence[int]) -> None:
        """Open the log of the evaluation described by `state`; `ends[i]` is the number of rows after sample i.

        OutputError if the folder cannot be written to, or if another process writes the same evaluation.
        """
        self.out, self.folder = out, prepare_folder(out.with_name(f".{out.name}.unfinished"))
        self._ends = ends
        self.rows: list[ResultRow] = []
        self.histogram = np.zeros((2, BINS), dtype=np.int64)
        self.n_with_probabilities = 0
        self._masks: dict[str, PackedMask] = {}
        self._curves = {name: np.zeros(len(CURVE_THRESHOLDS)) for name in CURVES}
        self._defined = {name: np.zeros(len(CURVE_THRESHOLDS)) for name in CURVES}
        with ExitStack() as files:
            hold_folder(self.folder, "evaluation", files)
            try:
                keep = self._continue(json.loads(to_json(state)))
                if keep is None:
                    self._start(state)
                self._journal = files.enter_context(Journal(self.folder / ROWS, keep or 0))
                self._histogram_file = files.enter_context((self.folder / HISTOGRAMS).open("ab"))
            except OSError as error:
                raise self._not_writable(error) from error
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a full disk was already reported by the write that failed
            self._files.close()

    def _not_writable(self, error: OSError) -> OutputError:
        return OutputError.at(self.folder, f"cannot be written ({error.strerror})", code="write_failed")

    def _start(self, state: Mapping[str, Any]) -> None:
        old = list(self.folder.iterdir())
        if old:
            log.warning("%s: holds a different or an unreadable evaluation and is emptied", self.folder)
        for path in old:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(self.folder / STATE, state)

    def _continue(self, state: Any) -> int | None:
        """Read the rows of this evaluation; returns the size of its journal to keep, None if it cannot be continued."""
        try:
            if json.loads((self.folder / STATE).read_text(encoding="utf-8")) != state:
                return None
            entries = list(read_journal(self.folder / ROWS))
            n_histograms = (self.folder / HISTOGRAMS).stat().st_size // NO_HISTOGRAM.nbytes
            # a sample that lacks a prompt is scored again
            samples = bisect_right(self._ends, min(len(entries), n_histograms))
            done = self._ends[samples - 1] if samples else 0
        except (OSError, ValueError):
            return None
        with (self.folder / HISTOGRAMS).open("rb") as file:
            for row, _ in entries[:done]:
                table = np.frombuffer(file.read(NO_HISTOGRAM.nbytes), dtype=np.int32).reshape(2, BINS)
                self._count(row, None if table[0, 0] < 0 else table)
        os.truncate(self.folder / HISTOGRAMS, done * NO_HISTOGRAM.nbytes)
        return entries[done - 1].end if done else 0

    @property
    def samples_done(self) -> int:
        """Number of samples with rows for all their prompts."""
        return bisect_right(self._ends, len(self.rows))

    def add(self, scored: ScoredPrediction) -> None:
        """Append one row and its histogram; OutputError if they cannot be written."""
        self._mark_same(scored)
        table = NO_HISTOGRAM if scored.histogram is None else scored.histogram.astype(np.int32)
        self._journal.append(scored.row)
        try:
            self._histogram_file.write(table.tobytes())
            self._histogram_file.flush()
        except OSError as error:
            raise self._not_writable(error) from error
        self._count(scored.row, scored.histogram)

    def _mark_same(self, scored: ScoredPrediction) -> None:
        """List in the row the earlier prompts of its sample with the same mask; samples arrive one after the other."""
        if not self.rows or self.rows[-1]["id"] != scored.row["id"]:
            self._masks.clear()
        if scored.packed is not None:
            if found := find_same(scored.packed, self._masks):
                scored.row[SAME_MASK] = found
            self._masks[scored.row["prompt"]] = scored.packed

    def _count(self, row: ResultRow, histogram: Histogram | None) -> None:
        self.rows.append(row)
        if histogram is None:
            return
        self.histogram += histogram
        self.n_with_probabilities += 1
        curves_of_row = curves(histogram)
        for name in CURVES:
            values = getattr(curves_of_row, name)[CURVE_INDICES]
            defined = ~np.isnan(values)
            self._curves[name] += np.where(defined, values, 0)
            self._defined[name] += defined

    def finish(self) -> None:
        """Move the complete folder to `out`; OutputError if `out` cannot be replaced."""
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
            raise OutputError.at(
                self.out,
                f"cannot be replaced ({error.strerror}); the new evaluation is complete in {self.folder}",
                code="write_failed",
            ) from error
        # last: an evaluation killed before this point continues and only repeats the move
        for name in (STATE, HISTOGRAMS):
            (self.out / name).unlink()
        shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Remove the folder of an evaluation that was refused."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def mean_curves(self) -> dict[str, np.ndarray]:
        """Mean over rows of each metric at each of `CURVE_THRESHOLDS`; NaN if no row defines it."""
        with np.errstate(invalid="ignore"):
            return {name: self._curves[name] / self._defined[name] for name in CURVES}

    @property
    def scored(self) -> list[ResultRow]:
        """Rows that did not fail."""
        return [row for row in self.rows if row["status"] != "failed"]

    @property
    def cases(self) -> dict[str, int]:
        """Number of scored rows in each case of `EMPTY`, and with neither mask empty."""
        found = [confusion_of(row).case for row in self.scored]
        return {case: found.count(case) for case in (*CASES, "both")}

    @property
    def referring(self) -> dict[str, float | None]:
        """gIoU and cIoU over all scored rows."""
        total = ReferringMetrics()
        for row in self.scored:
            total.add(confusion_of(row))
        return {"giou": total.giou, "ciou": total.ciou}

    @property
    def same_masks(self) -> SameMasks:
        """Pairs of prompts with the same mask."""
        found = SameMasks()
        for _, rows in groupby(self.rows, key=itemgetter("id")):
            found.add(rows)
        return found

    @property
    def shown_ranges(self) -> ShownRanges:
        """The ranges of stored values that the deep images show, each image once."""
        shown = ShownRanges()
        for window in {row["id"]: row["window"] for row in self.rows if row.get("window")}.values():
            shown.add(window)
        return shown

    @property
    def unknown_phrases(self) -> dict[str, int]:
        """Prompt that the model does not know -> number of rows."""
        return dict(Counter(row["prompt"] for row in self.rows if row.get("unknown_phrase")))

    def refuse_copies(self) -> None:
        """Raise DataError if most predictions equal the ground truth to the pixel, which no model achieves."""
        present = [row for row in self.scored if row["target_pixels"]]
        identical = [
            row["target_pixels"]
            for row in present
            if row["target_pixels"] == row["prediction_pixels"] == row["intersection"]
        ]
        no_chance = len(identical) >= IDENTICAL_MIN or sum(identical) >= IDENTICAL_PIXELS
        if no_chance and 2 * len(identical) > len(present):
            raise DataError(
                f"{len(identical)} of {len(present)} predictions equal the ground truth exactly: they are copies "
                "of it, or the ground truth was made by this model; evaluate other predictions or other masks",
                code="copied_ground_truth",
                path=self.out,
            )


def confusion_of(row: ResultRow) -> Confusion:
    """Confusion counts of a scored row; true negatives are 0, because the row does not store them."""
    both = row["intersection"]
    return Confusion(tp=both, fp=row["prediction_pixels"] - both, fn=row["target_pixels"] - both, tn=0)
