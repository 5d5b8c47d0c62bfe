"""LabelMe files as they are written: what LabelMe expects, and that they read back as the same samples."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vesalius.data.dataset import load_item, load_samples, merge_phrases
from vesalius.data.writers import labelme
from vesalius.errors import AnnotationError
from vesalius.masks import encode_rle
from vesalius.types import Absent, MaskFile, MaskReference, Polygons, RleMask, Sample

SIZE = (8, 10)
SQUARE = Polygons(((1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0),))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "p1" / "a.png"
    path.parent.mkdir(parents=True)
    Image.new("L", SIZE[::-1]).save(path)
    return path


@pytest.fixture
def sample(image: Path) -> Sample:
    return Sample("p1__a", image, ("vessel",), ((SQUARE,),), size=SIZE)


references: st.SearchStrategy[MaskReference] = st.one_of(
    st.just(Absent()),
    st.lists(
        st.lists(st.floats(-1, 9, allow_subnormal=False), min_size=6, max_size=12)
        .filter(lambda part: len(part) % 2 == 0)
        .map(tuple),
        min_size=1,
        max_size=3,
    ).map(lambda parts: Polygons(tuple(parts))),
    st.binary(min_size=80, max_size=80).map(
        lambda bits: RleMask(encode_rle(np.frombuffer(bits, dtype=np.uint8).reshape(SIZE) > 127))
    ),
)


def targets(sample: Sample) -> dict[str, np.ndarray]:
    """Phrase -> mask."""
    item = load_item(merge_phrases(sample))
    assert item.masks is not None
    return dict(zip(item.prompts, item.masks, strict=True))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    rows=st.lists(st.tuples(st.sampled_from(["vessel", "支架"]), references), min_size=1, max_size=5),
    group=st.none() | st.just("p1"),
    spacing_mm=st.none() | st.tuples(st.floats(0.01, 5), st.floats(0.01, 5)),
)
def test_what_is_written_reads_back_as_the_same_masks(
    image: Path,
    rows: list[tuple[str, MaskReference]],
    group: str | None,
    spacing_mm: tuple[float, float] | None,
) -> None:
    prompts, masks = tuple(text for text, _ in rows), tuple((reference,) for _, reference in rows)
    sample = Sample(
        "p1__a", image, prompts, masks, "", None, group, "s", SIZE, spacing_mm, {"note": [1, None]}
    )
    root = image.parents[2]
    assert labelme.write(root, [sample]) == []
    (back,) = load_samples(root)
    before, after = targets(sample), targets(back)
    assert before.keys() == after.keys()
    assert all((before[phrase] == after[phrase]).all() for phrase in before)
    for key in ("id", "image", "frame", "group", "sequence", "size", "spacing_mm", "metadata"):
        assert getattr(back, key) == getattr(sample, key)


def test_polygons_come_back_as_the_same_objects(image: Path, sample: Sample) -> None:
    several = Polygons((*SQUARE.parts, (0.0, 0.5, 2.0, 0.5, 2.0, 2.5)))
    sample = replace(sample, prompts=("vessel", "stent"), masks=((several, SQUARE, several), (several,)))
    labelme.write(image.parents[2], [sample])
    (back,) = load_samples(image.parents[2])
    assert replace(back, source="") == sample
    shapes = json.loads(image.with_suffix(".json").read_text())["shapes"]
    assert [shape["group_id"] for shape in shapes] == [1, 1, None, 2, 2, 3, 3]


def test_a_file_has_what_labelme_expects(image: Path, sample: Sample) -> None:
    file = image.parents[2] / "mask.png"
    drawn = np.zeros(SIZE, dtype=bool)
    drawn[2:4, 3:9] = True
    Image.fromarray(drawn).save(file)
    empty = RleMask(encode_rle(np.zeros(SIZE, dtype=bool)))
    masks = ((SQUARE, MaskFile(file), empty), (Absent(),))
    labelme.write(
        image.parents[2], [replace(sample, prompts=("vessel", "stent"), masks=masks, size=None, group="p1")]
    )
    value = json.loads(image.with_suffix(".json").read_text())
    polygon, mask, nothing = value.pop("shapes")
    assert value == {
        "version": "5.5.0",
        "flags": {},
        "imagePath": "a.png",
        "imageData": None,
        "imageHeight": 8,
        "imageWidth": 10,
        "vesalius": {"absent": ["stent"], "group": "p1"},
    }
    assert polygon == {
        "label": "vessel",
        "points": [[1.0, 1.0], [5.0, 1.0], [5.0, 5.0], [1.0, 5.0]],
        "group_id": None,
        "description": "",
        "shape_type": "polygon",
        "flags": {},
        "mask": None,
    }
    assert mask["points"] == [[3, 2], [8, 3]]
    patch = np.asarray(Image.open(io.BytesIO(base64.b64decode(mask["mask"]))))
    assert (patch.shape, patch.dtype, patch.min(), patch.max()) == ((2, 6), np.uint8, 1, 1)
    assert nothing["points"] == [[0, 0], [0, 0]]
    assert nothing["shape_type"] == "mask"


def test_a_sample_without_annotation_stays_without(image: Path, sample: Sample) -> None:
    bare = replace(sample, prompts=(), masks=None)
    labelme.write(image.parents[2], [bare])
    (back,) = load_samples(image.parents[2])
    assert replace(back, source="") == bare


def test_frames_of_a_file_are_told_apart_and_counted(image: Path, sample: Sample) -> None:
    frames = [replace(sample, id=f"p1__a__000{i}", frame=i) for i in range(2)]
    assert labelme.write(image.parents[2], frames) == [
        "frames of larger files, which LabelMe itself does not open: 2"
    ]
    assert [replace(each, source="") for each in load_samples(image.parents[2])] == frames


def test_what_cannot_be_written_is_refused(image: Path, sample: Sample, tmp_path: Path) -> None:
    jpg = image.with_suffix(".jpg")
    for wrong, reason in (
        ([], "there is no sample to write"),
        ([replace(sample, masks=(), prompts=())], "names no phrase"),
        ([replace(sample, masks=((Polygons(((1.0, 2.0),)),),))], "has 1 point"),
        ([replace(sample, masks=((Polygons(((1.0, 2.0, 3.0, 4.0, 5.0, float("nan")),)),),))], "finite"),
        ([replace(sample, image=tmp_path.parent / "a.png")], "lies outside of"),
        ([replace(sample, metadata={"group": 3})], "may not be named group"),
        ([sample, replace(sample, image=jpg)], r"a\.json: would be written for two samples"),
    ):
        with pytest.raises(AnnotationError, match=reason):
            labelme.write(tmp_path, wrong)
