"""DICOM headers by the basic profile: nobody is named, and the file still is the image that it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.tag import Tag

from vesalius.curation.basic_profile import ACTION_OF, ATTRIBUTES
from vesalius.curation.dicom_deidentification import (
    DONE,
    DUMMIES,
    KEPT,
    REMOVED_KINDS,
    deidentify,
    write_deidentified,
)
from vesalius.curation.pseudonyms import Pseudonyms
from vesalius.data.decoders import dicom_image as dicom
from vesalius.errors import ImageError, OutputError

from ..dicom_files import SYNTAXES, make_xa, write_xa

KEY = Pseudonyms(bytes(32))
NAME = "Vogelweide"
FRAMES = np.arange(2 * 64 * 72, dtype=np.uint8).reshape(2, 64, 72)
TEXT = ("LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")


def planted(vr: str) -> object:
    """A value of that kind which has the name in it, or is as good as one."""
    if vr in TEXT:
        return NAME[:16]
    if vr in ("CS", "AE"):
        return NAME.upper()
    values = {
        "DS": "1951.0429",
        "IS": "19510429",
        "US": 1951,
        "DA": "19510429",
        "TM": "040506",
        "DT": "19510429040506",
        "AS": "072Y",
        "UI": "1.2.826.1951.429",
    }
    return values.get(vr, NAME.encode())


def is_clean(dataset: Dataset) -> bool:
    text = f"{dataset}\n{dataset.to_json(suppress_invalid_tags=True)}"
    return not any(
        word in text
        for word in (NAME, NAME.upper(), "1951.0429", "19510429", "040506", "072Y", "1.2.826.1951.429")
    )


def test_the_table_is_that_of_the_standard() -> None:
    # rows of Table E.1-1 in the edition 2026c, less the four that name no single tag; counts by action
    counts = {action: sum(action == each for each in ACTION_OF.values()) for action in ATTRIBUTES}
    assert counts == {
        "X": 412, "Z": 42, "D": 93, "U": 55, "X/Z": 11, "X/D": 23, "Z/D": 6, "X/Z/D": 8, "X/Z/U*": 2,
    }  # fmt: skip
    assert sum(len(lines.split()) for lines in ATTRIBUTES.values()) > len(ACTION_OF) == 652
    assert ACTION_OF[0x00100010] == "Z" and ACTION_OF[0x00080018] == "U" and ACTION_OF[0x0008103E] == "X"


@pytest.mark.parametrize("action", ATTRIBUTES)
def test_every_attribute_of_the_table_loses_its_value(action: str) -> None:
    inner = Dataset()
    inner.PatientComments = inner.TextValue = NAME
    dataset = Dataset()
    for tag in (
        tag
        for tag, each in ACTION_OF.items()
        if each == action and tag in DicomDictionary and tag >= 0x00080000
    ):
        vr = dictionary_VR(tag).split(" or ")[0]
        dataset.add_new(tag, vr, [inner] if vr == "SQ" else planted(vr))
    clean, _ = deidentify(dataset, KEY, "p1")
    assert is_clean(clean)
    kept = {element.tag for element in clean} & {element.tag for element in dataset} - {
        0x00100010,
        0x00100020,
    }
    does = DONE.get(action, action)
    assert len(kept) == (
        0 if does == "X" else len(dataset) - ("PatientName" in dataset) - ("PatientID" in dataset)
    )
    assert all(clean[tag].is_empty == (does == "Z") for tag in kept)


@pytest.mark.parametrize("vr", [*TEXT, "AE", "CS", "DA", "TM", "DT", "AS", "UI"])
def test_what_names_somebody_beyond_the_table_is_gone_too(vr: str) -> None:
    """Of the whole dictionary: names, dates and free text of any attribute; the kinds for codes and labels stay."""
    dataset = Dataset()
    for tag, (kind, *_rest) in DicomDictionary.items():
        if kind == vr and Tag(tag).group >= 0x0008 and tag not in ACTION_OF:
            dataset.add_new(tag, vr, planted(vr))
    clean, done = deidentify(dataset, KEY, "p1")
    if vr in REMOVED_KINDS or vr == "UI":
        kept = [element.keyword for element in clean if str(planted(vr)) in str(element.value)]
        assert set(kept) <= set(KEPT)
    assert not [element for element in clean if element.tag.group == 0x0010 and element.value != "p1"]
    assert sum(done.values()) == len(dataset)


def test_private_unknown_overlay_and_misdeclared_attributes_go() -> None:
    dataset = Dataset()
    block = dataset.private_block(0x0019, "VENDOR", create=True)
    block.add_new(0x01, "LO", NAME)
    for tag, vr in (
        (0x00091001, "UN"),
        (0x00180002, "LO"),
        (0x60003000, "OB"),
        (0x60004000, "LT"),
        (0x50000020, "CS"),
    ):
        dataset.add_new(tag, vr, planted(vr) if vr != "OB" else NAME.encode())
    dataset.add_new(0x00181063, "LO", NAME)  # FrameTime is a number
    dataset.add_new(0x0008010C, "LT", NAME)  # CodingSchemeUID is a UID
    clean, done = deidentify(dataset, KEY, "p1")
    assert is_clean(clean)
    assert done == {"removed": len(dataset)}


def test_sequences_are_entered_to_any_depth_that_is_kept() -> None:
    deepest = inner = Dataset()
    for _ in range(40):
        inner.PatientName = NAME
        inner.SeriesNumber = 3
        inner.ReferencedSOPInstanceUID = "1.2.826.1951.429"
        outer = Dataset()
        outer.ReferencedImageSequence = [inner]
        inner = outer
    clean, _ = deidentify(inner, KEY, "p1")
    assert is_clean(clean)
    item, depth = clean, 0
    while "ReferencedImageSequence" in item:
        item, depth = item.ReferencedImageSequence[0], depth + 1
        assert item.ReferencedSOPInstanceUID == KEY.uid("1.2.826.1951.429")
    assert 2 < depth < 40
    assert NAME in str(deepest)  # the original is as it was


def test_uids_of_the_standard_stay_and_all_others_change_alike_everywhere() -> None:
    one, two = make_xa(FRAMES), make_xa(FRAMES, SOPInstanceUID="1.2.3.4.9")
    first, second = (deidentify(each, KEY, "p1")[0] for each in (one, two))
    assert first.SOPClassUID == one.SOPClassUID
    assert first.StudyInstanceUID == second.StudyInstanceUID == KEY.uid("1.2.3.4.2")
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert deidentify(one, Pseudonyms(bytes(31) + b"x"), "p1")[0].StudyInstanceUID != first.StudyInstanceUID


def test_the_header_says_how_it_was_done() -> None:
    clean, _ = deidentify(make_xa(FRAMES), KEY, "p7")
    assert (clean.PatientName, clean.PatientID) == ("p7", "p7")
    assert clean.PatientIdentityRemoved == "YES"
    assert clean.LongitudinalTemporalInformationModified == "REMOVED"
    assert clean.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert all(clean[name].is_empty for name in ("StudyDate", "StudyID", "AccessionNumber"))
    assert (clean.Modality, float(clean.FrameTime)) == ("XA", 66.7)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_file_opens_again_with_the_same_pixels(tmp_path: Path, syntax: str) -> None:
    source = write_xa(tmp_path / "a.dcm", FRAMES, syntax, PatientComments=NAME, InstitutionName=NAME)
    data = bytearray(source.read_bytes())
    data[:10] = NAME.encode()  # the preamble is anybody's
    source.write_bytes(data)
    target = tmp_path / "b.dcm"
    write_deidentified(source, target, KEY, "p1")
    assert NAME.encode() not in target.read_bytes()
    assert b"Vogel" not in target.read_bytes()
    for frame in range(2):
        np.testing.assert_array_equal(dicom.read_frame(target, frame), dicom.read_frame(source, frame))
    before, after = dcmread(source), dcmread(target)
    assert after.PixelData == before.PixelData
    assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID != before.SOPInstanceUID
    assert all(after[name].value == "REMOVED" for name in dicom.read_facts(target).personal_tags)


def test_a_full_disk_and_a_damaged_file_are_told_apart(tmp_path: Path) -> None:
    source = write_xa(tmp_path / "a.dcm", FRAMES)
    with pytest.raises(OutputError, match="No such file"):
        write_deidentified(source, tmp_path / "none" / "b.dcm", KEY, "p1")
    source.write_bytes(source.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"a\.dcm: cannot be written again"):
        write_deidentified(source, tmp_path / "b.dcm", KEY, "p1")
    assert not (tmp_path / "b.dcm").exists()


@settings(max_examples=30)
@given(
    st.sets(
        st.one_of(st.integers(0x00080001, 0x7FDF0000), st.sampled_from(sorted(DicomDictionary))), max_size=15
    )
)
def test_text_stays_only_where_the_dictionary_has_short_text_and_the_table_has_nothing(
    tags: set[int],
) -> None:
    dataset = Dataset()
    for tag in tags:
        if Tag(tag).group >= 0x0008:
            dataset.add_new(tag, "LO", NAME)
    clean, done = deidentify(dataset, KEY, "p1")
    assert sum(done.values()) == len(dataset)
    for element in clean:
        if element.value == NAME:
            assert element.tag not in ACTION_OF and dictionary_VR(element.tag) == "LO"


def test_dummies_fit_their_kind() -> None:
    dataset = Dataset()
    for tag, action in ACTION_OF.items():
        vr = dictionary_VR(tag) if tag in DicomDictionary else "LO"
        if DONE.get(action, action) == "D" and vr in DUMMIES:
            dataset.add_new(tag, vr, DUMMIES[vr])
    assert len(dataset) > 100
    assert dataset.to_json()
