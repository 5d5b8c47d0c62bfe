"""Which patient or sequence a sample belongs to: a field, a DICOM attribute, a folder, or a part of the id."""

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
from vesalius.types import Sample

DICOM_ATTRIBUTES = {
    "PatientID": ("patient", "patient_id"),
    "StudyInstanceUID": ("study", "study_uid"),
    "SeriesInstanceUID": ("series", "series_uid"),
}
"""Read from the files themselves where the samples do not have them, and given as the reader of DICOM gives them."""


def regroup(samples: Sequence[Sample], group: str) -> list[Sample]:
    """The samples with the group that `group` gives: the first of these that there is.

    A field of the annotations (`group`, `sequence` or a key kept as metadata); one of `DICOM_ATTRIBUTES` of DICOM
    images; `folder`, where each image lies; a regular expression, the first group of which is found in the id.
    Raises SettingError where it is none of these, or gives a sample nothing.
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
            f"group {group!r} is neither a field of the annotations nor a regular expression ({error})"
        ) from error
    if not pattern.groups:
        fields = ", ".join(dict.fromkeys(key for sample in samples for key in sample.metadata)) or "none"
        raise SettingError(
            f"group {group!r} is no field of the annotations (fields: {fields}), and as a regular expression "
            "it needs parentheses around the patient or sequence"
        )
    return [replace(sample, group=_group_of_id(sample, pattern)) for sample in samples]


def group_of(sample: Sample) -> str:
    """The group of a sample; one that nobody grouped is alone in a group of its own id."""
    return sample.id if sample.group is None else sample.group


def note_on_groups(samples: Sequence[Sample]) -> str:
    """How many groups are stated, and how many images have none."""
    groups = {sample.group for sample in samples if sample.group is not None}
    alone = sum(sample.group is None for sample in samples)
    if not groups:
        return "no groups are stated: each image is its own group"
    rest = f"; {alone} {'image' if alone == 1 else 'images'} without one, each its own group" if alone else ""
    return f"{len(groups)} {'group' if len(groups) == 1 else 'groups'}{rest}"


def is_dicom(path: Path) -> bool:
    """Whether it is a DICOM file with an image; False where it cannot be opened."""
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
            f"{sample.source}: field {name!r} gives no group (it is {value!r}); write a name or number there"
        )
    return str(value)


def _group_by_attribute(samples: Sequence[Sample], keyword: str) -> list[Sample]:
    """A file of many frames is opened once: its samples stand together."""
    found: dict[Path, str] = {}
    for sample in samples:
        if sample.image not in found:
            found[sample.image] = _read_attribute(sample.image, keyword)
    return [replace(sample, group=found[sample.image]) for sample in samples]


def _read_attribute(path: Path, keyword: str) -> str:
    if not is_dicom(path):
        raise SettingError(
            f"{path}: is no DICOM file and has no {keyword}; name a field, folder, or a regular expression"
        )
    kind, name = DICOM_ATTRIBUTES[keyword]
    value = getattr(dicom.read_facts(path), name)
    if not value:
        raise SettingError(f"{path}: states no {keyword}; name another field, or folder")
    return pseudonym(kind, value)


def _group_by_folder(samples: Sequence[Sample]) -> list[Sample]:
    """Groups are named by what tells the folders apart: `p1/cine`, not the whole path."""
    parents = [sample.image.parent.absolute() for sample in samples]
    top = Path(os.path.commonpath(parents))
    names = [top.name if parent == top else parent.relative_to(top).as_posix() for parent in parents]
    return [replace(sample, group=name) for sample, name in zip(samples, names, strict=True)]


def _group_of_id(sample: Sample, pattern: re.Pattern[str]) -> str:
    match = pattern.search(sample.id)
    if match is None or not match[1]:
        raise SettingError(
            f"group {pattern.pattern!r} finds nothing in the id {sample.id!r}; widen the expression"
        )
    return match[1]
