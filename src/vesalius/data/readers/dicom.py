"""Read DICOM files: one file, or a folder of files at any depth, with any file names.

A file is one sample, but a cine has one sample for each frame. An image is annotated if a segmentation object in the
folder references it: each segment is then a phrase, by its label. Files that share a patient, a study or a series are
one group. Identifiers are replaced by the first 12 digits of their SHA-256, which distinguish patients without naming
them; anyone who knows a patient's number can still compute its hash.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vesalius.data.decoders import dicom_image as dicom
from vesalius.data.decoders.dicom_image import DicomFacts
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.data.images import frame_id, sample_id
from vesalius.data.readers import dicom_seg
from vesalius.data.readers.dicom_seg import Segment
from vesalius.data.source import HEAD_BYTES, Problems, Samples, Source, report, reporting, unreadable
from vesalius.errors import DataError, ImageError
from vesalius.types import Absent, Location, RleMask, Sample

KINDS = {
    dicom_seg.SOP_CLASS: "segmentations",
    "1.2.840.10008.1.3.10": "directories",
    "1.2.840.10008.5.1.4.1.1.11.": "presentation states",
    "1.2.840.10008.5.1.4.1.1.88.": "reports",
    "": "other objects without an image",
}
"""SOP class prefix -> name of these objects in notes; the first match counts."""

IDENTIFIERS = {"PatientID": "patient", "StudyInstanceUID": "study", "SeriesInstanceUID": "series"}
"""Keyword -> kind of identifier, in the order of preference for group names."""

Identifier = tuple[str, str]
"""(keyword, value) of an identifier in a header."""


def recognize(source: Source) -> bool:
    """True if the file is a DICOM image or the folder contains one."""
    return any(dicom.recognize(path, head) for path, head in _heads(source, []))


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples of all images, grouped by series and ordered by instance number.

    All segments that reference an image are phrases in each of its frames; a segment without a pixel in a frame is
    absent there. Raises ImageError for a file or folder that cannot be read; AnnotationError for an invalid
    segmentation, a segmentation of an image that is not in the folder, two files of the same image, and equal ids.
    With `problems`, the error is added there and the file is skipped.
    """
    images: dict[Path, DicomFacts] = {}
    segmentations = []
    for path, head in _heads(source, problems):
        if dicom.sop_class(head) == dicom_seg.SOP_CLASS:
            segmentations.append(path)
        elif dicom.recognize(path, head):
            with reporting(problems):
                images[path] = _facts(path)
    uids = _by_uid(images, problems)
    segments = _read_segments(segmentations, uids, source, problems)
    groups = _name_groups(images.values())
    samples = Samples()
    for path, sequence in _order({path: images[path] for path in uids.values()}).items():
        facts = images[path]
        group = next((groups[each] for each in _identify(facts).items()), sequence)
        its = segments.get(facts.sop_instance_uid)
        for sample in _samples(path, facts, group, sequence, its, source):
            with reporting(problems):
                samples.add(sample, Location(path), "rename one of them")
    return samples


def notes(source: Source) -> list[str]:
    """Notes with the numbers of images, frames and other files, and of missing or ambiguous identifiers and spacings."""
    unfound: list[DataError] = []
    unread: list[DataError] = []
    files, heads = list(_files(source, unfound)), list(_heads(source, unread))
    n_others = len(files) - len(heads) - (len(unread) - len(unfound))  # `read` reports unreadable files
    kinds: Counter[str] = Counter({"files that are not DICOM": n_others})
    facts = []
    for path, head in heads:
        if not dicom.recognize(path, head):
            kinds[_kind(dicom.sop_class(head))] += 1
            continue
        try:
            facts.append(_facts(path))
        except ImageError:
            continue  # `read` reports this error
    found = [f"DICOM images: {len(facts)}, with {sum(each.frames for each in facts)} frames"]
    read_too = kinds.pop("segmentations", 0)
    found += [f"DICOM segmentations: {read_too}"] if read_too else []
    ignored = ", ".join(f"{kind} ({n})" for kind, n in kinds.items() if n)
    found += [f"ignored: {ignored}"] if ignored else []
    nameless = sum(not each.patient_id for each in facts)
    found += [f"images without PatientID, grouped by study or series: {nameless}"] if nameless else []
    patients = [{value for name, value in each if name == "PatientID"} for each in _sets(_merge_identifiers(facts))]
    shared = sum(len(each) for each in patients if len(each) > 1)
    found += [f"PatientIDs that share a study or series, each set read as one group: {shared}"] * bool(shared)
    detector = sum(each.spacing_of == "ImagerPixelSpacing" for each in facts)
    spacing = f"images with detector spacing (ImagerPixelSpacing), larger than in the patient: {detector}"
    return [*found, *[spacing] * bool(detector)]


def identify(path: Path) -> dict[str, str]:
    """Pseudonym -> identifier, for all identifiers in the header; ImageError if the file cannot be read."""
    return {pseudonym(IDENTIFIERS[name], value): value for name, value in _identify(_facts(path)).items()}


def _files(source: Source, problems: Problems) -> Iterator[Path]:
    """All files except hidden ones, sorted by path; unreadable folders are reported."""

    def refuse(error: OSError) -> None:
        report(unreadable(Path(error.filename), error, ImageError), problems)

    found = [source.path]
    if source.path.is_dir():
        walked = os.walk(source.path, onerror=refuse)
        found = sorted(Path(folder, name) for folder, _, names in walked for name in names)
    for path in found:
        if path.name.startswith("."):
            continue
        try:
            if stat.S_ISREG(path.stat().st_mode):
                yield path
        except OSError as error:  # a broken link
            refuse(error)


