"""COCO as it is written: pycocotools opens it, and it reads back as the same samples."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from vesalius.data.dataset import load_item, load_samples, merge_phrases
from vesalius.data.readers import coco as reader
from vesalius.data.source import Source
from vesalius.data.writers import coco
from vesalius.data.writers.formats import WRITERS
from vesalius.errors import AnnotationError
from vesalius.masks import encode_rle, rasterize
from vesalius.types import Absent, MaskFile, MaskReference, Polygons, RleMask, Sample

SIZE = (8, 10)
SQUARE = Polygons(((1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0),))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    Image.new("L", SIZE[::-1]).save(path)
    return path


@pytest.fixture
def sample(image: Path) -> Sample:
    return Sample("a", image, ("vessel",), ((SQUARE,),), size=SIZE)


polygons = st.lists(
    st.lists(st.floats(-1, 9, allow_subnormal=False), min_size=6, max_size=12)
    .filter(lambda part: len(part) % 2 == 0)
    .map(tuple),
    min_size=1,
    max_size=3,
).map(lambda parts: Polygons(tuple(parts)))
bits = st.binary(min_size=80, max_size=80).map(lambda b: np.frombuffer(b, dtype=np.uint8).reshape(SIZE) > 127)
references: st.SearchStrategy[MaskReference] = st.one_of(
    st.just(Absent()), polygons, bits.map(lambda mask: RleMask(encode_rle(mask)))
)
phrases = st.sampled_from(["vessel", "stent", "冠状动脉", "a/b"])


def targets(sample: Sample) -> dict[str, np.ndarray]:
    """Phrase -> mask."""
    item = load_item(merge_phrases(sample))
    assert item.masks is not None
    return dict(zip(item.prompts, item.masks, strict=True))


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all((one[phrase] == other[phrase]).all() for phrase in one)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    rows=st.lists(st.tuples(phrases, references), min_size=1, max_size=5),
    group=st.none() | st.text(min_size=1, max_size=5, alphabet="pq1"),
    frame=st.none() | st.just(0),
    spacing_mm=st.none() | st.tuples(st.floats(0.01, 5), st.floats(0.01, 5)),
)
@pytest.mark.parametrize("format", ["coco", "vesalius"])
def test_what_is_written_reads_back_as_the_same_masks(
    image: Path,
    format: str,
    rows: list[tuple[str, MaskReference]],
    group: str | None,
    frame: int | None,
    spacing_mm: tuple[float, float] | None,
) -> None:
    prompts, masks = tuple(text for text, _ in rows), tuple((reference,) for _, reference in rows)
    sample = Sample("a", image, prompts, masks, "", frame, group, "s", SIZE, spacing_mm, {"note": [1, None]})
    root = image.parent.parent
    assert WRITERS[format](root, [sample]) == []
    (back,) = load_samples(root)
    assert same(targets(back), targets(sample))
    for key in ("image", "frame", "group", "sequence", "size", "spacing_mm", "metadata"):
        assert getattr(back, key) == getattr(sample, key)


def test_from_house_to_coco_and_back_nothing_changes(image: Path, sample: Sample) -> None:
    Image.new("L", SIZE[::-1]).save(image.with_name("b.png"))
    Image.new("L", SIZE[::-1]).save(image.with_name("c.png"))
    rle = RleMask(encode_rle(np.eye(*SIZE, dtype=bool)))
    others = [
        Sample("b", image.with_name("b.png"), ("stent", "vessel"), ((rle, SQUARE), (Absent(),)), size=SIZE),
        Sample("c", image.with_name("c.png"), (), None, size=SIZE),
    ]
    root = image.parent.parent
    before: list[Sample] = [sample, *others]
    for format in ("vesalius", "coco", "vesalius"):
        WRITERS[format](root, before)
        after = load_samples(root)
        assert [replace(each, source="") for each in after] == [sample, *others]
        before = after


def test_pycocotools_opens_it(image: Path, sample: Sample) -> None:
    file = image.parent.parent / "mask.png"
    drawn = np.zeros(SIZE, dtype=bool)
    drawn[2:4, 3:9] = True
    Image.fromarray(drawn).save(file)
    runs = RleMask({"size": [8, 10], "counts": [8, 8, 64]})
    empty = RleMask(encode_rle(np.zeros(SIZE, dtype=bool)))
    objects = (SQUARE, runs, MaskFile(file), empty)
    root = image.parent.parent
    coco.write(root, [replace(sample, prompts=("vessel", "stent"), masks=(objects, (Absent(),)))])
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pycocotools under numpy 2
        opened = COCO(str(root / "annotations.json"))
        masks = [opened.annToMask(opened.anns[i]).astype(bool) for i in sorted(opened.anns)]
    column = np.zeros(SIZE, dtype=bool)
    column[:, 1] = True
    expected = [rasterize(SQUARE.parts, SIZE), column, drawn, np.zeros(SIZE, dtype=bool)]
    assert (np.array(masks) == np.array(expected)).all()
    assert [opened.anns[i]["area"] for i in (1, 2, 3, 4)] == [16, 8, 12, 0]
    assert [opened.anns[i]["bbox"] for i in (1, 2, 3, 4)] == [
        [1, 1, 4, 4],
        [1, 0, 1, 8],
        [3, 2, 6, 2],
        [0] * 4,
    ]
    assert [opened.cats[i]["name"] for i in opened.getCatIds()] == ["vessel", "stent"]
    assert opened.getCatIds(supNms=[""]) == [1, 2]
    assert opened.imgs[1]["neg_category_ids"] == [2]
    value = json.loads((root / "annotations.json").read_text())
    assert value["annotations"][1]["segmentation"] == {"size": [8, 10], "counts": [8, 8, 64]}
    assert all(each["iscrowd"] == 0 for each in value["annotations"])
    assert "\n" not in (root / "annotations.json").read_text().strip()


def test_the_size_is_that_of_the_image_where_nobody_stated_it(image: Path, sample: Sample) -> None:
    coco.write(image.parent.parent, [replace(sample, size=None)])
    (back,) = reader.read(Source(image.parent.parent / "annotations.json"))
    assert back.size == SIZE


def test_what_cannot_be_written_is_refused(image: Path, sample: Sample, tmp_path: Path) -> None:
    outside = Polygons(((1.0, 1.0, 50.0, 1.0, 5.0, 5.0),))
    for wrong, reason in (
        ([], "there is no sample to write"),
        ([replace(sample, masks=(), prompts=())], "names no phrase"),
        ([replace(sample, masks=((Polygons(()),),))], "has an object without polygons"),
        ([replace(sample, masks=((outside,),))], "a polygon spans x 1 to 50"),
        ([replace(sample, image=tmp_path.parent / "a.png")], "lies outside of"),
        ([replace(sample, image=tmp_path / "images" / ".." / "a.png")], "lies outside of"),
        ([replace(sample, metadata={"id": 3, "file_name": 2})], "may not be named file_name, id"),
        ([replace(sample, size=(10**6, 10**6))], "more than 200 million"),
    ):
        with pytest.raises(AnnotationError, match=reason):
            coco.write(tmp_path, wrong)
    assert not (tmp_path / "annotations.json").exists()
