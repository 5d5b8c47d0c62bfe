"""DICOM headers without the person: the basic application level confidentiality profile of PS3.15, Annex E."""

from __future__ import annotations

import io
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vesalius.curation.basic_profile import ACTION_OF
from vesalius.curation.pseudonyms import Pseudonyms
from vesalius.data.decoders.dicom_file import silence
from vesalius.errors import ImageError, OutputError
from vesalius.extras import require

DONE = {"X/Z": "Z", "X/D": "D", "Z/D": "D", "X/Z/D": "D", "X/Z/U*": "U"}
"""Where the standard leaves a choice by the kind of object, what fits every kind is done."""

DUMMIES: dict[str, Any] = {
    "AE": "REMOVED",
    "AS": "000Y",
    "CS": "REMOVED",
    "DA": "19000101",
    "DS": "0",
    "DT": "19000101000000",
    "FD": 0.0,
    "FL": 0.0,
    "IS": "0",
    "LO": "REMOVED",
    "LT": "REMOVED",
    "PN": "REMOVED",
    "SH": "REMOVED",
    "SL": 0,
    "SS": 0,
    "ST": "REMOVED",
    "TM": "000000",
    "UC": "REMOVED",
    "UL": 0,
    "UR": "urn:removed",
    "US": 0,
    "UT": "REMOVED",
}
"""What stands in the place of a value, by its kind; of any other kind it is two bytes of 0."""

REMOVED_KINDS = ("AS", "DA", "DT", "LT", "PN", "ST", "TM", "UC", "UN", "UR", "UT")
"""Names, dates and free text that the table does not list are removed all the same."""

KEPT = (
    "LongCodeValue",
    "URNCodeValue",
    "PatientIdentityRemoved",
    "CodingSchemeUID",
    "ContextUID",
    "MappingResourceUID",
)
"""Attributes of those kinds, or UIDs, that name codes and no instance."""

STANDARD_UIDS = "1.2.840.10008."
DEEPEST = 16
"""Sequences in sequences; deeper ones are removed."""

WORDS = {"X": "removed", "Z": "emptied", "D": "replaced", "U": "renumbered", "K": "kept"}


def deidentify(dataset: Any, pseudonyms: Pseudonyms, patient: str) -> tuple[Any, Counter[str]]:
    """A copy of a pydicom Dataset by the basic profile, and how many attributes were removed, emptied, and so on.

    `patient` becomes name and id of the patient. UIDs are replaced by keyed ones, the same for the same UID, but for
    those that DICOM itself registered. Private attributes, curves, overlays and what the dictionary does not know go;
    so do names, dates, free text and particulars of the patient that the table leaves out. Sequences are entered.
    Pixels are as they were: what is written in them, or in comments of compressed frames, is not touched. Source:
    PS3.15 Table E.1-1.
    """
    pydicom = require("pydicom", "dicom", "DICOM files")
    done: Counter[str] = Counter()
    with silence():
        clean = _clean(dataset, pseudonyms, done, 0)
        clean.PatientName = clean.PatientID = patient
        clean.PatientIdentityRemoved = "YES"
        clean.DeidentificationMethod = (
            f"Basic Application Confidentiality Profile; Vesalius {version('vesalius')}"
        )
        code = pydicom.Dataset()
        code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
        code.CodeMeaning = "Basic Application Confidentiality Profile"
        clean.DeidentificationMethodCodeSequence = [code]
        clean.LongitudinalTemporalInformationModified = "REMOVED"
    return clean, done


def write_deidentified(source: Path, target: Path, pseudonyms: Pseudonyms, patient: str) -> Counter[str]:
    """Write a DICOM file by `deidentify`, its pixels untouched; returns what was done to how many attributes.

    Raises ImageError, which names no value of the file, where it cannot be read or written as DICOM; OutputError
    where the disk says no. The file is in memory as a whole.
    """
    pydicom = require("pydicom", "dicom", "DICOM files")
    try:
        with silence():
            dataset = pydicom.dcmread(source)
            clean, done = deidentify(dataset, pseudonyms, patient)
            clean.file_meta = pydicom.dataset.FileMetaDataset()
            clean.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
            clean.preamble = bytes(128)
            file = io.BytesIO()
            clean.save_as(file, enforce_file_format=True)
    except Exception as error:  # pydicom raises whatever its parser met, and quotes values
        raise ImageError(
            f"{source}: cannot be written again as DICOM ({type(error).__name__}); leave it out",
            code="damaged_file",
        ) from error
    try:
        target.write_bytes(file.getbuffer())
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from error
    return done


def _clean(dataset: Any, pseudonyms: Pseudonyms, done: Counter[str], depth: int) -> Any:
    clean = _empty()
    for tag in list(dataset.keys()):
        action = _action(tag, dataset)
        if action == "X":  # not even parsed
            done[WORDS[action]] += 1
            continue
        element = dataset[tag]
        inner = element.VR == "SQ" and action in ("K", "U")
        if inner and depth == DEEPEST:
            action = "X"
        done[WORDS[action]] += 1
        if inner and action != "X":
            items = [_clean(item, pseudonyms, done, depth + 1) for item in element.value]
            clean.add_new(tag, "SQ", items)
        elif action == "K":
            clean.add(element)
        elif action == "Z":
            clean.add_new(tag, element.VR, [] if element.VR == "SQ" else None)
        elif action != "X":
            # the table has one UID among its dummies, and what is no UID in spite of the table gets a dummy
            uid = element.VR == "UI"
            clean.add_new(
                tag, element.VR, _new_uids(element.value, pseudonyms) if uid else _dummy(element.VR)
            )
    return clean


def _empty() -> Any:
    return require("pydicom", "dicom", "DICOM files").Dataset()


def _action(tag: Any, dataset: Any) -> str:
    """X, Z, D, U or K: what becomes of an attribute."""
    datadict = require("pydicom.datadict", "dicom", "DICOM files")
    repeated = tag.group & 0xFF00 in (0x5000, 0x6000)  # curves and overlays
    if tag.is_private or repeated or tag.group < 0x0008 or tag.element == 0:  # of a group's length too
        return "X"
    if tag in ACTION_OF:
        return DONE.get(ACTION_OF[tag], ACTION_OF[tag])
    if tag.group == 0x0010 or not datadict.dictionary_has_tag(tag):
        return "X"
    kind = datadict.dictionary_VR(tag)
    kinds = kind.split(" or ")
    if dataset[tag].VR not in (kind, *kinds):  # what stands there is not what the dictionary speaks of
        return "X"
    if datadict.keyword_for_tag(tag) in KEPT:
        return "K"
    if kinds[0] in REMOVED_KINDS:
        return "X"
    return "U" if kinds == ["UI"] else "K"


def _new_uids(value: Any, pseudonyms: Pseudonyms) -> Any:
    if value is None or isinstance(value, str):
        return _new_uid(str(value or ""), pseudonyms)
    return [_new_uid(str(each), pseudonyms) for each in value]


def _new_uid(uid: str, pseudonyms: Pseudonyms) -> str:
    return pseudonyms.uid(uid) if uid and not uid.startswith(STANDARD_UIDS) else uid


def _dummy(kind: str) -> Any:
    return [_empty()] if kind == "SQ" else DUMMIES.get(kind, bytes(2))
