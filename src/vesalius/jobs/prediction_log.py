"""The prediction log of an unfinished prediction folder, from which an interrupted job continues.

The lines of `predictions.jsonl` are appended to `.predictions.unfinished`, image by image. An image is done when all
its lines, and all files named in them, exist. `.predictions.request.json` holds the settings of the job.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from vesalius.errors import OutputError, SettingError
from vesalius.evaluation.same_masks import SameMasks
from vesalius.files import SYSTEM_FILES, check_replaceable, hold_folder, prepare_folder, to_json, write_csv, write_json
from vesalius.jobs.training_hashes import FILE as HASHES
from vesalius.journal import Journal, read_journal
from vesalius.types import Sample
from vesalius.window import ShownRanges

log = logging.getLogger(__name__)

LINES = ".predictions.unfinished"
REQUEST = ".predictions.request.json"
RESULT = "predictions.jsonl"
RUN = "run.json"
FILES = {
    "mask": "masks",
    "probabilities": "probs",
    "overlay": "overlays",
    "combined_overlay": "combined_overlays",
    "labelmap": "labelmaps",
    "dicom": "dicom",
}
"""Key of a file path in a line -> folder of these files."""
VIDEOS, VOLUMES = "videos", "volumes"
"""Folders of overlay videos and label volumes; each belongs to a whole clip or volume, so no line names it."""
LABELS, TABLE = "labels.json", "areas.csv"
"""Prompt -> value in label maps and volumes; geometry of all masks. Both are written when the job ends."""
MEASURED = (
    *("area_px", "area_mm2", "length_px", "length_mm"),
    *("mean_diameter_px", "mean_diameter_mm", "max_diameter_px", "max_diameter_mm"),
)
"""Columns of `areas.csv` with the fields of `evaluation.geometry.Geometry`."""
NAMES = frozenset({LINES, REQUEST, RESULT, RUN, *FILES.values(), VIDEOS, VOLUMES, LABELS, TABLE, HASHES})
"""Everything that a prediction folder may contain; a folder with other content is never replaced."""
PARTIAL = (".*.partial", ".*.probe")
"""Temporary names of `files.replacing` and `files.prepare_folder`."""

Line = dict[str, Any]
"""A line of `predictions.jsonl`: the prediction for one prompt on one image."""


@dataclass
class Counts:
    """Totals over the lines of a prediction folder."""

    coverage: Counter[str] = field(default_factory=lambda: Counter(ok=0, no_seg=0, failed=0))
    """Status -> number of predictions."""
    answers: Counter[str] = field(default_factory=Counter)
    """Origin of the answer text (`Prediction.answered`) -> number of predictions."""
    unknown_phrases: Counter[str] = field(default_factory=Counter)
    """Prompt that the model does not know -> number of predictions."""
    same_masks: SameMasks = field(default_factory=SameMasks)
    """Pairs of prompts with the same mask."""
    failures: list[str] = field(default_factory=list)
    """Image path and error of each failed prediction."""
    segmented: int = 0
    """Number of predictions with at least one pixel."""
    refusal: str = ""
    """Text of the first answer without [SEG]."""
    windows: ShownRanges = field(default_factory=ShownRanges)
    """Ranges of stored values that the images show."""
    spacings: Counter[str] = field(default_factory=Counter)
    """Source of the pixel spacing in the table -> number of predictions; "" if none is stated."""

    def add(self, lines: Sequence[Mapping[str, Any]], image: Path) -> None:
        """Count the lines of one image."""
        self.same_masks.add(lines)
        if lines and lines[0].get("window"):
            self.windows.add(lines[0]["window"])
        for line in lines:
            self.coverage[line["status"]] += 1
            if line.get("unknown_phrase"):
                self.unknown_phrases[line["prompt"]] += 1
            if line["status"] == "failed":
                error = line["error"]
                path = " ".join(str(image).encode(errors="backslashreplace").decode().split())
                self.failures.append(error if error.startswith(path) else f"{path}: {error}")
                continue
            self.segmented += line["area_px"] > 0
            if line["answered"]:
                self.answers[line["answered"]] += 1
            if line["status"] == "no_seg":
                self.refusal = self.refusal or line["text"]
            if "geometry" in line:
                self.spacings[line["geometry"]["spacing_from"]] += 1


class PredictionLog:
    """The journal of a prediction folder; a context manager that locks the folder."""

    def __init__(
        self,
        out: Path,
        request: Mapping[str, Any],
        samples: Sequence[Sample],
        prompts: Sequence[str],
        whole_files: bool = False,
    ) -> None:
        """Begin in an empty or absent folder, or continue the same request where it stopped.

        With `whole_files` a multi-frame file is never continued in the middle: all its frames are predicted again.
        OutputError for a folder with other content, for the job of another request, while another process writes there,
        and if the folder is not writable.
        """
        self.out, self.counts, self.done = out, Counts(), 0
        """Number of completed images, counted from the first."""
        self.finished = False
        """True if the folder holds the complete predictions of this request; nothing is written then."""
        self._samples, self._prompts, self._request = samples, tuple(prompts), json.loads(to_json(request))
        with ExitStack() as files:
            _refuse_foreign(out)
            hold_folder(prepare_folder(out), "prediction", files)
            self._remove_partial()
            keep = 0
            if _is_complete(out):
                _compare(self._request, _request_of(_read(out / RUN)), out)
                self._count_done(range(len(samples) + 1), out / RESULT)
                self.finished = self.done == len(samples) and all((out / name).is_file() for name in self._extras())
                if not self.finished:  # files are missing, and are made again
                    self.counts, self.done = Counts(), 0
                    write_json(out / REQUEST, request)
            if (out / REQUEST).exists():
                _compare(self._request, _read(out / REQUEST), out)
                keep = self._continue(set(_ends_of_files(samples)) if whole_files else range(len(samples) + 1))
            elif not self.finished:
                write_json(out / REQUEST, request)
            if not self.finished:
                with self._resumable():
                    self._journal = files.enter_context(Journal(out / LINES, keep))
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @contextmanager
    def _resumable(self) -> Iterator[None]:
        """Add to a write error how the job can be continued."""
        try:
            yield
        except (OutputError, OSError) as error:
            reason = f"{self.out}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise OutputError(
                f"{reason}; repeat the command to continue after {self.done} of {len(self._samples)} images",
                code="write_failed",
                path=self.out,
            ) from error

    def _remove_partial(self) -> None:
        """Remove temporary files left by a killed process."""
        for folder in (self.out, *(self.out / name for name in (*FILES.values(), VIDEOS, VOLUMES))):
            for pattern in PARTIAL:
                for left in folder.glob(pattern):
                    left.unlink(missing_ok=True)

    def _continue(self, ends: Container[int]) -> int:
        """Count the completed images, up to one of `ends`, and return the bytes of the journal to keep."""
        with self._resumable():
            if not (self.out / LINES).exists() and (self.out / RESULT).exists():
                (self.out / RESULT).replace(self.out / LINES)  # killed during `finish`
            keep = self._count_done(ends, self.out / LINES)
        if self.done:
            log.warning("%s: continues after %d of %d images", self.out, self.done, len(self._samples))
        return keep

    def _count_done(self, ends: Container[int], journal: Path) -> int:
        keep, n = 0, len(self._prompts)
        pending: list[Line] = []
        with suppress(ValueError):  # at a damaged line; this image and all later ones are predicted again
            for read, (line, end) in enumerate(read_journal(journal)):
                if not self._is_done(line, *divmod(read, n)):
                    break
                pending.append(line)
                image, rest = divmod(read + 1, n)
                if not rest and image in ends:
                    for first in range(0, len(pending), n):
                        self.counts.add(pending[first : first + n], self._samples[self.done].image)
                        self.done += 1
                    keep, pending = end, []
        return keep

    def _is_done(self, line: Line, image: int, prompt: int) -> bool:
        """True if the line is for this prompt and image, and all files named in it exist and are not empty."""
        if image >= len(self._samples):
            return False
        if (line.get("id"), line.get("prompt")) != (self._samples[image].id, self._prompts[prompt]):
            return False
        files = [self.out / line[kind] for kind in FILES if kind in line]
        return all(file.is_file() and file.stat().st_size for file in files)

    def add(self, lines: Sequence[Line]) -> None:
        """Append the lines of the next image; OutputError if they cannot be written."""
        with self._resumable():
            self._journal.append(*lines)
        self.counts.add(lines, self._samples[self.done].image)
        self.done += 1

    def _extras(self) -> list[str]:
        """Names of the files that are written when the job ends, because of its output kinds."""
        save = set(self._request["save"])
        return [LABELS] * bool(save & {"labelmap", "nifti"}) + [TABLE] * ("table" in save)

    def finish(self, run: Mapping[str, Any]) -> None:
        """Write `run.json`, and rename the journal to `predictions.jsonl`: the folder is then complete."""
        if LABELS in self._extras():
            write_json(self.out / LABELS, {prompt: value for value, prompt in enumerate(self._prompts, start=1)})
        if TABLE in self._extras():
            write_csv(self.out / TABLE, [_row(line) for line, _ in read_journal(self.out / LINES)])
        write_json(self.out / RUN, {**run, "request": self._request})
        with self._resumable():
            self._journal.finish()
            (self.out / LINES).replace(self.out / RESULT)
            (self.out / REQUEST).unlink()


def _row(line: Line) -> Line:
    """The row of one line in `areas.csv`; values that are not known are None."""
    geometry = line.get("geometry", {})
    y, x = geometry.get("spacing_mm") or (None, None)
    return {
        **{name: line[name] for name in ("id", "prompt", "status")},
        "unknown_phrase": line.get("unknown_phrase", False),
        **{name: geometry.get(name) for name in MEASURED},
        "spacing_y_mm": y,
        "spacing_x_mm": x,
        "spacing_from": geometry.get("spacing_from"),
    }


def check_overwritable(out: Path, samples: Sequence[Sample]) -> None:
    """Raise OutputError unless `out` is absent, empty or a prediction folder; SettingError if it has an input image."""
    check_replaceable(out, "prediction folder", NAMES, RUN, REQUEST)
    for sample in samples:
        if sample.image.resolve().is_relative_to(out.resolve()):
            raise SettingError(
                f"{out}: contains {sample.image}, which is to be predicted; choose another --out",
                code="output_inside_data",
                path=out,
            )


def remove_other_job(out: Path, request: Mapping[str, Any]) -> None:
    """Remove the unfinished job in `out`, unless it has the same request."""
    if (out / REQUEST).exists():
        try:
            _compare(json.loads(to_json(request)), _read(out / REQUEST), out)
        except OutputError:
            log.warning("%s: holds an unfinished job with other settings and is emptied", out)
            shutil.rmtree(out)


def _is_complete(out: Path) -> bool:
    return (out / RESULT).is_file() and (out / RUN).is_file() and not (out / REQUEST).exists()


def _refuse_foreign(out: Path) -> None:
    """Raise OutputError if `out` is a file, or a folder with content other than predictions."""
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is a file; choose another --out", code="output_exists", path=out)
    # a job killed before it wrote its request leaves only temporary files
    entries = [entry for entry in out.iterdir() if entry.name not in SYSTEM_FILES]
    begun = any(entry.name == REQUEST for entry in entries) or _is_complete(out)
    if not begun and any(not any(map(entry.match, PARTIAL)) for entry in entries):
        raise OutputError(f"{out}: exists and is not empty; choose another --out", code="output_exists", path=out)


def _ends_of_files(samples: Sequence[Sample]) -> Iterator[int]:
    """Numbers n for which the first n samples contain every multi-frame file completely or not at all."""
    last = {sample.image: index for index, sample in enumerate(samples)}
    reach = 0
    for index, sample in enumerate(samples):
        reach = max(reach, last[sample.image])
        if reach == index:
            yield index + 1


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path}: cannot be read; choose another --out", code="unreadable_file", path=path.parent
        ) from error


def _request_of(run: Any) -> Any:
    return run.get("request") if isinstance(run, dict) else None


def _compare(request: dict[str, Any], begun: Any, out: Path) -> None:
    """Raise OutputError with the differing settings if the folder holds the job of another request."""
    begun = begun if isinstance(begun, dict) else {}
    differing = [name for name in request | begun if request.get(name) != begun.get(name)]
    if differing:
        raise OutputError(
            f"{out}: holds predictions with other settings ({', '.join(differing)}); choose another --out, or replace "
            "them with --overwrite",
            code="different_request",
            path=out,
            field=differing[0],
        )
