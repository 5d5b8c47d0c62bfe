"""De-identify DICOM headers by the basic application level confidentiality profile of PS3.15, Annex E.

The table of attributes (E.1-1, edition 2026c) comes from `dicom-anonymizer`. Its processing is not used, because it keeps
attributes that the table does not list, and assigns random instead of keyed UIDs.
"""

from __future__ import annotations

import io
from collections import Counter
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vesalius.curation.pseudonyms import Pseudonyms
from vesalius.data.decoders.dicom_file import silence
from vesalius.errors import ImageError, OutputError
from vesalius.extras import require

CATEGORIES = dict(zip("X Z D U X_Z X_D Z_D X_Z_D X_Z_U_STAR".split(), "XZDUZDDDU", strict=True))
"""Action of the standard, as `dicom-anonymizer` names it -> action applied: X removes, Z empties, D replaces by a dummy
value, U by a new UID. Of alternatives by type of object, such as X/Z, the one that is valid for all types is applied."""

DUMMIES: dict[str, Any] = {
    **dict.fromkeys("AE CS LO LT PN SH ST UC UT".split(), "REMOVED"),
    **dict.fromkeys("SL SS UL US".split(), 0),
    **{"AS": "000Y", "DA": "19000101", "DT": "19000101000000", "TM": "000000"},
    **{"DS": "0", "IS": "0", "FD": 0.0, "FL": 0.0, "UR": "urn:removed"},
}
"""Value representation -> dummy value; two zero bytes for any other representation."""

REMOVED_VRS = ("AS", "DA", "DT", "LT", "PN", "ST", "TM", "UC", "UN", "UR", "UT")
"""Value representations of names, dates and free text; attributes of these are removed even if the table lacks them."""

KEPT = "LongCodeValue URNCodeValue PatientIdentityRemoved CodingSchemeUID ContextUID MappingResourceUID".split()
"""Attributes that are kept despite their representation, because they identify codes and not instances."""

STANDARD_UIDS = "1.2.840.10008."
MAX_DEPTH = 16
"""Maximum nesting depth of sequences; deeper ones are removed."""

WORDS = {"X": "removed", "Z": "emptied", "D": "replaced", "U": "renumbered", "K": "kept"}


@cache
def profile_actions() -> dict[int, str]:
    """Tag -> action X, Z, D or U, for the 652 rows of Table E.1-1 with a single tag.

    The other rows cover ranges of tags: curves (50xx), overlays (60xx) and private attributes, all of which `deidentify`
    removes. MissingExtraError without the extra `dicom`.
    """
    table = require("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c", "dicom", "DICOM files")
    return {
        tag[0] << 16 | tag[1]: action
        for category, action in CATEGORIES.items()
        for tag in getattr(table, f"{category}_TAGS")
        if len(tag) == 2
    }


def deidentify(dataset: Any, pseudonyms: Pseudonyms, patient: str) -> tuple[Any, Counter[str]]:
    """(copy of a pydicom Dataset, de-identified by the basic profile; number of attributes for each action).

    `patient` becomes name and id of the patient. UIDs are replaced by keyed UIDs, equal for equal UIDs, except those
    registered by DICOM itself. Private attributes, curves, overlays and attributes unknown to the dictionary are
    removed, and so are names, dates, free text and attributes of the patient (group 0010) that the table does not
    list. Sequences are processed recursively. Pixel data are unchanged, including burned-in text and comments within
    compressed frames. Source: PS3.15 Table E.1-1.
    """
    pydicom = require("pydicom", "dicom", "DICOM files")
    done: Counter[str] = Counter()
    with silence():
        clean = _clean(dataset, pseudonyms, done, 0)
        clean.PatientName = clean.PatientID = patient
        clean.PatientIdentityRemoved = "YES"
        clean.DeidentificationMethod = f"Basic Application Confidentiality Profile; Vesalius {version('vesalius')}"
        code = pydicom.Dataset()
        code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
        code.CodeMeaning = "Basic Application Confidentiality Profile"
        clean.DeidentificationMethodCodeSequence = [code]
        clean.LongitudinalTemporalInformationModified = "REMOVED"
    return clean, done


def write_deidentified(source: Path, target: Path, pseudonyms: Pseudonyms, patient: str) -> Counter[str]:
    """Write a de-identified DICOM file with unchanged pixels; returns the number of attributes for each action.

    Raises ImageError, which quotes no value of the file, if it cannot be read or written as DICOM; OutputError if
    writing fails. The whole file is held in memory.
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
    except Exception as error:  # pydicom may raise any exception, with values in its message
        raise ImageError(
            f"{source}: cannot be rewritten as DICOM ({type(error).__name__}); exclude it", code="damaged_file"
        ) from error
    try:
        target.write_bytes(file.getbuffer())
    except OSError as error:
        raise OutputError.at(target, f"cannot be written ({error.strerror})", code="write_failed") from error
    return done


def _clean(dataset: Any, pseudonyms: Pseudonyms, done: Counter[str], depth: int) -> Any:
    clean = _empty()
    for tag in list(dataset.keys()):
        action = _action(tag, dataset)
        if action == "X":  # removed without parsing the value
            done[WORDS[action]] += 1
            continue
        element = dataset[tag]
        inner = element.VR == "SQ" and action in ("K", "U")
        if inner and depth == MAX_DEPTH:
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
            # D or U by representation: the table has UIDs with action D, and a file may have a U that is not a UID
            new = _new_uids(element.value, pseudonyms) if element.VR == "UI" else _dummy(element.VR)
            clean.add_new(tag, element.VR, new)
    return clean


def _empty() -> Any:
    return require("pydicom", "dicom", "DICOM files").Dataset()


def _action(tag: Any, dataset: Any) -> str:
    """Action for an attribute: X, Z, D, U (see `CATEGORIES`), or K to keep it."""
    datadict = require("pydicom.datadict", "dicom", "DICOM files")
    repeated = tag.group & 0xFF00 in (0x5000, 0x6000)  # curves and overlays
    if tag.is_private or repeated or tag.group < 0x0008 or tag.element == 0:  # element 0: group length
        return "X"
    if tag in profile_actions():
        return profile_actions()[tag]
    if tag.group == 0x0010 or not datadict.dictionary_has_tag(tag):
        return "X"
    stated = datadict.dictionary_VR(tag)
    vrs = stated.split(" or ")
    if dataset[tag].VR not in (stated, *vrs):  # the representation contradicts the dictionary
        return "X"
    if datadict.keyword_for_tag(tag) in KEPT:
        return "K"
    if vrs[0] in REMOVED_VRS:
        return "X"
    return "U" if vrs == ["UI"] else "K"


def _new_uids(value: Any, pseudonyms: Pseudonyms) -> Any:
    if value is None or isinstance(value, str):
        return _new_uid(str(value or ""), pseudonyms)
    return [_new_uid(str(each), pseudonyms) for each in value]


def _new_uid(uid: str, pseudonyms: Pseudonyms) -> str:
    return pseudonyms.uid(uid) if uid and not uid.startswith(STANDARD_UIDS) else uid


def _dummy(vr: str) -> Any:
    return [_empty()] if vr == "SQ" else DUMMIES.get(vr, bytes(2))
