import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes

from vesalius.data.readers.dicom_seg import read_segmentation
from vesalius.data.writers import dicom_seg
from vesalius.data.writers.dicom_seg import CONCEPTS, write_segmentation
from vesalius.errors import AnnotationError, DataError, ImageError, SettingError
from vesalius.masks import Rle, decode_rle, encode_rle

from ..codes import raises_code
from ..dicom_files import PATIENT, angiogram, read_masks

VALIDATOR = shutil.which("dciodvfy")
VESSEL, CATHETER = "blood vessel", "catheter"


def random_masks(seed: int, size: tuple[int, int], frames: list[int]) -> dict[int, Rle]:
    generator = np.random.default_rng(seed)
    return {frame: encode_rle(generator.random(size) > 0.6) for frame in frames}


def write_masks(path: Path, source: Path, segments: dict, **more: object) -> Path:
    write_segmentation(path, source, segments, series_description="Vesalius", algorithm="tiny", **more)
    return path


@pytest.mark.parametrize("n", [1, 7])
def test_a_segmentation_reads_back(n: int, tmp_path: Path) -> None:
    source = angiogram(tmp_path / "a.dcm", n)  # 143 pixels a frame: only the first frame begins at a byte border
    segments = {VESSEL: random_masks(0, (11, 13), list(range(n))), "导管": random_masks(1, (11, 13), [n - 1])}
    path = write_masks(tmp_path / "seg.dcm", source, segments)
    assert read_masks(path) == segments


@settings(max_examples=25)
@given(size=st.tuples(st.integers(1, 9), st.integers(1, 9)), n=st.integers(1, 4), seed=st.integers(0, 99))
def test_any_size_is_read_back(size, n, seed, tmp_path_factory) -> None:
    folder = tmp_path_factory.getbasetemp()
    source = angiogram(folder / "size.dcm", n, size)
    generator = np.random.default_rng(seed)
    masks = {frame: generator.random(size) > 0.5 for frame in range(n)}
    path = write_masks(folder / "seg.dcm", source, {VESSEL: {i: encode_rle(mask) for i, mask in masks.items()}})
    assert read_masks(path)[VESSEL] == {i: encode_rle(mask) for i, mask in masks.items() if mask.any()}


def test_empty_frames_are_not_stored_except_one_if_all_are_empty(tmp_path: Path) -> None:
    source = angiogram(tmp_path / "a.dcm", 4)
    nothing, full = (encode_rle(np.full((11, 13), value)) for value in (False, True))
    path = write_masks(tmp_path / "seg.dcm", source, {VESSEL: {0: nothing, 2: full}, CATHETER: {0: nothing}})
    assert read_masks(path) == {VESSEL: {2: full}, CATHETER: {}}
    assert pydicom.dcmread(path).NumberOfFrames == 1
    path = write_masks(tmp_path / "none.dcm", source, {VESSEL: {0: nothing}})
    assert read_masks(path) == {VESSEL: {}}
    assert pydicom.dcmread(path).NumberOfFrames == 1


def test_patient_and_study_are_those_of_the_source_in_utf_8(tmp_path: Path) -> None:
    source = angiogram(tmp_path / "a.dcm", 2, PatientName="Müller^Jürgen", StudyDescription="Koronarangiographie")
    path = write_masks(tmp_path / "seg.dcm", source, {VESSEL: random_masks(0, (11, 13), [1])}, unanswered=[0])
    made, tags = pydicom.dcmread(path), pydicom.dcmread(source)
    for keyword in ("PatientID", "StudyInstanceUID", "StudyDate", "StudyDescription"):
        assert made[keyword].value == tags[keyword].value
    assert str(made.PatientName) == "Müller^Jürgen"
    assert made.SeriesInstanceUID != tags.SeriesInstanceUID and made.SOPInstanceUID != tags.SOPInstanceUID
    reference = made.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert (reference.ReferencedSOPInstanceUID, reference.ReferencedFrameNumber) == (tags.SOPInstanceUID, 2)
    assert made.ImageComments.startswith("no prediction for 1 frames") and made.ImageComments.endswith(": 1")


def test_invalid_values_of_the_source_are_copied(tmp_path: Path) -> None:
    with pydicom.config.disable_value_validation():
        source = angiogram(tmp_path / "a.dcm", 1, PatientBirthDate="1.2.1950", PatientID="x" * 80)
    path = write_masks(tmp_path / "seg.dcm", source, {VESSEL: random_masks(0, (11, 13), [0])})
    with pydicom.config.disable_value_validation():
        assert pydicom.dcmread(path).PatientBirthDate == "1.2.1950"


def test_concepts_are_those_of_the_dictionary() -> None:
    known = {(code.value, code.scheme_designator): code.meaning.lower() for code in _all_codes()}
    pairs = [pair for pairs in (*CONCEPTS.values(), dicom_seg.UNKNOWN) for pair in pairs]
    for value, scheme, meaning in (*pairs, dicom_seg.SOURCE_IMAGE):
        assert known[value, scheme] == meaning.lower()


