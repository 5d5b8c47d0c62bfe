"""Table of the dataset formats, and detection of a format from file contents, not from file names."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vesalius.data.decoders.limits import missing_file
from vesalius.data.readers import coco, cvat, dicom, frames, labelme, labelstudio, maskfolder, nnunet, vesalius_json
from vesalius.data.source import Problems, Source, unreadable
from vesalius.errors import SettingError
from vesalius.types import Location, Sample


@dataclass(frozen=True)
class Format:
    """The functions that recognize and read one dataset format."""

    recognize: Callable[[Source], bool]
    """True if the source has this format; AnnotationError only for a `.json` file that is not valid JSON."""
    read: Callable[[Source, str, Problems], list[Sample]]
    """`read(source, phrase, problems)`: `phrase` names the masks of a format without phrases ("" if not given). Raises
    AnnotationError for an invalid entry, or skips it and adds the error to `problems`; SettingError for a missing
    phrase."""
    notes: Callable[[Source], list[str]] = lambda source: []
    """One line for each kind of content that is not read, with its number."""


FORMATS: dict[str, Format] = {
    "coco": Format(coco.recognize, coco.read, coco.notes),
    "labelstudio": Format(labelstudio.recognize, labelstudio.read, labelstudio.notes),
    "vesalius": Format(vesalius_json.recognize, vesalius_json.read),
    "labelme": Format(labelme.recognize, labelme.read, labelme.notes),
    "cvat": Format(cvat.recognize, cvat.read),
    "nnunet": Format(nnunet.recognize, nnunet.read, nnunet.notes),
    "maskfolder": Format(maskfolder.recognize, maskfolder.read, maskfolder.notes),
    "dicom": Format(dicom.recognize, dicom.read, dicom.notes),
    "nifti": Format(frames.NIFTI.recognize, frames.NIFTI.read, frames.NIFTI.notes),
    "video": Format(frames.VIDEO.recognize, frames.VIDEO.read, frames.VIDEO.notes),
}
"""Name -> format, in the order of detection: formats with specific files come before generic ones."""

ANNOTATION_FILES = ("annotations*.json", "annotations*.xml")
"""Patterns of the annotation files that are searched first in a folder; `split` selects one of several matches."""


def detect(data: Path, split: str | None) -> tuple[str, Source, list[str]]:
    """(name of the format, source, notes) of a dataset.

    Raises AnnotationError if no format matches, SettingError if there are several annotation files and `split` selects
    none.
    """
    source, notes = _find_source(data, split)
    for name, each in FORMATS.items():
        if each.recognize(source):
            return name, source, [*notes, *each.notes(source)]
    where = Location(source.path)
    if not source.path.is_dir():
        raise where.error(f"is not in a supported format ({', '.join(FORMATS)})", "unknown_format")
    others = ", ".join(str(file.relative_to(data)) for file in find_annotations(data)[:5])
    remedy = f"if {others} is the annotation file, give its path; otherwise move it elsewhere" if others else ""
    raise where.error(
        "is not a dataset: neither annotations*.json nor images/ with masks/ was found", "unknown_format", remedy
    )


def check_there(data: Path) -> None:
    """Raise AnnotationError if the path does not exist or is a folder that cannot be opened."""
    try:
        data.stat()
        if data.is_dir():
            os.scandir(data).close()
            (data / "images").exists()  # raises for a folder that can be listed but not entered
    except FileNotFoundError:
        missing = missing_file(data)
        if missing.code == "not_local":
            raise missing from None
        remedy = "give a dataset folder or an annotation file"
        raise Location(data).error("does not exist", "not_found", remedy) from None
    except OSError as error:
        raise unreadable(data, error) from error


def find_annotations(folder: Path) -> list[Path]:
    """Possible annotation files: JSON and XML files at any depth, except hidden ones."""
    found = (file for pattern in ("*.json", "*.xml") for file in folder.rglob(pattern))
    return sorted(file for file in found if not file.name.startswith("."))


def _find_source(data: Path, split: str | None) -> tuple[Source, list[str]]:
    """(source, notes): the annotation file of a folder if it has one, else the path itself."""
    check_there(data)
    files = sorted(file for pattern in ANNOTATION_FILES for file in data.glob(pattern)) if data.is_dir() else []
    if len(files) > 1:
        return Source(_pick(data, files, split)), []
    source = Source(files[0] if files else data)
    if split is None or source.path.stem == f"annotations.{split}":
        return source, []
    return source, [f"split {split!r} is ignored: {source.path.name} is the only dataset"]


def _pick(folder: Path, files: list[Path], split: str | None) -> Path:
    for file in files:
        if split is not None and file.stem == f"annotations.{split}":
            return file
    names = ", ".join(file.name for file in files)
    asked = f"has no annotations.{split}.json" if split is not None else "has several annotation files"
    remedy = f"pick one with --split NAME (annotations.NAME.json), or name the file: {names}"
    raise SettingError(f"{folder}: {asked}; {remedy}", code="ambiguous_split", path=folder, remedy=remedy)
