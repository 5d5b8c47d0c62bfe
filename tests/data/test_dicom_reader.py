import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vesalius.data.dataset import load_item, open_dataset
from vesalius.data.formats import FORMATS
from vesalius.data.readers import dicom
from vesalius.data.source import Source
from vesalius.data.writers.dicom_seg import write_segmentation
from vesalius.errors import AnnotationError, DataError, ImageError
from vesalius.masks import encode_rle
from vesalius.types import Absent, RleMask

from ..codes import raises_code
from ..dicom_files import PATIENT, write_report, write_xa

GROUP = "patient-4523540f1504"
"""The first 12 figures of the SHA-256 of `17`."""


def angiogram(path: Path, n: int = 1, **tags: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_xa(path, np.full((n, 6, 8), 7, dtype=np.uint8), **tags)


def mark(path: Path, source: Path, **frames: list[int]) -> np.ndarray:
    """Write a segmentation with the same mask in all frames of `label=frames`, and return the mask."""
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:4, 1:7] = True
    segments = {label: dict.fromkeys(each, encode_rle(mask)) for label, each in frames.items()}
    write_segmentation(path, source, segments, series_description="Vesalius", algorithm="tiny")
    return mask


def test_files_of_any_name_are_found_and_patients_are_pseudonyms(tmp_path: Path) -> None:
    angiogram(tmp_path / "a" / "run", 2)
    other = {"SOPInstanceUID": "1.2.5", "SeriesInstanceUID": "1.2.6", "StudyInstanceUID": "1.2.7"}
    angiogram(tmp_path / "1.2.840.1", **other, PatientID="18")
    data = open_dataset(tmp_path)
    assert data.format == "dicom"
    assert [sample.id for sample in data.samples] == ["1.2.840.1", "a__run__0000", "a__run__0001"]
    single, first, second = data.samples
    assert single.frame is None and single.sequence is None
    assert (first.frame, second.frame) == (0, 1)
    assert first.sequence == second.sequence and first.sequence.startswith(first.metadata["SeriesInstanceUID"] + "-")
    assert first.group == second.group == first.metadata["PatientID"] == GROUP != single.group
    assert (first.size, first.spacing_mm, first.metadata["frame_time_ms"]) == ((6, 8), (0.25, 0.25), 66.7)
    assert first.masks is None and first.prompts == ()
    assert load_item(second).frames.shape == (1, 6, 8, 3)
    assert PATIENT not in repr(data) and "1.2.3.4" not in repr(data)
    by_study = open_dataset(tmp_path, group="StudyInstanceUID")
    assert [each.group for each in by_study.samples] == [each.metadata["StudyInstanceUID"] for each in data.samples]


def test_files_of_a_series_come_by_instance_number(tmp_path: Path) -> None:
    for name, number in (("a", 10), ("b", 9), ("c", 1)):
        angiogram(tmp_path / f"{name}.dcm", SOPInstanceUID=f"1.2.{number}", InstanceNumber=number)
    samples = open_dataset(tmp_path).samples
    assert [sample.id for sample in samples] == ["c", "b", "a"]
    assert {sample.sequence for sample in samples} == {samples[0].metadata["SeriesInstanceUID"]}


def test_without_patient_the_study_is_the_group(tmp_path: Path) -> None:
    angiogram(tmp_path / "a.dcm", PatientID="")
    data = open_dataset(tmp_path / "a.dcm")
    assert data.samples[0].group == data.samples[0].metadata["StudyInstanceUID"]
    assert "PatientID" not in data.samples[0].metadata
    assert "images without PatientID, grouped by study or series: 1" in data.notes


def test_files_of_one_patient_study_or_series_are_one_group(tmp_path: Path) -> None:
    for name, patient, study, series in (
        ("a", "17", "1.1", "1.1.1"),
        ("b", "", "1.1", "1.1.2"),  # by the study of a
        ("c", "", "", "1.1.2"),  # by the series of b
        ("d", "18", "1.2", "1.2.1"),
        ("e", "18", "1.1", "1.1.3"),  # two numbers of one person: nothing tells them apart
        ("f", "", "1.4", "1.4.1"),
        ("g", "", "1.4", "1.4.2"),
    ):
        tags = {"PatientID": patient, "StudyInstanceUID": study, "SeriesInstanceUID": series}
        angiogram(tmp_path / f"{name}.dcm", SOPInstanceUID=f"1.9.{ord(name)}", **tags)
    data = open_dataset(tmp_path)
    groups = {sample.id: sample.group for sample in data.samples}
    assert {groups[name] for name in "abcde"} == {GROUP}
    assert groups["f"] == groups["g"] == dicom.pseudonym("study", "1.4")
    assert any(note.endswith("each set read as one group: 2") for note in data.notes)


def test_an_unreadable_file_or_folder_is_reported(tmp_path: Path) -> None:
    angiogram(tmp_path / "a.dcm")
    (tmp_path / "b.dcm").symlink_to(tmp_path / "nowhere")
    with raises_code(ImageError, "unreadable_file", "b.dcm", "No such file"):
        open_dataset(tmp_path)
    problems: list[DataError] = []
    assert len(dicom.read(Source(tmp_path), "", problems)) == len(problems) == 1
    (tmp_path / "b.dcm").unlink()
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o000)
    try:
        if os.access(locked, os.R_OK):
            pytest.skip("this user may read locked folders (root)")
        with raises_code(ImageError, "unreadable_file", "locked"):
            open_dataset(tmp_path)
    finally:
        locked.chmod(0o700)


