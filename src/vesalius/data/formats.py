"""Every format that a dataset may come in, told apart by what files hold, not by what they are called."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vesalius.data.readers import (
    coco,
    cvat,
    dicom,
    frames,
    labelme,
    labelstudio,
    maskfolder,
    nnunet,
    vesalius_json,
)
from vesalius.data.source import Problems, Source
from vesalius.errors import AnnotationError, SettingError
from vesalius.types import Sample


def _nothing(source: Source) -> list[str]:
    return []


@dataclass(frozen=True)
class Format:
    """How to know a dataset, and to read it."""

    recognize: Callable[[Source], bool]
    """Raises AnnotationError only where no reader could go on: a `.json` file that is not JSON."""
    read: Callable[[Source, str, Problems], list[Sample]]
    """`read(source, phrase, problems)`: `phrase` names what masks show where the format does not ("" if nobody said).
    Raises AnnotationError for an entry, or puts it into `problems` and leaves the entry out; SettingError where a
    phrase is needed."""
    notes: Callable[[Source], list[str]] = _nothing
    """One line each for what lies beside it and is not read."""


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
"""The first that recognizes a source reads it: a format stands before those that know less about their files."""

ANNOTATION_FILES = ("annotations*.json", "annotations*.xml")
"""What is looked for in a folder first. With several, a split chooses."""


def detect(data: Path, split: str | None) -> tuple[str, Source, list[str]]:
    """(name of the format, what to read, notes).

    Raises AnnotationError where there is nothing that can be read, SettingError where `split` has to choose between
    several annotation files and does not.
    """
    source, notes = _find_source(data, split)
    for name, each in FORMATS.items():
        if each.recognize(source):
            return name, source, [*notes, *each.notes(source)]
    if not source.path.is_dir():
        raise AnnotationError(f"{source.path}: is in no format that is read ({', '.join(FORMATS)})")
    others = ", ".join(str(file.relative_to(data)) for file in find_annotations(data)[:5])
    raise AnnotationError(
        f"{data}: is no dataset: neither annotations*.json nor images/ with masks/ was found"
        + (
            f"; if {others} is the annotation file, name it, and if it is none, move it elsewhere"
            * bool(others)
        )
    )


def check_there(data: Path) -> None:
    """Raise AnnotationError where there is nothing, or a folder that may not be entered."""
    try:
        data.stat()
        if data.is_dir():
            os.scandir(data).close()
            (data / "images").exists()  # where it may be listed, but not entered
    except FileNotFoundError:
        raise AnnotationError(
            f"{data}: does not exist; give a dataset folder or an annotation file"
        ) from None
    except OSError as error:
        raise AnnotationError(f"{data}: cannot be read ({error.strerror})", code="unreadable_file") from error


def find_annotations(folder: Path) -> list[Path]:
    """Files at any depth that may be an annotation, in whatever format; hidden ones are left out."""
    found = (file for pattern in ("*.json", "*.xml") for file in folder.rglob(pattern))
    return sorted(file for file in found if not file.name.startswith("."))


def _find_source(data: Path, split: str | None) -> tuple[Source, list[str]]:
    """The annotation file of a folder where it has one, else what was named."""
    check_there(data)
    files = (
        sorted(file for pattern in ANNOTATION_FILES for file in data.glob(pattern)) if data.is_dir() else []
    )
    if len(files) > 1:
        return Source(_pick(data, files, split)), []
    source = Source(files[0] if files else data)
    if split is None or source.path.stem == f"annotations.{split}":
        return source, []
    return source, [f"split {split!r} picks nothing here: {source.path.name} is the only choice"]


def _pick(folder: Path, files: list[Path], split: str | None) -> Path:
    for file in files:
        if split is not None and file.stem == f"annotations.{split}":
            return file
    names = ", ".join(file.name for file in files)
    asked = f"has no annotations.{split}.json" if split is not None else "has several annotation files"
    raise SettingError(
        f"{folder}: {asked}; pick one with --split NAME (annotations.NAME.json), or name the file: {names}"
    )
