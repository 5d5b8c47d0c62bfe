"""CVAT XML: shapes are read as pixels, and tracks as frames."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vesalius.data.dataset import load_item, load_mask, open_dataset
from vesalius.data.readers import cvat
from vesalius.data.source import Source
from vesalius.errors import AnnotationError, DataError
from vesalius.types import Absent

from ..codes import raises_code
from .annotation_files import SIZE, make_images
from .annotation_files import box_mask as box
from .annotation_files import cvat_file as write
from .annotation_files import cvat_image as image
from .annotation_files import read as read_as

IMAGES = "a.png images/b.png images/p1/c.png images/frame_000000.PNG images/frame_000005.png"


read = partial(read_as, "cvat")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_images(tmp_path, *IMAGES.split())


def mask_of(root: Path, shape: str) -> np.ndarray:
    (sample,) = read(write(root, image(shape)))
    assert sample.masks is not None and len(sample.masks) == 1
    return load_mask(sample.masks[0][0], SIZE, "here")


def runs_of(mask: np.ndarray) -> str:
    """Run lengths of a mask in CVAT's order, row-major with background first, counted pixel by pixel."""
    runs, value = [0], False
    for pixel in mask.ravel():
        if pixel != value:
            runs.append(0)
            value = not value
        runs[-1] += 1
    return ", ".join(map(str, runs))


def test_polygons_boxes_ellipses_and_masks_have_the_pixels_that_were_drawn(root: Path) -> None:
    polygon = '<polygon label="vessel" points="1.00,2.00;5.00,2.00;5.00,6.00;1.00,6.00" occluded="0"/>'
    np.testing.assert_array_equal(mask_of(root, polygon), box(slice(2, 6), slice(1, 5)))
    upright = '<box label="vessel" xtl="1" ytl="2" xbr="5" ybr="6"/>'
    np.testing.assert_array_equal(mask_of(root, upright), box(slice(2, 6), slice(1, 5)))
    mask = '<mask label="vessel" left="3" top="1" width="3" height="2" rle="1, 2, 2, 1"/>'
    expected = box(slice(1, 2), slice(4, 6)) | box(slice(2, 3), slice(5, 6))
    np.testing.assert_array_equal(mask_of(root, mask), expected)
    ellipse = '<ellipse label="vessel" cx="5" cy="4" rx="4" ry="2"/>'
    y, x = np.mgrid[:8, :10] + 0.5
    np.testing.assert_array_equal(mask_of(root, ellipse), ((x - 5) / 4) ** 2 + ((y - 4) / 2) ** 2 <= 1)


def test_boxes_and_ellipses_turn_clockwise_around_their_center(root: Path) -> None:
    turned = '<box label="v" xtl="1" ytl="3" xbr="9" ybr="5" rotation="90"/>'
    np.testing.assert_array_equal(mask_of(root, turned), box(slice(0, 8), slice(4, 6)))
    # a long box turned by 30 degrees: its right end goes down, where y grows
    down = mask_of(root, '<box label="v" xtl="1" ytl="3.5" xbr="9" ybr="4.5" rotation="30"/>')
    rows, columns = np.nonzero(down)
    assert np.corrcoef(rows, columns)[0, 1] > 0.9
    ellipse = mask_of(root, '<ellipse label="v" cx="5" cy="4" rx="4" ry="1" rotation="30"/>')
    assert np.corrcoef(*np.nonzero(ellipse))[0, 1] > 0.8


def test_rotated_shapes_end_at_the_image_border(root: Path) -> None:
    over = mask_of(root, '<box label="v" xtl="-2" ytl="3" xbr="10" ybr="5" rotation="90"/>')
    np.testing.assert_array_equal(over, box(slice(0, 8), slice(3, 5)))
    bulging = mask_of(root, '<ellipse label="v" cx="9" cy="1" rx="4" ry="4"/>')
    y, x = np.mgrid[:8, :10] + 0.5
    np.testing.assert_array_equal(bulging, np.hypot(x - 9, y - 1) <= 4)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_mask_comes_back_from_its_runs(root: Path, drawn: np.ndarray, left: int, top: int) -> None:
    height, width = drawn.shape
    size = (top + height + 1, left + width + 2)
    shape = f'<mask label="v" left="{left}" top="{top}" width="{width}" height="{height}" rle="{runs_of(drawn)}"/>'
    (sample,) = read(write(root, image(shape, size=f'width="{size[1]}" height="{size[0]}"')))
    expected = np.zeros(size, dtype=bool)
    expected[top : top + height, left : left + width] = drawn
    assert sample.masks is not None and sample.size == size
    np.testing.assert_array_equal(load_mask(sample.masks[0][0], size, "here"), expected)


def test_labels_attributes_tags_and_subsets_are_kept(root: Path) -> None:
    attribute = '<attribute name="side">left</attribute>'
    polygon = f'<polygon label="vessel 血管" points="1,1;5,1;5,5">{attribute}</polygon>'
    bare = '<box label="catheter" xtl="1" ytl="1" xbr="3" ybr="3"/>'
    tag = '<tag label="sharp"/>'
    xml = write(root, image(polygon, bare, tag, name="c.png", size='subset="p1" width="10" height="8"'))
    (sample,) = read(xml)
    assert sample.prompts == ("vessel 血管", "catheter")
    assert sample.metadata == {"tags": ["sharp"], "shapes": [{"label": "vessel 血管", "side": "left"}], "subset": "p1"}
    assert (sample.id, sample.image, sample.size) == ("c", root / "images" / "p1" / "c.png", SIZE)