def test_segmentations_beside_images_are_their_masks(tmp_path: Path) -> None:
    cine = angiogram(tmp_path / "cine.dcm", 3)
    angiogram(tmp_path / "other.dcm", SOPInstanceUID="1.2.5")
    mask = mark(tmp_path / "seg", cine, vessel=[0, 2], catheter=[2])
    data = open_dataset(tmp_path)
    samples = {sample.id: sample for sample in data.samples}
    assert samples["other"].masks is None and samples["other"].prompts == ()
    for frame, (vessel, catheter) in enumerate([(True, False), (False, False), (True, True)]):
        sample = samples[f"cine__{frame:04d}"]
        assert sample.prompts == ("vessel", "catheter")
        kinds = [RleMask if there else Absent for there in (vessel, catheter)]
        assert [type(objects[0]) for objects in sample.masks] == kinds
        np.testing.assert_array_equal(load_item(sample).masks[:, 0], [mask & vessel, mask & catheter])
    assert "DICOM segmentations: 1" in data.notes


def test_two_segmentations_of_one_image_are_united_by_phrase(tmp_path: Path) -> None:
    cine = angiogram(tmp_path / "cine.dcm", 2)
    mark(tmp_path / "a.seg", cine, vessel=[0])
    mark(tmp_path / "b.seg", cine, vessel=[1], catheter=[])
    data = open_dataset(tmp_path)
    assert [sample.prompts for sample in data.samples] == [("vessel", "catheter")] * 2
    assert [[type(each[0]) for each in sample.masks] for sample in data.samples] == [[RleMask, Absent]] * 2


def test_notes_count_other_files(tmp_path: Path) -> None:
    angiogram(tmp_path / "cine.dcm", 3)
    write_report(tmp_path / "state.dcm")
    write_report(tmp_path / "report.dcm", "1.2.840.10008.5.1.4.1.1.88.22")
    write_report(tmp_path / "DICOMDIR", "1.2.840.10008.1.3.10")
    write_report(tmp_path / "ecg", "1.2.840.10008.5.1.4.1.1.9.1.1")
    Image.new("L", (3, 3)).save(tmp_path / "screen.png")
    (tmp_path / "readme.txt").write_text("x" * 200)
    (tmp_path / ".hidden").write_text("x")
    notes = dicom.notes(Source(tmp_path))
    assert notes[0] == "DICOM images: 1, with 3 frames"
    ignored = "files that are not DICOM (2), directories (1), other objects without an image (1), "
    assert notes[1] == f"ignored: {ignored}reports (1), presentation states (1)"
    assert notes[2].startswith("images with detector spacing (ImagerPixelSpacing)") and notes[2].endswith(": 1")


def test_errors_of_files_are_collected_or_raised(tmp_path: Path) -> None:
    cine = angiogram(tmp_path / "cine.dcm", 2)
    (tmp_path / "cut.dcm").write_bytes(cine.read_bytes()[:-30])
    (tmp_path / "copy").write_bytes(cine.read_bytes())
    elsewhere = angiogram(tmp_path.parent / f"{tmp_path.name}-elsewhere" / "x.dcm", SOPInstanceUID="1.2.7")
    mark(tmp_path / "lost.seg", elsewhere, vessel=[0])
    whole = tmp_path / "part.seg"
    mark(whole, cine, vessel=[0])
    whole.write_bytes(whole.read_bytes()[:-3])
    problems: list[DataError] = []
    samples = dicom.read(Source(tmp_path), "", problems)
    assert [sample.id for sample in samples] == ["cine__0000", "cine__0001"]
    found = {problem.code: problem for problem in problems}
    assert sorted(each.code for each in problems) == [
        "duplicate_instance",
        "missing_image",
        "truncated_file",
        "truncated_file",
    ]
    assert found["duplicate_instance"].path == str(tmp_path / "copy")
    assert ": 1 of the segmented images" in str(found["missing_image"])
    with pytest.raises(ImageError):
        dicom.read(Source(tmp_path))


def test_equal_ids_are_a_problem(tmp_path: Path) -> None:
    angiogram(tmp_path / "a.dcm")
    angiogram(tmp_path / "a", SOPInstanceUID="1.2.5")
    with raises_code(AnnotationError, "duplicate_id", "id a as"):
        dicom.read(Source(tmp_path))


def test_annotations_of_other_formats_come_first(tmp_path: Path) -> None:
    angiogram(tmp_path / "images" / "a.dcm")
    (tmp_path / "annotations.json").write_text('[{"image": "a.dcm", "mask": [null], "text": ["vessel"]}]')
    data = open_dataset(tmp_path)
    assert data.format == "vesalius"
    assert load_item(data.samples[0]).frames.shape == (1, 6, 8, 3)


def test_folders_without_a_dicom_image_are_not_recognized(tmp_path: Path) -> None:
    write_report(tmp_path / "state.dcm")
    (tmp_path / "b.dcm").write_text("no")
    assert not dicom.recognize(Source(tmp_path))
    assert list(FORMATS).index("dicom") > list(FORMATS).index("maskfolder")
