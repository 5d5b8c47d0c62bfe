"""Every error that Vesalius raises on purpose.

VesaliusError              one sentence for the user; the command line prints it and exits with 1
├── SettingError           a setting, a recipe or an argument is wrong; names the field
├── DataError              a data set cannot be used
│   ├── AnnotationError    an annotation file or a mask; names file, entry and field
│   └── ImageError         an image cannot be read; names the file
├── CheckpointError        a model cannot be found, opened or written
├── TrainingError          a run cannot start, continue or be trusted
├── OutputError            a result cannot be written; names the path
└── MissingExtraError      an optional library is absent; says which command installs it
"""

from __future__ import annotations


class VesaliusError(Exception):
    """One clear sentence: what is wrong, where, and what to do."""


class SettingError(VesaliusError):
    """A setting, a recipe or an argument is wrong."""


class DataError(VesaliusError):
    """A data set cannot be used."""


class AnnotationError(DataError):
    """An annotation file or a mask is wrong."""


class ImageError(DataError):
    """An image cannot be read."""


class CheckpointError(VesaliusError):
    """A model cannot be found, opened or written."""


class TrainingError(VesaliusError):
    """A run cannot start, continue or be trusted."""


class OutputError(VesaliusError):
    """A result cannot be written."""


class MissingExtraError(VesaliusError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed; run: pip install 'vesalius[{extra}]'")