def test_a_folder_with_the_export_is_opened_and_an_image_without_shapes_is_not_annotated(root: Path) -> None:
    write(root, image('<box label="v" xtl="1" ytl="2" xbr="5" ybr="6"/>'), image(name="p1/c.png"))
    dataset = open_dataset(root)
    assert dataset.format == "cvat"
    assert [(sample.id, sample.masks is None) for sample in dataset.samples] == [("a", False), ("p1__c", True)]
    item = load_item(dataset.samples[0])
    assert item.masks is not None
    np.testing.assert_array_equal(item.masks[0, 0], box(slice(2, 6), slice(1, 5)))


VIDEO = (
    "<meta><task><name>run 7</name><original_size><width>10</width><height>8</height></original_size></task>"
    "<source>run.mp4</source></meta>"
)


def track(*shapes: str, number: int = 0, label: str = "vessel") -> str:
    return f'<track id="{number}" label="{label}">{"".join(shapes)}</track>'


def at(frame: int, outside: int = 0) -> str:
    return f'<box frame="{frame}" outside="{outside}" keyframe="1" xtl="1" ytl="2" xbr="5" ybr="6"/>'


def test_tracks_become_frames_and_outside_says_that_the_label_is_not_there(root: Path) -> None:
    mask = '<mask frame="5" outside="0" left="0" top="0" width="2" height="1" rle="0, 2"/>'
    xml = write(root, VIDEO, track(at(0), at(5, outside=1)), track(mask, number=1, label="catheter"))
    first, second = read(xml)
    assert [first.id, second.id] == ["frame_000000", "frame_000005"]
    assert first.prompts == ("vessel",)
    assert second.prompts == ("vessel", "catheter")
    assert second.masks is not None and second.masks[0] == (Absent(),)
    np.testing.assert_array_equal(load_mask(second.masks[1][0], SIZE, "here"), box(slice(0, 1), slice(0, 2)))
    assert {first.sequence, second.sequence, first.group} == {"run 7"}
    assert first.image == root / "images" / "frame_000000.PNG"
    assert first.size == SIZE


def test_a_track_that_skips_a_frame_is_refused_with_its_video(root: Path) -> None:
    for silent in (track(at(0)), track(at(0), at(7, outside=1))):
        xml = write(root, VIDEO, silent, track(at(5), at(7, outside=1), number=1), image(name="b.png"))
        with raises_code(AnnotationError, "track_gap", "track '0'", "frame 0", "frame 5"):
            read(xml)
        problems: list[DataError] = []
        assert [sample.id for sample in read(xml, problems)] == ["b"]
        assert len(problems) == 1


def test_a_missing_frame_is_named(root: Path) -> None:
    xml = write(root, VIDEO, track(at(0), at(3), at(5, outside=1)))
    with raises_code(AnnotationError, "missing_image", "images/frame_000003.png", "'run.mp4'") as caught:
        read(xml)
    assert caught.value.field == "frame 3"
    problems: list[DataError] = []
    assert [sample.id for sample in read(xml, problems)] == ["frame_000000", "frame_000005"]
    assert [problem.code for problem in problems] == ["missing_image"]


def test_an_image_listed_without_suffix_is_a_frame_that_was_stored_with_one(root: Path) -> None:
    (sample,) = read(write(root, image(name="frame_000000")))
    assert (sample.id, sample.image.name) == ("frame_000000", "frame_000000.PNG")


def test_frames_are_read_from_the_video_where_there_are_no_images(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs the extra video")
    with av.open(str(tmp_path / "run.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5, width=32, height=16)
        for level in (20, 120, 220):
            gray = np.full((16, 32, 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        container.mux(stream.encode())
    meta = VIDEO.replace(">10<", ">32<").replace(">8<", ">16<")
    first, last = read(write(tmp_path, meta, track(at(0), at(2))))
    assert (first.id, first.frame, last.id, last.frame) == ("run__0000", 0, "run__0002", 2)
    assert abs(int(load_item(last).frames.mean()) - 220) < 6


def test_a_file_without_images_is_refused(root: Path) -> None:
    with raises_code(AnnotationError, "no_image"):
        read(write(root))


def test_a_doctype_that_names_a_file_does_not_read_it(root: Path) -> None:
    foreign = '<!DOCTYPE annotations SYSTEM "file:///etc/passwd"><annotations><image name="a.png"/></annotations>'
    (root / "annotations.xml").write_text(foreign)
    assert [sample.id for sample in read(root / "annotations.xml")] == ["a"]


def test_other_files_are_not_recognized(tmp_path: Path) -> None:
    for text in ("", "<annotation><folder/></annotation>", "[]", "annotations"):
        (tmp_path / "a.xml").write_text(text)
        assert not cvat.recognize(Source(tmp_path / "a.xml"))
    assert not cvat.recognize(Source(tmp_path))
