"""Assign groups (patients or sequences) to samples by field, DICOM attribute, folder, or part of the id."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vesalius.data.decoders import dicom_image as dicom
from vesalius.data.decoders.frame_files import HEAD_BYTES
from vesalius.data.readers.dicom import pseudonym
from vesalius.errors import SettingError
from vesalius.language import note
from vesalius.names import count_of
from vesalius.types import Sample

DICOM_ATTRIBUTES = {
    "PatientID": ("patient", "patient_id"),
    "StudyInstanceUID": ("study", "study_uid"),
    "SeriesInstanceUID": ("series", "series_uid"),
}
"""DICOM attribute -> (kind of pseudonym, field of DicomFacts), for images without the attribute in their metadata."""


def regroup(samples: Sequence[Sample], group: str) -> list[Sample]:
    """The samples with groups assigned by `group`.

    `group` is the first that applies of: a field of the annotations (`group`, `sequence` or a metadata key); one of
    `DICOM_ATTRIBUTES`, for DICOM images; `folder`, the folder of each image; a regular expression on the id, with its
    first parenthesized group as the result. Raises SettingError if none applies or a sample gets no group.
    """
    if any(_field(sample, group) is not None for sample in samples):
        return [replace(sample, group=_group_of_field(sample, group)) for sample in samples]
    if group in DICOM_ATTRIBUTES:
        return _group_by_attribute(samples, group)
    if group == "folder":
        return _group_by_folder(samples)
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise SettingError(
            f"group {group!r} is neither a field of the annotations nor a regular expression ({error})",
            code="invalid_group",
            field="group",
        ) from error
    if not pattern.groups:
        fields = ", ".join(dict.fromkeys(key for sample in samples for key in sample.metadata)) or "none"
        raise SettingError(
            f"group {group!r} is not a field of the annotations (fields: {fields}), and as a regular expression "
            "it needs parentheses around the patient or sequence",
            code="invalid_group",
            field="group",
        )
    return [replace(sample, group=_group_of_id(sample, pattern)) for sample in samples]


def group_of(sample: Sample) -> str:
    """Group of a sample (patient or sequence); the sample's id if no group is stated."""
    return sample.group or sample.id


def note_on_groups(samples: Sequence[Sample]) -> str:
    """A note with the number of groups and of images without a group."""
    groups = {sample.group for sample in samples if sample.group is not None}
    alone = sum(sample.group is None for sample in samples)
    if not groups:
        return note("no groups are stated: each image is its own group")
    named = count_of(len(groups), "group")
    if not alone:
        return named
    return note("{groups}; {images} without one, each its own group", groups=named, images=count_of(alone, "image"))


def is_dicom(path: Path) -> bool:
    """True for a DICOM file with an image; False if it cannot be opened."""
    try:
        with path.open("rb") as file:
            return dicom.recognize(path, file.read(HEAD_BYTES))
    except OSError:
        return False


def _field(sample: Sample, name: str) -> object:
    return {"group": sample.group, "sequence": sample.sequence}.get(name, sample.metadata.get(name))


def _group_of_field(sample: Sample, name: str) -> str:
    value = _field(sample, name)
    if type(value) not in (str, int) or value == "":
        raise SettingError(
            f"{sample.source}: field {name!r} must be a group, not {value!r}; write a name or number there",
            code="missing_group",
            field=name,
        )
    return str(value)


def _group_by_attribute(samples: Sequence[Sample], keyword: str) -> list[Sample]:
    """The samples grouped by a DICOM attribute; each file is opened once."""
    found: dict[Path, str] = {}
    for sample in samples:
        if sample.image not in found:
            found[sample.image] = _read_attribute(sample.image, keyword)
    return [replace(sample, group=found[sample.image]) for sample in samples]


def _read_attribute(path: Path, keyword: str) -> str:
    if not is_dicom(path):
        raise SettingError.at(
            path,
            f"is not a DICOM file and has no {keyword}; group by a field, folder, or regular expression",
            code="missing_group",
            field=keyword,
        )
    kind, name = DICOM_ATTRIBUTES[keyword]
    value = getattr(dicom.read_facts(path), name)
    if not value:
        raise SettingError.at(
            path, f"has no {keyword}; group by another field, or folder", code="missing_group", field=keyword
        )
    return pseudonym(kind, value)


def _group_by_folder(samples: Sequence[Sample]) -> list[Sample]:
    """The samples grouped by folder, named by its path below the common parent: `p1/cine`."""
    parents = [sample.image.parent.absolute() for sample in samples]
    top = Path(os.path.commonpath(parents))
    names = [top.name if parent == top else parent.relative_to(top).as_posix() for parent in parents]
    return [replace(sample, group=name) for sample, name in zip(samples, names, strict=True)]


def _group_of_id(sample: Sample, pattern: re.Pattern[str]) -> str:
    match = pattern.search(sample.id)
    if match is None or not match[1]:
        raise SettingError(
            f"group {pattern.pattern!r} does not match the id {sample.id!r}; widen the expression",
            code="missing_group",
            field="group",
        )
    return match[1]
