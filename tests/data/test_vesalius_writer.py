"""The house's annotation file: what is written reads back as the same samples, or is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vesalius.data.readers import vesalius_json as reader
from vesalius.data.source import Source
from vesalius.data.writers import vesalius_json as writer
from vesalius.errors import AnnotationError
from vesalius.masks import decode_rle, encode_rle
from vesalius.types import Absent, MaskFile, MaskReference, Polygons, RleMask, Sample

SIZE = (8, 10)
SQUARE = Polygons(((1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0),))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    Image.new("L", (SIZE[1], SIZE[0])).save(path)
    return path


@pytest.fixture
def sample(image: Path) -> Sample:
    return Sample("a", image, ("vessel",), ((SQUARE,),))


def read_back(path: Path) -> Sample:
    (sample,) = reader.read(Source(path))
    return replace(sample, source="")


references: st.SearchStrategy[MaskReference] = st.one_of(
    st.just(Absent()),
    st.lists(
        st.lists(st.floats(-50, 50, allow_subnormal=False), min_size=6, max_size=12)
        .filter(lambda part: len(part) % 2 == 0)
        .map(tuple),
        min_size=1,
        max_size=3,
    ).map(lambda parts: Polygons(tuple(parts))),
    st.binary(min_size=80, max_size=80).map(
        lambda bits: RleMask(encode_rle(np.frombuffer(bits, dtype=np.uint8).reshape(SIZE) > 127))
    ),
)
phrases = st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(phrases, references), min_size=1, max_size=4),
    group=st.none() | phrases,
    size=st.none() | st.just(SIZE),
    spacing_mm=st.none() | st.tuples(st.floats(0.01, 5), st.floats(0.01, 5)),
    note=st.none() | st.integers() | phrases,
)
def test_what_is_written_reads_back_as_the_same_sample(
    image: Path,
    rows: list[tuple[str, MaskReference]],
    group: str | None,
    size: tuple[int, int] | None,
    spacing_mm: tuple[float, float] | None,
    note: object,
) -> None:
    prompts = tuple(text for text, _ in rows)
    masks = tuple((reference,) for _, reference in rows)
    sample = Sample(
        "a", image, prompts, masks, group=group, size=size, spacing_mm=spacing_mm, metadata={"note": note}
    )
    path = image.parent.parent / "annotations.json"
    writer.write(path, [sample])
    assert read_back(path) == sample


def test_the_entry_has_the_official_keys_and_relative_paths(sample: Sample, tmp_path: Path) -> None:
    writer.write(tmp_path / "annotations.json", [sample])
    (entry,) = json.loads((tmp_path / "annotations.json").read_text())
    assert entry == {"image": "images/a.png", "mask": [[list(SQUARE.parts[0])]], "text": ["vessel"]}


def test_several_objects_of_a_phrase_become_rows_with_that_phrase(sample: Sample, tmp_path: Path) -> None:
    two = replace(sample, prompts=("vessel", "wire"), masks=((SQUARE, Absent()), ()))
    writer.write(tmp_path / "annotations.json", [two])
    back = read_back(tmp_path / "annotations.json")
    assert back.prompts == ("vessel", "vessel", "wire")
    assert back.masks == ((SQUARE,), (Absent(),), (Absent(),))


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_mask_file_becomes_rle(sample: Sample, tmp_path: Path, size: tuple[int, int] | None) -> None:
    mask = np.zeros(SIZE, dtype=bool)
    mask[2:4, 3:7] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    by_file = replace(sample, masks=((MaskFile(tmp_path / "mask.png"),),), size=size)
    writer.write(tmp_path / "annotations.json", [by_file])
    masks = read_back(tmp_path / "annotations.json").masks
    assert masks is not None and isinstance(masks[0][0], RleMask)
    assert (decode_rle(masks[0][0].rle) == mask).all()


def test_a_mask_file_of_another_size_is_refused(sample: Sample, tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "mask.png")
    by_file = replace(sample, masks=((MaskFile(tmp_path / "mask.png"),),))
    with pytest.raises(AnnotationError, match=r"mask\.png.*4 x 4"):
        writer.write(tmp_path / "annotations.json", [by_file])
    assert not (tmp_path / "annotations.json").exists()


def test_a_linked_folder_of_images_stays_relative(sample: Sample, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(tmp_path / "images")
    writer.write(data / "annotations.json", [replace(sample, image=data / "images" / "a.png")])
    assert read_back(data / "annotations.json").image == data / "images" / "a.png"


def test_an_image_outside_of_the_folder_is_refused(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="lies outside"):
        writer.write(tmp_path / "elsewhere" / "annotations.json", [sample])


def test_no_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="no sample"):
        writer.write(tmp_path / "annotations.json", [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": (), "masks": ()}, "a: names no phrase"),
        ({"metadata": {"text": 1, "video": 2}}, "text, video"),
        ({"masks": ((Polygons(()),),)}, "without polygons"),
    ],
)
def test_what_the_reader_would_refuse_is_not_written(
    sample: Sample, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(AnnotationError, match=message):
        writer.write(tmp_path / "annotations.json", [replace(sample, **change)])
    assert not (tmp_path / "annotations.json").exists()


def test_a_frame_without_annotation_reads_back(sample: Sample, tmp_path: Path) -> None:
    bare = replace(sample, id="a__0000", prompts=(), masks=None, frame=0, group="p", sequence="s")
    writer.write(tmp_path / "annotations.json", [bare])
    assert read_back(tmp_path / "annotations.json") == bare