def _heads(source: Source, problems: Problems) -> Iterator[tuple[Path, bytes]]:
    """(path, first bytes) of each DICOM file, with or without an image."""
    for path in _files(source, problems):
        if path.suffix.lower() in SUFFIXES:
            continue
        try:
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
        except OSError as error:
            report(unreadable(path, error, ImageError), problems)
            continue
        if head[128:132] == b"DICM":
            yield path, head


def _facts(path: Path) -> DicomFacts:
    state = path.stat()
    return _read_facts(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4096)
def _read_facts(path: Path, changed_ns: int, length: int) -> DicomFacts:
    """Header facts, cached because both `read` and `notes` need them."""
    return dicom.read_facts(path)


def _by_uid(images: Mapping[Path, DicomFacts], problems: Problems) -> dict[str, Path]:
    """Instance UID, or path if the file has none -> file; a second file of the same image is reported."""
    found: dict[str, Path] = {}
    for path, facts in images.items():
        uid = facts.sop_instance_uid or str(path)
        if uid in found:
            error = Location(path).error(f"is the same DICOM image as {found[uid]}", "duplicate_instance")
            report(error, problems)
        found.setdefault(uid, path)
    return found


def _read_segments(
    paths: Sequence[Path], uids: Mapping[str, Path], source: Source, problems: Problems
) -> dict[str, list[Segment]]:
    """Instance UID of each referenced image -> segments of all segmentations that reference it."""
    found: dict[str, list[Segment]] = defaultdict(list)
    for path in paths:
        with reporting(problems):
            segmentation = dicom_seg.read_segmentation(path)
            missing = len(segmentation.images - uids.keys())
            if missing:
                raise Location(path).error(
                    f"{missing} of the segmented images are not in {source.root}",
                    "missing_image",
                    "put them there, or remove the segmentation",
                )
            for uid in segmentation.images:
                found[uid] += segmentation.segments
    return found


def _order(images: Mapping[Path, DicomFacts]) -> dict[Path, str | None]:
    """File -> sequence, sorted by series: a cine, or all single-frame files of a series if there are several."""
    series: dict[str, list[Path]] = defaultdict(list)
    for path, facts in images.items():
        series[facts.series_uid or str(path)].append(path)
    found: dict[Path, str | None] = {}
    for uid, paths in series.items():
        single = [path for path in paths if images[path].frames == 1]
        name = pseudonym("series", uid)
        for path in sorted(paths, key=lambda each: (images[each].instance_number or 0, each)):
            cine = f"{name}-{_hash(images[path].sop_instance_uid or str(path))}"
            found[path] = cine if images[path].frames > 1 else name if len(single) > 1 else None
    return found


def _identify(facts: DicomFacts) -> dict[str, str]:
    """Keyword -> value of the identifiers in the header."""
    values = facts.patient_id, facts.study_uid, facts.series_uid
    return {name: value for name, value in zip(IDENTIFIERS, values, strict=True) if value}


def _merge_identifiers(images: Iterable[DicomFacts]) -> dict[Identifier, set[Identifier]]:
    """Identifier -> all identifiers of the same person; identifiers in one header belong together."""
    found: dict[Identifier, set[Identifier]] = {}
    for facts in images:
        own = set(_identify(facts).items())
        parts = _sets({each: found.get(each, {each}) for each in own})
        largest = max(parts, key=len, default=own)
        for part in parts:
            if part is not largest:
                largest |= part
                found |= dict.fromkeys(part, largest)
        found |= dict.fromkeys(own, largest)
    return found


def _sets(merged: Mapping[Identifier, set[Identifier]]) -> list[set[Identifier]]:
    return list({id(each): each for each in merged.values()}.values())


def _name_groups(images: Iterable[DicomFacts]) -> dict[Identifier, str]:
    """Identifier -> group, named after its first PatientID, else its first study, else its first series."""
    order = list(IDENTIFIERS)
    groups: dict[Identifier, str] = {}
    for merged in _sets(_merge_identifiers(images)):
        name, value = min(merged, key=lambda each: (order.index(each[0]), each[1]))
        groups |= dict.fromkeys(merged, pseudonym(IDENTIFIERS[name], value))
    return groups


def _samples(
    path: Path,
    facts: DicomFacts,
    group: str | None,
    sequence: str | None,
    segments: list[Segment] | None,
    source: Source,
) -> Iterator[Sample]:
    name = sample_id(path.relative_to(source.root))
    metadata: dict[str, Any] = {
        keyword: pseudonym(IDENTIFIERS[keyword], value) for keyword, value in _identify(facts).items()
    }
    if facts.frame_time_ms is not None:
        metadata["frame_time_ms"] = facts.frame_time_ms
    several = facts.frames > 1
    for frame in range(facts.frames):
        masks = None if segments is None else tuple(_reference(each, facts, frame) for each in segments)
        yield Sample(
            frame_id(name, frame) if several else name,
            path,
            tuple(each.label for each in segments or ()),
            masks,
            Location(path, f"frame {frame}" if several else ""),
            frame=frame if several else None,
            group=group,
            sequence=sequence,
            size=facts.size,
            spacing_mm=facts.spacing_mm,
            metadata=metadata,
        )


def _reference(segment: Segment, facts: DicomFacts, frame: int) -> tuple[RleMask | Absent]:
    rle = segment.masks.get((facts.sop_instance_uid, frame))
    return (Absent() if rle is None else RleMask(rle),)


def pseudonym(kind: str, value: str) -> str:
    """A stable name for an identifier, derived from its hash: `patient-4fc82b26aecb`."""
    return f"{kind}-{_hash(value)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]


def _kind(uid: str) -> str:
    return next(name for start, name in KINDS.items() if uid.startswith(start))