def _all_codes() -> list:
    names = (
        "BloodVessel Artery Vein CoronaryArtery LeftCoronaryArtery RightCoronaryArtery Aorta Catheter GuideWire Stent"
    )
    names += " Stenosis Aneurysm AnatomicalStructure PhysicalObject MorphologicallyAbnormalStructure"
    found = [getattr(codes.SCT, name) for name in (names + " SpatialAndRelationalConcept").split()]
    return [*found, codes.DCM.SelectedRegion, codes.DCM.SourceImageForImageProcessingOperation]


@pytest.mark.parametrize("phrase", ["x" * 65, "a\\b", "two\nlines"])
def test_an_invalid_segment_label_is_refused(phrase: str, tmp_path: Path) -> None:
    source = angiogram(tmp_path / "a.dcm", 1)
    with raises_code(SettingError, "bad_value"):
        write_masks(tmp_path / "seg.dcm", source, {phrase: {}})
    assert not (tmp_path / "seg.dcm").exists()


def test_masks_that_do_not_fit_and_sources_without_uid_are_refused(tmp_path: Path) -> None:
    source = angiogram(tmp_path / "a.dcm", 2)
    for masks in (random_masks(0, (11, 13), [2]), random_masks(0, (11, 12), [0])):
        with pytest.raises(ValueError, match="does not fit 2 frames"):
            write_masks(tmp_path / "seg.dcm", source, {VESSEL: masks})
    without_study = angiogram(tmp_path / "b.dcm", 1, StudyInstanceUID=None)
    with raises_code(ImageError, "missing_tag", "StudyInstanceUID"):
        dicom_seg.check_source(without_study)


def test_other_segmentations_are_refused(tmp_path: Path) -> None:
    source = angiogram(tmp_path / "a.dcm", 2)
    path = write_masks(tmp_path / "seg.dcm", source, {VESSEL: random_masks(0, (11, 13), [0, 1])})
    with raises_code(AnnotationError, "unsupported_segmentation"):
        read_segmentation(source)

    def changed(change) -> Path:
        tags = pydicom.dcmread(path)
        change(tags)
        tags.save_as(tmp_path / "changed.dcm")
        return tmp_path / "changed.dcm"

    for change, code, field in (
        (lambda tags: setattr(tags, "SegmentationType", "FRACTIONAL"), "unsupported_segmentation", None),
        (lambda tags: setattr(tags, "NumberOfFrames", 9), "unsupported_segmentation", None),
        (lambda tags: setattr(tags, "Rows", 900), "truncated_file", None),
        (lambda tags: setattr(tags.SegmentSequence[0], "SegmentLabel", ""), "no_phrase", None),
        (lambda tags: setattr(tags.SegmentSequence[0], "SegmentNumber", 5), "unsupported_segmentation", "frame 0"),
        (
            lambda tags: tags.PerFrameFunctionalGroupsSequence[1].pop("DerivationImageSequence"),
            "unsupported_segmentation",
            "frame 1",
        ),
    ):
        with raises_code(AnnotationError, code) as caught:
            read_segmentation(changed(change))
        assert caught.value.field == field


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_segmentation_gives_a_data_error(data: st.DataObject, tmp_path_factory) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = folder / "whole.dcm"
    if not whole.exists():
        source = angiogram(folder / "source.dcm", 3)
        write_masks(whole, source, {VESSEL: random_masks(0, (11, 13), [0, 2])})
    content = bytearray(whole.read_bytes())
    at = st.integers(0, len(content) - 1)
    for offset, value in data.draw(st.lists(st.tuples(at, st.integers(0, 255)), min_size=1, max_size=8)):
        content[offset] = value
    (folder / "damaged.dcm").write_bytes(content[: data.draw(st.just(len(content)) | at)])
    try:
        for segment in read_segmentation(folder / "damaged.dcm").segments:
            for rle in segment.masks.values():
                decode_rle(rle)
    except DataError as error:
        assert PATIENT.split("^")[0] not in str(error)


@pytest.mark.parametrize("n", [1, 5])
def test_dciodvfy_finds_no_error(n: int, tmp_path: Path) -> None:
    if VALIDATOR is None:
        pytest.skip("dciodvfy is not installed (apt-get install dicom3tools): no DICOM segmentation was validated")
    source = angiogram(tmp_path / "a.dcm", n)
    segments = {VESSEL: random_masks(0, (11, 13), list(range(0, n, 2))), "导管": random_masks(1, (11, 13), [0])}
    path = write_masks(tmp_path / "seg.dcm", source, segments, unanswered=list(range(1, n, 2)))
    done = subprocess.run([VALIDATOR, "-new", str(path)], capture_output=True, text=True, check=False)
    assert (done.stdout + done.stderr).split("\n") == ["Segmentation", ""]
    # control: it reports an object without its segmentation type
    tags = pydicom.dcmread(path)
    del tags.SegmentationType
    tags.save_as(path)
    done = subprocess.run([VALIDATOR, "-new", str(path)], capture_output=True, text=True, check=False)
    assert "Error" in done.stderr
