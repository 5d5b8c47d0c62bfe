"""Widths, self-intersections, overlaps and names: examples computed by hand."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesalius.checks.geometry import count_crossings
from vesalius.checks.masks import compare_sizes, measure_target
from vesalius.checks.measurements import Measurement, TargetMeasurement
from vesalius.checks.names import find_person, hide
from vesalius.checks.overlaps import Cover
from vesalius.checks.widths import cell_px, check_widths, skeleton_widths


@pytest.mark.parametrize("width", range(1, 10))
def test_a_bar_has_its_width_along_the_skeleton(width: int) -> None:
    mask = np.zeros((30, 80), dtype=bool)
    mask[10 : 10 + width, 5:75] = True
    for each in (mask, mask.T):
        assert np.median(skeleton_widths(each)) == width


def test_a_slanted_bar_has_about_its_width() -> None:
    y, x = np.mgrid[:100, :100]
    mask = np.abs(x - y) / math.sqrt(2) <= 4.5
    assert np.median(skeleton_widths(mask)) == pytest.approx(9, abs=0.8)


def test_full_and_empty_masks_have_widths() -> None:
    assert len(skeleton_widths(np.zeros((9, 9), dtype=bool))) == 0
    assert skeleton_widths(np.ones((9, 9), dtype=bool)).max() == pytest.approx(9, abs=1)
    assert skeleton_widths(np.ones((1, 1), dtype=bool)).tolist() == [1]


def test_thin_means_narrower_than_a_cell_of_the_mask_grid() -> None:
    assert cell_px((512, 512)) == 2
    assert cell_px((400, 1024)) == 4
    mask = np.zeros((512, 512), dtype=bool)
    mask[100, 10:110] = True
    mask[200:202, 10:110] = True
    target = measure_target("v", mask)
    assert target.skeleton == 200
    assert 100 <= target.thin <= 104, "the ends of the wider bar may be narrow"
    assert target.width_px is not None and target.width_px[0] == 1
    assert target.area_fraction == 300 / 512**2


def test_the_finding_about_thin_structures_has_the_fraction_and_the_grid() -> None:
    def measured(name: str, thin: int) -> Measurement:
        target = TargetMeasurement("v", 0.1, (1, 3), 100, thin)
        return Measurement(name, "", name, None, None, size=(512, 512), targets=(target,))

    assert check_widths([measured("a", 10), measured("b", 10)], "f") == []
    (found,) = check_widths([measured("a", 12), measured("b", 50)], "f")
    assert found.message == (
        "31 % of the skeleton is thinner than one cell of the model's mask grid (256 x 256 cells; a cell is 2 px in "
        "images of 512 px)"
    )
    assert found.remedy == "use tiles or a larger input size"
    assert found.samples == ("b", "a")


@pytest.mark.parametrize(
    ("points", "crossings"),
    [
        ([(0, 0), (9, 0), (9, 9), (0, 9)], 0),
        ([(0, 0), (9, 9), (9, 0), (0, 9)], 1),
        ([(0, 0), (9, 0), (9, 9), (0, 9), (0, 0)], 0),
        ([(0, 0), (4, 0), (4, 4), (4, 0), (9, 0), (9, 9)], 0),
        ([(0, 3), (9, 3), (9, 9), (6, 9), (6, 0), (3, 0), (3, 9), (0, 9)], 2),
    ],
)
def test_crossings_are_counted_without_touching_points(points: list[tuple[int, int]], crossings: int) -> None:
    assert count_crossings(np.array(points, dtype=float)) == crossings


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=12))
def test_crossings_agree_with_a_comparison_of_all_pairs(points: list[tuple[int, int]]) -> None:
    def side(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    edges = list(zip(points, points[1:] + points[:1], strict=True))
    expected = sum(
        side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
        for i, (a, b) in enumerate(edges)
        for c, d in edges[i + 1 :]
    )
    assert count_crossings(np.array(points, dtype=float)) == expected


def test_an_outline_with_too_many_long_edges_is_not_searched() -> None:
    zigzag = np.array([(i, 512 * (i % 2)) for i in range(20_000)], dtype=float)
    start = time.process_time()
    assert count_crossings(zigzag) is None
    assert time.process_time() - start < 1


def test_overlaps_have_the_pair_and_the_share_of_the_smaller_object() -> None:
    cover = Cover((10, 10))
    for phrase, rows in (("vessel", slice(0, 6)), ("stent", slice(5, 7)), ("wire", slice(7, 9))):
        mask = np.zeros((10, 10), dtype=bool)
        mask[rows] = True
        cover.add(phrase, repr(phrase), mask)
    (overlap,) = cover.overlaps
    assert overlap.phrases == ("stent", "vessel")
    assert (overlap.within, overlap.intersection, overlap.fraction) == ("'vessel' and 'stent'", 10, 0.5)


def test_sizes_are_compared_with_one_ratio_or_two() -> None:
    assert compare_sizes((800, 800), (512, 512)) == "800 x 800 for an image of 512 x 512 (h x w), ratio 1.5625"
    assert (
        compare_sizes((512, 256), (512, 512)) == "512 x 256 for an image of 512 x 512 (h x w), "
        "ratio 1 x 0.5, unequal in height and width: stretched, cropped or padded"
    )


@pytest.mark.parametrize(
    "name",
    [
        "WANG_Xiaoming.png",
        "Smith_John_01.png",
        "SMITH^JOHN.dcm",
        "Smith, John.jpg",
        "张三.png",
        "李小明_001.png",
        "王伟20190305.png",
        "19560412.png",
        "a_1956-04-12.png",
        "12345678_LAO.png",
        "MRN-A1234.png",
        "病历号8841.png",
        "Left_WANG_LI_2.png",
        "Müller_Jürgen.png",
        "Mu\u0308ller_Ju\u0308rgen.png",
        "Иванов_Пётр.png",
        "Smith.John.png",
        "Smith.John",
        "Smith__John_3.dcm",
        "欧阳修.png",
        "诸葛小明_2.png",
        "张三造影.png",
        "李小明左冠01.png",
        "患者张三.png",
        "a_12.04.1956.png",
        "a_12-31-1956.png",
        "31121956.png",
    ],
)
def test_names_of_persons_are_found_and_hidden(name: str) -> None:
    assert find_person(name)
    words = [word for word in Path(name).stem.replace("^", "_").replace(", ", "_").split("_") if len(word) > 4]
    assert not any(word in hide(name) for word in words)
    if Path(name).suffix != ".John":
        assert hide(name).endswith(Path(name).suffix)
    assert "John" not in hide(name) and "小" not in hide(name)


def test_dates_and_record_numbers_are_distinguished() -> None:
    assert find_person("31121956.png") == find_person("a_12.04.1956.png") == "a date, perhaps of birth"
    assert find_person("31131956.png") == "a record number"


@pytest.mark.parametrize(
    "name",
    [
        "test_0001.jpg",
        "Image_01L.jpg",
        "01_dr.JPG",
        "synth_00012.png",
        "000000397133.jpg",
        "frame_000123.png",
        "ISIC_0024306.jpg",
        "cju0qkwl35piu0993l0dewei2.jpg",
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301.png",
        "d41d8cd98f00b204e9800998ecf8427e.png",
        "1.2.840.113619.2.55.3.604688119.969.dcm",
        "Left_Coronary_Angiogram.png",
        "CT_SCAN_12.png",
        "patient001",
        "RAO_CRANIAL_3.png",
        "左冠状动脉_001.png",
        "造影12.png",
        "高清图像.png",
        "黄斑造影.png",
        "陈旧病变_1.png",
        "严重狭窄.png",
        "版本_1.2.2019.png",
        "Left.Coronary.png",
        "3f2504e04f8911d39a0c0305e82c3301",
        "synth_00012",
        "Image_01L_1stHO.png",
        "test_0001",
    ],
)
def test_ordinary_names_are_not_found(name: str) -> None:
    assert find_person(name) == ""
