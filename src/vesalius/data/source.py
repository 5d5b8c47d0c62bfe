"""Shared by all readers: the source file or folder, collection of errors, and unique sample ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vesalius.errors import AnnotationError, DataError
from vesalius.types import Location, Sample

Problems = list[DataError] | None
"""List that collects the errors of single entries; with None, readers raise the first error."""

HEAD_BYTES = 4096


@dataclass(frozen=True)
class Source:
    """A file or folder given as dataset; its contents are read once and shared by all readers."""

    path: Path

    @property
    def root(self) -> Path:
        """Base folder of image paths and sample ids."""
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def head(self) -> bytes:
        """The first bytes of a file; empty for a folder or an unreadable file."""
        try:
            with self.path.open("rb") as file:
                return file.read(HEAD_BYTES)
        except OSError:
            return b""

    @cached_property
    def json(self) -> Any:
        """The parsed `.json` file, None for anything else; AnnotationError if the file is not JSON."""
        if self.path.suffix.lower() != ".json" or self.path.is_dir():
            return None
        return read_json(self.path)

    def locate(self, part: str) -> Location:
        """The location of one entry of the file."""
        return Location(self.path, part)


def read_json(path: Path) -> Any:
    """The parsed UTF-8 JSON file; AnnotationError if it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise Location(path).error(f"is not JSON ({error})", "unreadable_file") from error


def unreadable(path: Path, error: OSError, kind: type[DataError] = AnnotationError) -> DataError:
    """The error for a file or folder that failed to open with an OSError."""
    return Location(path).error(f"cannot be read ({error.strerror})", "unreadable_file", kind=kind)


def report(error: DataError, problems: Problems) -> None:
    """Add the error to `problems`, or raise it if `problems` is None."""
    if problems is None:
        raise error
    problems.append(error)


@contextmanager
def reporting(problems: Problems) -> Iterator[None]:
    """Pass a DataError of the block to `report`; earlier effects of the block remain."""
    try:
        yield
    except DataError as error:
        report(error, problems)


class UniqueIds(dict[str, object]):
    """Id -> location of the sample or file with this id; duplicates are errors."""

    def add(self, name: str, where: Location, remedy: str = "", kind: type[DataError] = AnnotationError) -> None:
        """Register the id; a DataError with the code `duplicate_id` if it is already registered."""
        if name in self:
            raise where.error(f"has the same id {name} as {self[name]}", "duplicate_id", remedy, kind)
        self[name] = where


class Samples(list[Sample]):
    """List of samples with unique ids."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = UniqueIds()

    def add(self, sample: Sample, where: Location, remedy: str = "", kind: type[DataError] = AnnotationError) -> None:
        """Append the sample; a DataError with the code `duplicate_id` if its id is already in the list."""
        self.ids.add(sample.id, where, remedy, kind)
        self.append(sample)
