"""The tree of errors that Vesalius raises on purpose.

VesaliusError              one sentence for the user; the command line prints it and exits with 1
├── SettingError           a setting, a recipe or an argument is wrong
├── DataError              a dataset cannot be used
│   ├── AnnotationError    an annotation file or a mask is wrong
│   └── ImageError         an image cannot be read
├── CheckpointError        a model cannot be found, opened or written
├── MissingExtraError      an optional library is not installed; the message has the command that installs it
├── TrainingError          a run cannot start, continue or be trusted
├── InterruptionError      a signal ended a job whose work is saved; the exit code is 128 + the signal's number
└── OutputError            a result cannot be written
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class VesaliusError(Exception):
    """What is wrong, where, and what to do, in one sentence, with a stable `code` of the table in `codes.py`.

    `path` is the file or folder concerned, `field` the setting, or the entry and object within the file, and
    `remedy` what to do; None where there is none, or where only the sentence says it.
    """

    code = "error"
    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        path: str | Path | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code or type(self).code
        self.path = None if path is None else str(path)
        self.field = field
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Keeps the fields on the way from another process."""
        return _rebuild, (type(self), self.args, self.__dict__)

    def as_json(self) -> dict[str, str | None]:
        """The error object that `--json` and the server give: code, message, path, field."""
        return {"code": self.code, "message": str(self), "path": self.path, "field": self.field}


def _rebuild(kind: type[VesaliusError], args: tuple[Any, ...], state: dict[str, Any]) -> VesaliusError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class SettingError(VesaliusError):
    """A setting, a recipe or an argument is wrong."""

    code = "setting"


class DataError(VesaliusError):
    """A dataset cannot be used."""

    code = "invalid_data"


class AnnotationError(DataError):
    """An annotation file or a mask is wrong."""

    code = "invalid_annotation"


class ImageError(DataError):
    """An image cannot be read."""

    code = "unreadable_image"


class MissingExtraError(VesaliusError):
    """A library that this needs is not installed."""

    code = "missing_extra"


class CheckpointError(VesaliusError):
    """A model cannot be found, opened or written."""

    code = "checkpoint"


class TrainingError(VesaliusError):
    """A run cannot start, continue or be trusted."""

    code = "training"


class InterruptionError(VesaliusError):
    """A signal ended a run whose work is saved."""

    code = "interrupted"

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class OutputError(VesaliusError):
    """A result cannot be written."""

    code = "output"
