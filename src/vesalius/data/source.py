"""Where a dataset lies, and what every reader of one is given."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vesalius.errors import AnnotationError, DataError

Problems = list[DataError] | None
"""Where readers put what is wrong with single entries; with None the first one is raised."""

HEAD_BYTES = 4096


@dataclass(frozen=True)
class Source:
    """A file or folder that somebody named as a dataset; what a file holds is read once, for all readers."""

    path: Path

    @property
    def root(self) -> Path:
        """The folder that image paths and sample ids are relative to."""
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def head(self) -> bytes:
        """The first bytes of a file; empty for a folder or where it cannot be read."""
        try:
            with self.path.open("rb") as file:
                return file.read(HEAD_BYTES)
        except OSError:
            return b""

    @cached_property
    def json(self) -> Any:
        """The value of a `.json` file, None for anything else; AnnotationError where it is not JSON."""
        if self.path.suffix.lower() != ".json" or self.path.is_dir():
            return None
        return read_json(self.path)


def read_json(path: Path) -> Any:
    """The value of a JSON file in UTF-8; AnnotationError, naming it, where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})", code="unreadable_file") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(
            f"{path}: is not JSON ({error}); write it again as UTF-8 JSON", code="unreadable_file"
        ) from error


def report(error: DataError, problems: Problems) -> None:
    """Put the error where it is collected, or raise it."""
    if problems is None:
        raise error
    problems.append(error)
