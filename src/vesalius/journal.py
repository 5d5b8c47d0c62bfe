"""Journals: append-only JSON Lines files that record a running job, so that it can continue after an interruption."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from vesalius.errors import OutputError
from vesalius.files import to_json

SYNC_EVERY_S = 5.0
"""Seconds between fsync calls: a power failure may lose the lines since the last one; a killed process loses none."""


class Entry(NamedTuple):
    """One complete line of a journal."""

    value: dict[str, Any]
    end: int
    """Byte offset of the end of the line."""


def read_journal(path: Path) -> Iterator[Entry]:
    """The complete lines of a journal; none if the file does not exist.

    A last line without line break is incomplete and is ignored. ValueError for a complete line that is not a JSON
    object; OSError if the file cannot be read.
    """
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError(f"line {number} is not a JSON object")
            yield Entry(value, end)


class Journal:
    """A journal opened for appending; a context manager. Raises OutputError if a write fails."""

    def __init__(self, path: Path, keep: int | None = None) -> None:
        """Open or create the journal; with `keep`, truncate it to that many bytes (the `end` of an entry)."""
        self.path = path
        self._synced = time.monotonic()
        with self._writing():
            self._file = path.open("ab")
            if keep is not None:
                self._file.truncate(keep)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the failed write has already reported a full disk
            self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written ({error.strerror})", code="write_failed", path=self.path
            ) from error

    def append(self, *values: Mapping[str, Any]) -> None:
        """Append one line per value in a single write; fsync at most every `SYNC_EVERY_S` seconds."""
        with self._writing():
            self._file.write("".join(f"{to_json(value)}\n" for value in values).encode())
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def finish(self) -> None:
        """Sync all lines to disk and close the file."""
        with self._writing():
            os.fsync(self._file.fileno())
            self._file.close()
