"""The annotation format of the house: what is read, and one sentence for each way to be wrong."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vesalius.data.dataset import check_polygons
from vesalius.data.readers import vesalius_json
from vesalius.data.source import Problems, Source
from vesalius.errors import AnnotationError, DataError
from vesalius.masks import encode_rle
from vesalius.types import Absent, Polygons, RleMask, Sample

TRIANGLE = [1, 1, 6, 1, 1, 6]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images" / "p1").mkdir(parents=True)
    for name in ("a.png", "images/b.png", "images/p1/c.png", "images/图.png"):
        Image.new("L", (10, 8)).save(tmp_path / name)
    return tmp_path


def write(root: Path, *entries: Any) -> Path:
    path = root / "annotations.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def read(path: Path, problems: Problems = None) -> list[Sample]:
    """As a dataset is opened: polygons that are none are refused too."""
    samples = vesalius_json.read(Source(path), "", problems)
    if problems is None:
        for sample in samples:
            check_polygons(sample)
    return samples


def entry(
    image: str = "a.png", mask: Any = ((TRIANGLE,),), text: Any = ("vessel",), **more: Any
) -> dict[str, Any]:
    return {"image": image, "mask": mask, "text": text, **more}


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
    assert sample.source == f"{root / 'annotations.json'}, entry 0 (图.png)"


def test_optional_fields_are_read_and_the_rest_is_kept_as_metadata(root: Path) -> None:
    full = entry(group=7, size=[8, 10], spacing_mm=0.3, segment=["1"], note={"a": None})
    (sample,) = read(write(root, full))
    assert (sample.group, sample.size, sample.spacing_mm) == ("7", (8, 10), (0.3, 0.3))
    assert sample.metadata == {"segment": ["1"], "note": {"a": None}}


def test_images_are_found_beside_the_file_and_then_in_images(root: Path) -> None:
    samples = read(write(root, *(entry(name) for name in ("a.png", "images/b.png", "p1/c.png", "./图.png"))))
    assert [sample.id for sample in samples] == ["a", "b", "p1__c", "图"]
    assert all(sample.image.is_file() for sample in samples)


def test_a_clip_gives_one_sample_a_frame(root: Path) -> None:
    clip = {"video": ["a.png", "images/b.png"], "mask": [[[TRIANGLE], None], None], "text": ["v", "w"]}
    first, second = read(write(root, clip))
    polygon = Polygons((tuple(float(number) for number in TRIANGLE),))
    assert (first.masks, second.masks) == (((polygon,), (Absent(),)), ((Absent(),), (Absent(),)))
    assert [sample.id for sample in (first, second)] == ["a", "b"]
    assert first.sequence == second.sequence == first.group == "a"


def test_an_entry_without_mask_and_text_is_not_annotated(root: Path) -> None:
    (sample,) = read(write(root, {"image": "a.png", "frame": 0, "sequence": "s"}))
    assert (sample.masks, sample.prompts, sample.frame, sample.sequence) == (None, (), 0, "s")


def test_a_text_may_come_twice_and_keeps_its_place(root: Path) -> None:
    (sample,) = read(write(root, entry(mask=[TRIANGLE, None, TRIANGLE], text=["x", "y", "x"])))
    assert sample.prompts == ("x", "y", "x")


WRONG = {
    "one point": (entry(mask=[[[1, 2]]]), "mask 0, polygon 0 has 1 point; at least 3 are needed"),
    "odd": (entry(mask=[[[1, 2, 3, 4, 5, 6, 7]]]), "must come in pairs"),
    "NaN": (entry(mask=[[[1, 2, 3, 4, 5, float("nan")]]]), "is not a finite number"),
    "Infinity": (entry(mask=[[1, 2, 3, 4, 5, float("inf")]]), "is not a finite number"),
    "huge": (entry(mask=[[1, 2, 3, 4, 5, 10**400]]), "not a finite number: 1000"),
    "text as number": (entry(mask=[[1, 2, 3, 4, 5, "6"]]), "not a finite number: '6'"),
    "true as number": (entry(mask=[[[1, 2, 3, 4, 5, True]]]), "not a finite number: True"),
    "list in a flat polygon": (entry(mask=[[1, 2, 3, 4, 5, [6]]]), "not a finite number"),
    "number among polygons": (
        entry(mask=[[TRIANGLE, 5]]),
        "polygon 1 must be a list of coordinates, not a number",
    ),
    "empty object": (entry(mask=[[]]), "is empty; use null to say that the phrase is not there"),
    "empty polygon": (entry(mask=[[[]]]), "has 0 points"),
    "text as mask": (entry(mask=["vessel"]), "must be polygons, RLE or null, not text"),
    "counts differ": (entry(text=["a", "b"]), "has 1 masks but 2 texts"),
    "no phrase": (entry(mask=[], text=[]), "names no phrase"),
    "blank phrase": (entry(text=[" "]), "text 0 must be a phrase"),
    "phrase is a number": (entry(text=[3]), "text 0 must be a phrase, not a number"),
    "text is one string": (entry(text="v"), "mask and text must be lists"),
    "missing image": (entry("none.png"), "image none.png is neither in"),
    "odd image name": (entry("a\x00.png"), "is neither in"),
    "long image name": (entry("a" * 5000), "is neither in"),
    "escape": (entry("../a.png"), "lies outside of"),
    "hidden escape": (entry("images/../../a.png"), "lies outside of"),
    "absolute": (entry("/etc/passwd"), "lies outside of"),
    "image is null": (entry(None), "image must be a path"),
    "no image": ({"mask": [], "text": []}, "has no image"),
    "not an object": ([1], "must be an object with image, mask and text, not a list"),
    "video of text": ({"video": "a.mp4", "mask": [], "text": []}, "video must be a list"),
    "track too short": (
        {"video": ["a.png", "images/b.png"], "mask": [[TRIANGLE]], "text": ["v"]},
        "must be a list of 2 values, one a frame, not 1 value",
    ),
    "frame": (entry(frame=-1), "frame must be a whole number"),
    "frame twice": ({"video": ["a.png", "a.png"], "mask": [None], "text": ["v"]}, "has the same id a"),
    "sequence": (entry(sequence=1.5), "sequence must be a name"),
    "masks without texts": ({"image": "c.png", "mask": [None]}, "has no text"),
    "RLE of another size": (
        entry(mask=[{"size": [4, 4], "counts": [16]}], size=[8, 10]),
        "4 x 4 .* states 8 x 10",
    ),
    "RLE without counts": (entry(mask=[{"size": [8, 10]}]), "needs size .* and counts"),
    "RLE without size": (entry(mask=[{"counts": [80]}]), "needs size .* and counts"),
    "RLE with a fraction": (entry(mask=[{"size": [8, 10], "counts": [79.5]}]), "whole numbers"),
    "size": (entry(size=[8]), r"size must be \[height, width\]"),
    "size of text": (entry(size=["8", "10"]), r"size must be \[height, width\]"),
    "group": (entry(group=[1]), "group must be a name"),
    "spacing": (entry(spacing_mm=[0.1, 0]), "spacing_mm must be"),
    "metadata": (entry(weight=float("nan")), "NaN and Infinity are not JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_entry_is_named_with_file_index_and_image(root: Path, case: str) -> None:
    value, reason = WRONG[case]
    path = write(root, entry("b.png"), value)
    with pytest.raises(AnnotationError, match=reason) as error:
        read(path)
    assert str(error.value).startswith(f"{path}, entry 1")
    if isinstance(value, dict) and value.get("image") == "a.png":
        assert "(a.png)" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is not JSON"),
        (b"[{", "is not JSON"),
        (b"\xff\xfe[", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"images": []}', "must hold a list of entries, not an object"),
        (b"[]", "has no entries"),
    ],
)
def test_a_file_that_is_no_list_of_entries_is_refused(tmp_path: Path, text: bytes, reason: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_bytes(text)
    with pytest.raises(AnnotationError, match=reason):
        read(path, problems=[])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="cannot be read"):
        read(tmp_path / "annotations.json")


def test_a_byte_order_mark_is_no_error(root: Path) -> None:
    path = write(root, entry())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read(path)) == 1


def test_two_equal_ids_are_refused(root: Path) -> None:
    with pytest.raises(
        AnnotationError, match=r"entry 1 \(images/b.png\): has the same id b as .* entry 0 \(b.png\)"
    ):
        read(write(root, entry("b.png"), entry("images/b.png")))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=7) | st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner)
    ),
    max_leaves=12,
)
keys = st.sampled_from(["image", "mask", "text", "group", "size", "spacing_mm", "video", "other"])


@given(st.dictionaries(keys, json_values, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_entry_gives_a_sample_or_an_annotation_error(root: Path, changes: dict[str, Any]) -> None:
    with contextlib.suppress(AnnotationError):
        assert len(read(write(root, entry() | changes))) == 1


def test_all_wrong_entries_are_collected_where_asked(root: Path) -> None:
    problems: list[DataError] = []
    samples = read(write(root, entry(text=[]), entry("b.png"), 5, entry("b.png")), problems)
    assert [sample.id for sample in samples] == ["b"]
    assert [str(problem).split(",")[1].split()[1].rstrip(":") for problem in problems] == ["0", "2", "3"]
