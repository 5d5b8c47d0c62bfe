"""Groups of samples by field, DICOM attribute, folder or regular expression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.codes import raises_code
from tests.dicom_files import write_xa

from vesalius.data.grouping import group_of, regroup
from vesalius.data.readers.dicom import pseudonym
from vesalius.errors import ImageError, SettingError
from vesalius.types import Location, Sample

BLANK = np.zeros((1, 2, 2), np.uint8)


def sample(name: str, image: str | Path = "x.png", **more: Any) -> Sample:
    return Sample(name, Path(image), (), None, source=Location(Path("file"), name), **more)


def groups(samples: list[Sample], group: str) -> list[str | None]:
    return [each.group for each in regroup(samples, group)]


def test_a_field_of_the_annotations_names_the_group() -> None:
    samples = [sample("a", metadata={"patient": "p1"}), sample("b", metadata={"patient": 2})]
    assert groups(samples, "patient") == ["p1", "2"]
    assert groups([sample("a", group="g", sequence="s")], "group") == ["g"]
    assert groups([sample("a", group="g", sequence="s")], "sequence") == ["s"]


@pytest.mark.parametrize("value", [None, "", True, 1.5, ["p"]])
def test_a_field_without_a_name_for_one_sample_is_refused(value: object) -> None:
    samples = [sample("a", metadata={"patient": "p1"}), sample("b", metadata={"patient": value})]
    with raises_code(SettingError, "missing_group", "file, b", "patient"):
        regroup(samples, "patient")


def test_a_group_without_such_a_field_is_a_regular_expression_on_the_id() -> None:
    assert groups([sample("p1_001"), sample("p1_002"), sample("p2_001")], r"(p\d+)_") == ["p1", "p1", "p2"]
    for group, code, holds in (
        ("(", "invalid_group", "("),
        ("patient", "invalid_group", "(fields: k)"),
        (r"_(x)", "missing_group", "'p1_001'"),
    ):
        with raises_code(SettingError, code, holds):
            regroup([sample("p1_001", metadata={"k": 1})], group)


def test_folder_groups_by_the_folder_of_the_image() -> None:
    samples = [sample(name, f"/data/in/{name}.png") for name in ("p1/cine/1", "p1/cine/2", "p2/1")]
    assert groups(samples, "folder") == ["p1/cine", "p1/cine", "p2"]
    assert groups([sample("a", "in/p1/a.png"), sample("b", "in/p1/b.png")], "folder") == ["p1", "p1"]
    assert groups([sample("a", "in/a.png"), sample("b", "in/p1/b.png")], "folder") == ["in", "p1"]


def test_a_field_named_folder_has_precedence() -> None:
    assert groups([sample("a", "in/p1/a.png", metadata={"folder": "ward"})], "folder") == ["ward"]


def test_a_sample_without_a_group_is_its_own() -> None:
    assert (group_of(sample("a")), group_of(sample("a", group="g"))) == ("a", "g")


def test_a_dicom_attribute_is_read_from_the_files(tmp_path: Path) -> None:
    paths = [write_xa(tmp_path / f"{i}.dcm", BLANK, PatientID=f"P{i // 2}", SeriesInstanceUID=None) for i in range(3)]
    samples = [sample(f"{path.stem}__{frame}", path, frame=frame) for path in paths for frame in range(2)]
    assert groups(samples, "PatientID") == [pseudonym("patient", "P0")] * 4 + [pseudonym("patient", "P1")] * 2
    with raises_code(SettingError, "missing_group", "0.dcm", "SeriesInstanceUID"):
        regroup(samples, "SeriesInstanceUID")
    paths[0].write_bytes(paths[0].read_bytes()[:140])
    with pytest.raises((ImageError, SettingError), match=r"0\.dcm"):
        regroup(samples, "PatientID")


def test_a_dicom_attribute_of_other_images_is_refused_unless_it_is_a_field(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"png")
    with raises_code(SettingError, "missing_group", "a.png", "PatientID"):
        regroup([sample("a", image)], "PatientID")
    assert groups([sample("a", image, metadata={"PatientID": "P7"})], "PatientID") == ["P7"]
