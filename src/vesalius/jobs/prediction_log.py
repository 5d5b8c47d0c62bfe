"""What a prediction folder holds while it is not complete, so that a job that was killed is continued.

The lines of `predictions.jsonl` grow in `.predictions.unfinished`, an image at a time and in order; an image counts
as done when all its lines are there and every file that they name. `.predictions.request.json` says what was asked.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from vesalius.errors import OutputError
from vesalius.files import SYSTEM_FILES, hold_folder, prepare_folder, to_json, write_json
from vesalius.types import Sample

log = logging.getLogger(__name__)

LINES, REQUEST, RESULT, RUN = (
    ".predictions.unfinished",
    ".predictions.request.json",
    "predictions.jsonl",
    "run.json",
)
FILES = {"mask": "masks", "probabilities": "probs", "overlay": "overlays", "dicom": "dicom"}
"""What a line may name a file by, and the folder of such files."""
FILMS = "films"
"""The folder of films, which are of whole clips: no line names them."""
SETTLED_EVERY_S = 5.0
"""So often lines are brought to the disk itself; before that a power cut may take them, a killed process does not."""

PARTIAL = (".*.partial", ".*.probe")
"""Temporary names, of `files.replacing` and `files.prepare_folder`."""

Line = dict[str, Any]
"""One of `predictions.jsonl`."""


@dataclass
class Counts:
    """What the lines of a folder come to."""

    coverage: Counter[str] = field(default_factory=lambda: Counter(ok=0, no_seg=0, failed=0))
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def take(self, lines: Sequence[Mapping[str, Any]], image: Path) -> None:
        """Count the lines of one image."""
        for line in lines:
            self.coverage[line["status"]] += 1
            if line["status"] == "failed":
                self.failures.append(f"{image}: {line['error']}")
            elif line["answered"]:
                self.answers[line["answered"]] += 1


class PredictionLog:
    """The lines of a prediction folder, from the first to the last; a context manager that holds the folder."""

    def __init__(
        self,
        out: Path,
        request: Mapping[str, Any],
        samples: Sequence[Sample],
        prompts: Sequence[str],
        whole_files: bool = False,
    ) -> None:
        """Begin in an empty or absent folder, or take up the same request where it stopped.

        With `whole_files` it is taken up only where all frames of the files before are done. OutputError for a
        folder that holds anything else or cannot be written, for the unfinished job of another request, and while
        another process is at the same.
        """
        self.out, self.counts, self.done = out, Counts(), 0
        """How many images, from the first, have all their lines."""
        self._samples, self._prompts = samples, tuple(prompts)
        self._settled = time.monotonic()
        with ExitStack() as files:
            _refuse_foreign(out)
            hold_folder(prepare_folder(out), "prediction", files)
            self._remove_partial()
            if (out / REQUEST).exists():
                _compare(out, json.loads(to_json(request)))
                self._continue(set(_ends_of_files(samples)) if whole_files else range(len(samples) + 1))
            else:
                write_json(out / REQUEST, request)
            try:
                self._lines = files.enter_context((out / LINES).open("ab"))
            except OSError as error:
                raise self._full(error) from error
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what a full disk did not take was told of when it was written
            self._files.close()

    def _remove_partial(self) -> None:
        """Remove what was being written when a process was killed."""
        for folder in (self.out, *(self.out / name for name in (*FILES.values(), FILMS))):
            for pattern in PARTIAL:
                for left in folder.glob(pattern):
                    left.unlink(missing_ok=True)

    def _continue(self, ends: Container[int]) -> None:
        """Take in what is done, up to one of `ends`, and cut off the rest."""
        try:
            if not (self.out / LINES).exists() and (self.out / RESULT).exists():
                (self.out / RESULT).replace(self.out / LINES)  # killed in its last moment
            with (self.out / LINES).open("a+b") as lines:
                lines.seek(0)
                lines.truncate(self._take_in(lines, ends))
        except OSError as error:
            raise self._full(error) from error
        if self.done:
            log.warning("%s: continues after %d of %d images", self.out, self.done, len(self._samples))

    def _take_in(self, lines: BinaryIO, ends: Container[int]) -> int:
        """Count images from the first, up to one of `ends`; the place in the file after the last of them."""
        end = place = read = 0
        begun: list[Line] = []
        n = len(self._prompts)
        for text in lines:
            line = self._read_line(text, *divmod(read, n))
            if line is None:
                break
            place, read = place + len(text), read + 1
            begun.append(line)
            image, rest = divmod(read, n)
            if not rest and image in ends:
                for first in range(0, len(begun), n):
                    self.counts.take(begun[first : first + n], self._samples[self.done].image)
                    self.done += 1
                end, begun = place, []
        return end

    def _read_line(self, text: bytes, image: int, prompt: int) -> Line | None:
        """The line if it is whole, about that question, and all its files are there."""
        try:
            line: Line = json.loads(text) if text.endswith(b"\n") else {}
        except ValueError:
            return None
        if image >= len(self._samples):
            return None
        if (line.get("id"), line.get("prompt")) != (self._samples[image].id, self._prompts[prompt]):
            return None
        files = [self.out / line[kind] for kind in FILES if kind in line]
        return line if all(file.is_file() and file.stat().st_size for file in files) else None

    def add(self, lines: Sequence[Line]) -> None:
        """Keep the lines of the next image; OutputError where the disk says no."""
        try:
            self._lines.write("".join(f"{to_json(line)}\n" for line in lines).encode())
            self._lines.flush()
            if time.monotonic() - self._settled > SETTLED_EVERY_S:
                self._settle()
        except OSError as error:
            raise self._full(error) from error
        self.counts.take(lines, self._samples[self.done].image)
        self.done += 1

    def _settle(self) -> None:
        os.fsync(self._lines.fileno())
        self._settled = time.monotonic()

    def finish(self, run: Mapping[str, Any]) -> None:
        """Write `run.json`, and make the lines `predictions.jsonl`: from then on the folder is complete."""
        write_json(self.out / RUN, run)
        try:
            self._settle()
            self._lines.close()
            (self.out / LINES).replace(self.out / RESULT)
            (self.out / REQUEST).unlink()
        except OSError as error:
            raise self._full(error) from error

    def _full(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.out}: cannot be written ({error.strerror}); the same command continues it, after "
            f"{self.done} of {len(self._samples)} images"
        )


def _refuse_foreign(out: Path) -> None:
    """OutputError where there is anything but an empty folder or an unfinished job."""
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is a file; choose another --out")
    # a job that was killed before it had said what was asked leaves a temporary file
    entries = [entry for entry in out.iterdir() if entry.name not in SYSTEM_FILES]
    begun = any(entry.name == REQUEST for entry in entries)
    if not begun and any(not any(map(entry.match, PARTIAL)) for entry in entries):
        raise OutputError(f"{out}: is there already and not empty; choose another --out")


def _ends_of_files(samples: Sequence[Sample]) -> Iterator[int]:
    """How many samples there are up to each place where no file is left half done."""
    last = {sample.image: place for place, sample in enumerate(samples)}
    reach = 0
    for place, sample in enumerate(samples):
        reach = max(reach, last[sample.image])
        if reach == place:
            yield place + 1


def _compare(out: Path, request: dict[str, Any]) -> None:
    """OutputError where another request was begun in the folder; it says which part differs."""
    try:
        begun = json.loads((out / REQUEST).read_text(encoding="utf-8"))
        differing = [name for name in request | begun if request.get(name) != begun.get(name)]
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"{out / REQUEST}: cannot be read; choose another --out") from error
    if differing:
        raise OutputError(
            f"{out}: holds an unfinished job that was asked otherwise ({', '.join(differing)}); ask the same to "
            "continue it, or choose another --out"
        )
