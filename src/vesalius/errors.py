"""Every error that Vesalius raises on purpose.

VesaliusError              one sentence for the user; the command line prints it and exits with 1
├── SettingError           a setting, a recipe or an argument is wrong; names the field
├── DataError              a data set cannot be used
│   ├── AnnotationError    an annotation file or a mask; names file, entry and field
│   └── ImageError         an image cannot be read; names the file
├── CheckpointError        a model cannot be found, opened or written
├── MissingExtraError      a library is not installed; names the command that installs it
├── TrainingError          a run cannot start, continue or be trusted
├── InterruptionError      a signal ended a run, whose work is saved; the exit code is 128 + the signal's number
└── OutputError            a result cannot be written; names the path
"""

from __future__ import annotations


class VesaliusError(Exception):
    """One clear sentence: what is wrong, where, and what to do."""

    exit_code = 1


class SettingError(VesaliusError):
    """A setting, a recipe or an argument is wrong."""


class DataError(VesaliusError):
    """A data set cannot be used; `code` is the kind of fault in one word, as `vesalius check` lists them."""

    code = "data"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class AnnotationError(DataError):
    """An annotation file or a mask is wrong."""

    code = "annotation"


class ImageError(DataError):
    """An image cannot be read."""

    code = "image"


class MissingExtraError(VesaliusError):
    """A library that this needs is not installed."""


class CheckpointError(VesaliusError):
    """A model cannot be found, opened or written."""


class TrainingError(VesaliusError):
    """A run cannot start, continue or be trusted."""


class InterruptionError(VesaliusError):
    """A signal ended a run, whose work is saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class OutputError(VesaliusError):
    """A result cannot be written."""
