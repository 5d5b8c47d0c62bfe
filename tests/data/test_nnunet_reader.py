"""nnU-Net raw data: cases, labels, regions, and refused files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vesalius.data.dataset import load_item, open_dataset
from vesalius.data.readers import nnunet
from vesalius.data.source import Problems, Source
from vesalius.errors import AnnotationError, DataError
from vesalius.types import MaskFile, Sample

from ..codes import raises_code

LABELS = np.array([[0, 1, 1], [2, 0, 3]], dtype=np.uint8)
TOP = {
    "channel_names": {"0": "X-ray"},
    "labels": {"background": 0, "vessel": 1, "catheter": 2, "all": [1, 2, 3]},
    "numTraining": 2,
    "file_ending": ".png",
}


def make(root: Path, top: Any, ending: str = ".png") -> Path:
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(exist_ok=True)
    for case in ("case_1", "case_2"):
        Image.fromarray(np.zeros((2, 3, 3), dtype=np.uint8)).save(root / "imagesTr" / f"{case}_0000{ending}")
        Image.fromarray(LABELS if case == "case_1" else LABELS * 0).save(root / "labelsTr" / f"{case}{ending}")
    (root / "dataset.json").write_text(json.dumps(top))
    return root


def read(root: Path, problems: Problems = None) -> list[Sample]:
    assert nnunet.recognize(Source(root))
    return nnunet.read(Source(root), "", problems)


def test_every_label_is_a_prompt_of_every_case_and_a_region_is_its_values(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path, TOP))
    assert dataset.format == "nnunet"
    first, second = dataset.samples
    assert (first.id, second.id) == ("case_1", "case_2")
    assert first.image == tmp_path / "imagesTr" / "case_1_0000.png"
    assert first.group is None
    item = load_item(first)
    assert item.prompts == ("vessel", "catheter", "all") and item.masks is not None
    for mask, expected in zip(item.masks[:, 0], (LABELS == 1, LABELS == 2, LABELS > 0), strict=True):
        np.testing.assert_array_equal(mask, expected)
    nothing = load_item(second).masks
    assert nothing is not None and not nothing.any()


def test_the_file_itself_may_be_named_and_a_prompt_maps_all_labels_to_one(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path, TOP) / "dataset.json", prompt="anything")
    assert dataset.format == "nnunet"
    masks = load_item(dataset.samples[0]).masks
    assert dataset.samples[0].prompts == ("anything",) and masks is not None
    np.testing.assert_array_equal(masks[0, 0], LABELS > 0)


def test_version_1_names_labels_by_their_values(tmp_path: Path) -> None:
    top = {
        "labels": {"0": "background", "1": "vessel", "2": "b", "3": "c"},
        "modality": {"0": "X"},
        "file_ending": ".bmp",
    }
    first, _ = read(make(tmp_path, top, ".bmp"))
    mask = tmp_path / "labelsTr" / "case_1.bmp"
    assert first.prompts == ("vessel", "b", "c")
    assert first.masks == tuple((MaskFile(mask, (value,), (1, 2, 3)),) for value in (1, 2, 3))


def test_a_mask_value_of_no_label_is_refused_when_the_mask_is_read(tmp_path: Path) -> None:
    samples = read(make(tmp_path, TOP | {"labels": {"background": 0, "vessel": 1, "ignore": 3, "wire": 4}}))
    load_item(samples[1])
    with raises_code(AnnotationError, "unknown_mask_value", ": 2 (pixels: 1) and 1 more"):
        load_item(samples[0])


def test_notes_count_files_that_are_not_read(tmp_path: Path) -> None:
    make(tmp_path, TOP | {"labels": {"background": 0, "vessel": 1, "ignore": 3}})
    Image.new("L", (3, 2)).save(tmp_path / "imagesTs" / "x_0000.png")
    (tmp_path / "imagesTr" / "case_1_0000.json").touch()
    (tmp_path / "imagesTr" / ".hidden").touch()
    Image.new("L", (3, 2)).save(tmp_path / "imagesTr" / "loose.png")
    assert nnunet.notes(Source(tmp_path)) == [
        "imagesTs/ is not read, because it has no labels: 1 files",
        "not read in imagesTr/, because of their names: .json (1), .png (1)",
        "the label 'ignore' (3) marks pixels that are not annotated: images with it are rejected",
    ]


def test_cases_without_a_partner_and_with_several_channels_are_refused(tmp_path: Path) -> None:
    make(tmp_path, TOP | {"numTraining": 5})
    for name in ("imagesTr/case_2_0001.png", "imagesTr/case_3_0000.png", "labelsTr/case_4.png", "labelsTr/case_5.png"):
        Image.new("L", (3, 2)).save(tmp_path / name)
    Image.new("L", (3, 2)).save(tmp_path / "imagesTr" / "case_5_0002.png")
    problems: list[DataError] = []
    assert [sample.id for sample in read(tmp_path, problems)] == ["case_1"]
    expected = [
        ("separate_channels", "case_2_0001.png"),
        ("unpaired_file", "labelsTr/case_3.png"),
        ("unpaired_file", "imagesTr/case_4_0000.png"),
        ("separate_channels", "case_5_0002.png"),
    ]
    for problem, (code, file) in zip(problems, expected, strict=True):
        assert problem.code == code and file in str(problem)


def test_a_wrong_number_of_cases_is_refused(tmp_path: Path) -> None:
    with raises_code(AnnotationError, "case_count_mismatch", "is 3, but there are 2 cases") as caught:
        read(make(tmp_path, TOP | {"numTraining": 3}))
    assert (caught.value.path, caught.value.field) == (str(tmp_path / "dataset.json"), "numTraining")


@pytest.mark.parametrize(
    ("change", "code", "holds"),
    [
        ([], "bad_value", "a list"),
        ({"labels": None}, "invalid_labels", ""),
        ({"labels": {}}, "invalid_labels", ""),
        ({"labels": {"background": 0}}, "invalid_labels", "background"),
        ({"labels": {"background": 1, "vessel": 2}}, "invalid_labels", "background must be 0"),
        ({"labels": {"vessel": [0, 1]}}, "invalid_labels", "background must be 0"),
        ({"labels": {"vessel": []}}, "invalid_labels", "'vessel'"),
        ({"labels": {"vessel": True}}, "invalid_labels", "True"),
        ({"labels": {"vessel": -1}}, "invalid_labels", "-1"),
        ({"labels": {" ": 1}}, "invalid_labels", "' '"),
        ({"labels": {"9" * 5000: "vessel"}}, "invalid_labels", "'vessel'"),
        ({"file_ending": ".nii.gz"}, "unsupported_file_type", "'.nii.gz'"),
        ({"file_ending": 3}, "unsupported_file_type", "end in 3"),
        ({"file_ending": ".tif"}, "no_image", "CASE_0000.tif"),
        ({"dataset": {}}, "bad_value", "dataset"),
    ],
)
def test_a_wrong_dataset_json_is_refused(tmp_path: Path, change: Any, code: str, holds: str) -> None:
    top = TOP | change if isinstance(change, dict) else change
    with raises_code(AnnotationError, code, holds):
        read(make(tmp_path, top), [])


def test_without_a_stated_ending_the_files_are_those_of_version_1(tmp_path: Path) -> None:
    top = {key: value for key, value in TOP.items() if key != "file_ending"}
    with raises_code(AnnotationError, "unsupported_file_type", "'.nii.gz'"):
        read(make(tmp_path, top))


def test_other_folders_are_not_recognized(tmp_path: Path) -> None:
    assert not nnunet.recognize(Source(tmp_path))
    (tmp_path / "dataset.json").write_text("{}")
    assert not nnunet.recognize(Source(tmp_path))
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "other.json").write_text("{}")
    assert not nnunet.recognize(Source(tmp_path / "other.json"))
