"""The annotation format `vesalius`: samples, phrases and masks that the reader returns."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vesalius.errors import DataError
from vesalius.masks import encode_rle
from vesalius.types import Absent, Polygons, RleMask

from .annotation_files import TRIANGLE, entry, make_images, write_json
from .annotation_files import read as read_as

NAMES = ("a.png", "images/b.png", "images/p1/c.png", "images/图.png")


read = partial(read_as, "vesalius")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_images(tmp_path, *NAMES)


def write(root: Path, *entries: Any) -> Path:
    return write_json(root, list(entries))


def test_every_kind_of_object_is_read(root: Path) -> None:
    packed = encode_rle(np.eye(8, 10, dtype=bool))
    runs = {"size": [8, 10], "counts": [80]}
    masks = [[TRIANGLE, TRIANGLE], TRIANGLE, packed, runs, None]
    texts = ["nested", "flat", "packed", "runs", "absent"]
    (sample,) = read(write(root, entry("图.png", masks, texts)))
    polygon = tuple(float(number) for number in TRIANGLE)
    assert sample.prompts == tuple(texts)
    assert sample.masks == (
        (Polygons((polygon, polygon)),),
        (Polygons((polygon,), flat=True),),
        (RleMask(packed),),
        (RleMask({"size": [8, 10], "counts": [80]}),),
        (Absent(),),
    )
    assert sample.image == root / "images" / "图.png"
    assert sample.source == (root / "annotations.json", "entry 0 (图.png)")


def test_optional_fields_are_read_and_the_rest_is_kept_as_metadata(root: Path) -> None:
    full = entry(group=7, size=[8, 10], spacing_mm=0.3, segment=["1"], note={"a": None})
    (sample,) = read(write(root, full))
    assert (sample.group, sample.size, sample.spacing_mm) == ("7", (8, 10), (0.3, 0.3))
    assert sample.metadata == {"segment": ["1"], "note": {"a": None}}


def test_images_are_found_beside_the_file_and_then_in_images(root: Path) -> None:
    samples = read(write(root, *(entry(name) for name in ("a.png", "images/b.png", "p1/c.png", "./图.png"))))
    assert [sample.id for sample in samples] == ["a", "b", "p1__c", "图"]
    assert all(sample.image.is_file() for sample in samples)


def test_a_clip_gives_one_sample_for_each_frame(root: Path) -> None:
    clip = {"video": ["a.png", "images/b.png"], "mask": [[[TRIANGLE], None], None], "text": ["v", "w"]}
    first, second = read(write(root, clip))
    polygon = Polygons((tuple(float(number) for number in TRIANGLE),))
    assert (first.masks, second.masks) == (((polygon,), (Absent(),)), ((Absent(),), (Absent(),)))
    assert [sample.id for sample in (first, second)] == ["a", "b"]
    assert first.sequence == second.sequence == first.group == "a"


def test_an_entry_without_mask_and_text_is_not_annotated(root: Path) -> None:
    (sample,) = read(write(root, {"image": "a.png", "frame": 0, "sequence": "s"}))
    assert (sample.masks, sample.prompts, sample.frame, sample.sequence) == (None, (), 0, "s")


def test_a_text_may_come_twice_and_keeps_its_order(root: Path) -> None:
    (sample,) = read(write(root, entry(mask=[TRIANGLE, None, TRIANGLE], text=["x", "y", "x"])))
    assert sample.prompts == ("x", "y", "x")


def test_a_byte_order_mark_is_no_error(root: Path) -> None:
    path = write(root, entry())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read(path)) == 1


def test_errors_of_all_entries_are_collected(root: Path) -> None:
    problems: list[DataError] = []
    samples = read(write(root, entry(text=[]), entry("b.png"), 5, entry("b.png")), problems)
    assert [sample.id for sample in samples] == ["b"]
    assert [problem.field for problem in problems] == ["entry 0 (a.png)", "entry 2", "entry 3 (b.png)"]
