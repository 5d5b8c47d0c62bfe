"""Exceptions that Vesalius raises for expected errors.

VesaliusError              base class; the command line prints its message, one sentence, and exits with 1
├── SettingError           a setting, a recipe or an argument is wrong
│   └── UsageError         the words of a command are wrong; the exit code is 2
├── DataError              a dataset cannot be used
│   ├── AnnotationError    an annotation file or a mask is wrong
│   └── ImageError         an image cannot be read
├── CheckpointError        a model cannot be found, opened or written
├── MissingExtraError      an optional library is not installed; the message gives the installation command
├── TrainingError          a training run cannot start or continue, or its result would be invalid
├── InterruptionError      a signal ended a job; its work is saved; the exit code is 128 + the signal number
└── OutputError            a result cannot be written
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from vesalius.codes import CODES


class VesaliusError(Exception):
    """An error with a message of one sentence (what is wrong, where, what to do) and a stable `code` from `codes.py`.

    `path` is the file or folder; `field` is the setting, or the entry and object in the file; `remedy` is the fix. Each
    is None if it is unknown or only in the message.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        code: str,
        path: str | Path | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ) -> None:
        if remedy and not message.endswith(remedy):
            message = f"{message}; {remedy}"
        super().__init__(message)
        assert code in CODES, code
        self.code = code
        self.path = None if path is None else str(path)
        self.field = field
        self.remedy = remedy

    @classmethod
    def at(cls, path: str | Path, message: str, *, code: str, field: str | None = None) -> Self:
        """An error about a file or folder; the message is prefixed with its path."""
        return cls(f"{path}: {message}", code=code, path=path, field=field)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error with all its fields, for transfer between processes."""
        return _rebuild, (type(self), self.args, self.__dict__)

    def as_json(self) -> dict[str, str | None]:
        """The error object of `--json`: code, message, path and field."""
        return {"code": self.code, "message": str(self), "path": self.path, "field": self.field}


def _rebuild(kind: type[VesaliusError], args: tuple[Any, ...], state: dict[str, Any]) -> VesaliusError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class SettingError(VesaliusError):
    """A setting, a recipe or an argument is wrong."""


class UsageError(SettingError):
    """The words of a command are wrong: unknown, missing, of the wrong kind, or in conflict with each other."""

    exit_code = 2


class DataError(VesaliusError):
    """A dataset cannot be used."""


class AnnotationError(DataError):
    """An annotation file or a mask is wrong."""


class ImageError(DataError):
    """An image cannot be read."""


class MissingExtraError(VesaliusError):
    """An optional library is not installed."""


class CheckpointError(VesaliusError):
    """A model cannot be found, opened or written."""


class TrainingError(VesaliusError):
    """A training run cannot start or continue, or its result would be invalid."""


class InterruptionError(VesaliusError):
    """A signal ended a job; its finished work is saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message, code="interrupted")
        self.exit_code = 128 + number


class OutputError(VesaliusError):
    """A result cannot be written."""
