"""NIfTI volumes: slices the way round that they are stored, one window a file, and limits for hostile
headers."""

from __future__ import annotations

import gzip
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vesalius.data.dataset import load_item, open_dataset
from vesalius.data.decoders import nifti
from vesalius.data.images import read_image
from vesalius.errors import AnnotationError, DataError, ImageError

nib = pytest.importorskip("nibabel", reason="needs the extra nifti")


def write(path: Path, volume: np.ndarray, second: bool = False, **header: Any) -> Path:
    """A volume as nibabel writes it, spacing (0.5, 0.7, 2) mm, and fields of the header."""
    kind = nib.Nifti2Image if second else nib.Nifti1Image
    image = kind(volume, np.diag([0.5, 0.7, 2, 1]), dtype=volume.dtype)
    if volume.ndim >= 3:
        image.header.set_zooms((0.5, 0.7, 2)[: volume.ndim] + (1,) * (volume.ndim - 3))
    for name, value in header.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def ramp(*shape: int, dtype: Any = np.int16) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def patched(path: Path, at: int, data: bytes) -> Path:
    """The file with other bytes at a place of its header."""
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_x_runs_to_the_right_and_y_down(tmp_path: Path, suffix: str, second: bool) -> None:
    volume = np.zeros((4, 3, 2), np.uint8)  # 4 wide, 3 high, 2 slices
    volume[3, 0, 0] = 10  # the right end of the first row
    volume[0, 2, 1] = 20  # the left end of the last row
    path = write(tmp_path / f"v{suffix}", volume, second)
    assert nifti.count_frames(path) == 2
    by_hand = [[[0, 0, 0, 10], [0, 0, 0, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0], [20, 0, 0, 0]]]
    for i in (0, 1, 0):
        frame = nifti.read_frame(path, i)
        assert frame.dtype == np.uint8
        np.testing.assert_array_equal(frame, np.repeat(np.array(by_hand[i])[:, :, None], 3, axis=2))
        np.testing.assert_array_equal(nifti.read_labels(path, i), by_hand[i])
    np.testing.assert_array_equal(read_image(path, 1), nifti.read_frame(path, 1))
    assert nifti.spacing_mm(path) == pytest.approx((0.7, 0.5))


def test_big_endian_files_are_the_same(tmp_path: Path) -> None:
    volume = ramp(5, 4, 3, dtype=">i2")
    image = nib.Nifti1Image(volume, np.eye(4), nib.Nifti1Header(endianness=">"))
    image.header.set_data_dtype(">i2")
    image.to_filename(tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == b"\0\0\x01\x5c"
    np.testing.assert_array_equal(nifti.read_labels(tmp_path / "big.nii", 2), volume[:, :, 2].T)


def test_the_window_of_the_header_is_that_of_all_slices(tmp_path: Path) -> None:
    volume = ramp(10, 10, 3)
    path = write(tmp_path / "v.nii", volume, cal_min=50, cal_max=150)
    shown = nifti.read_frame(path, 0)[:, :, 0]
    expected = np.rint(np.clip((volume[:, :, 0].T - 50) / 100, 0, 1) * 255)
    np.testing.assert_array_equal(shown, expected)
    assert (nifti.read_frame(path, 2) == 255)[volume[:, :, 2].T > 150].all()


def test_without_a_window_percentiles_of_the_whole_volume_are_black_and_white(tmp_path: Path) -> None:
    volume = ramp(10, 10, 10)
    path = write(tmp_path / "v.nii", volume)
    low, high = np.percentile(volume, (0.5, 99.5))
    for i in (4, 0, 9):
        expected = np.rint(np.clip((volume[:, :, i].T - low) / (high - low), 0, 1) * 255)
        np.testing.assert_array_equal(nifti.read_frame(path, i)[:, :, 0], expected)


def test_percentiles_of_a_large_volume_come_from_voxels_of_all_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "MAX_SAMPLED", 4096)
    volume = np.random.default_rng(0).normal(0, 300, (64, 64, 20)).astype(np.float32)
    volume[32:] += 4000
    low, high = nifti._percentiles(*nifti.version_of(write(tmp_path / "v.nii.gz", volume)))
    expected = np.percentile(volume, (0.5, 99.5))
    assert low == pytest.approx(expected[0], abs=150)
    assert high == pytest.approx(expected[1], abs=150)


def test_slope_and_intercept_are_applied_before_the_window(tmp_path: Path) -> None:
    path = write(tmp_path / "v.nii", ramp(4, 4, 2, dtype=np.uint8), cal_min=-1024, cal_max=-1004)
    patched(path, 112, np.array([2, -1024], "<f4").tobytes())  # scl_slope, scl_inter
    values = 2.0 * np.arange(32).reshape(4, 4, 2)[:, :, 1].T
    np.testing.assert_array_equal(
        nifti.read_frame(path, 1)[:, :, 0], np.rint(255 * np.clip(values / 20, 0, 1))
    )
    np.testing.assert_array_equal(nifti.read_labels(path, 1), values - 1024)


def test_nan_is_black_and_infinity_is_at_the_end(tmp_path: Path) -> None:
    volume = np.linspace(0, 1, 300, dtype=np.float32).reshape(10, 10, 3)
    volume[:3, 0, 0] = np.nan, np.inf, -np.inf
    frame = nifti.read_frame(write(tmp_path / "v.nii", volume), 0)[:, :, 0]
    assert frame[0, :3].tolist() == [0, 255, 0]
    assert frame.max() == 255
    nothing = write(tmp_path / "nan.nii", np.full((4, 4, 2), np.nan, np.float32))
    with pytest.raises(ImageError, match="holds no finite number"):
        nifti.read_frame(nothing, 0)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (7, 0)])
def test_a_volume_of_one_value_is_black(tmp_path: Path, value: int, expected: int) -> None:
    path = write(tmp_path / "v.nii", np.full((5, 5, 2), value, np.int16))
    assert (nifti.read_frame(path, 0) == expected).all()


def test_a_few_bright_voxels_on_nothing_are_white(tmp_path: Path) -> None:
    volume = np.zeros((50, 50, 4), np.float32)
    volume[3, 4, 1] = 1
    frame = nifti.read_frame(write(tmp_path / "v.nii", volume), 1)
    assert frame[4, 3, 0] == 255
    assert np.count_nonzero(frame) == 3


def test_color_is_shown_as_it_is(tmp_path: Path) -> None:
    color = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 3), np.uint8)
    volume = color.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    path = write(tmp_path / "v.nii.gz", volume)
    np.testing.assert_array_equal(nifti.read_frame(path, 1), color[:, :, 1].transpose(1, 0, 2))
    with pytest.raises(AnnotationError, match="is in color and holds no labels"):
        nifti.read_labels(path, 0)


def test_a_plane_is_one_slice(tmp_path: Path) -> None:
    for i, volume in enumerate((ramp(4, 3, dtype=np.uint8), ramp(4, 3, 1, 1, dtype=np.uint8))):
        path = write(tmp_path / f"{i}.nii", volume)
        assert nifti.count_frames(path) == 1
        np.testing.assert_array_equal(read_image(path)[:, :, 0], volume.reshape(4, 3).T)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.uint64, np.float32, np.float64])
def test_labels_of_every_type_of_number(tmp_path: Path, dtype: Any) -> None:
    labels = nifti.read_labels(write(tmp_path / "v.nii", ramp(4, 3, 2, dtype=dtype)), 1)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, ramp(4, 3, 2)[:, :, 1].T)


@pytest.mark.parametrize("wrong", [0.5, np.nan, np.inf, 1e30])
def test_labels_that_are_not_whole_are_refused(tmp_path: Path, wrong: float) -> None:
    volume = np.zeros((4, 3, 2), np.float64)
    volume[1, 1, 1] = wrong
    path = write(tmp_path / "v.nii", volume)
    assert not nifti.read_labels(path, 0).any()
    with pytest.raises(AnnotationError, match=r"slice 1: holds .*labels are whole numbers"):
        nifti.read_labels(path, 1)


@pytest.mark.parametrize(("units", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (10, 1)])
def test_spacing_is_in_mm_whatever_the_unit(tmp_path: Path, units: int, factor: float) -> None:
    path = write(tmp_path / "v.nii", ramp(4, 3, 2), xyzt_units=units)
    spacing = nifti.spacing_mm(path)
    assert spacing == pytest.approx((0.7 * factor, 0.5 * factor))


def test_spacing_that_is_none_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "v.nii", ramp(4, 3, 2))
    patched(path, 80, np.array([0], "<f4").tobytes())  # pixdim[1]
    assert nifti.spacing_mm(path) is None


def test_headers_that_no_reader_should_follow_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {
        "axes4": (ramp(2, 2, 2, 3), 40, b"", r"has 4 axes \(2 x 2 x 2 x 3\); save one volume"),
        "axes1": (ramp(4, 3, 2), 40, np.array([1], "<i2").tobytes(), "has 1 axes"),
        "axes0": (ramp(4, 3, 2), 40, np.array([0], "<i2").tobytes(), "has 0 axes"),
        "none": (ramp(4, 3, 2), 42, np.array([0], "<i2").tobytes(), r"has 3 axes \(0 x 3 x 2\)"),
        "large": (ramp(4, 3, 2), 42, np.array([32767, 32767], "<i2").tobytes(), "1074 megapixels"),
        "many": (ramp(4, 3, 2), 42, np.array([9000, 9000, 32767], "<i2").tobytes(), "holds 4944 GiB, 8 are"),
        "offset": (ramp(4, 3, 2), 108, np.array([1e30], "<f4").tobytes(), "voxels begin at byte 1e"),
        "early": (ramp(4, 3, 2), 108, np.array([4], "<f4").tobytes(), "voxels begin at byte 4"),
        "nan": (ramp(4, 3, 2), 108, np.array([np.nan], "<f4").tobytes(), "voxels begin at byte nan"),
        "complex": (ramp(4, 3, 2, dtype=np.complex64), 40, b"", "voxels of type complex64"),
        "type": (ramp(4, 3, 2), 70, np.array([77], "<i2").tobytes(), "cannot be decoded"),
        "short": (
            ramp(4, 3, 2),
            42,
            np.array([4, 3, 9], "<i2").tobytes(),
            "cut short: by its header it has 568",
        ),
    }
    for name, (volume, at, data, message) in cases.items():
        path = patched(write(tmp_path / f"{name}.nii", volume), at, data)
        with pytest.raises(ImageError, match=message):
            nifti.count_frames(path)
    monkeypatch.setattr(nifti, "MAX_SLICES", 1)
    with pytest.raises(ImageError, match="has 2 slices, 1 are allowed"):
        nifti.count_frames(write(tmp_path / "slices.nii", ramp(4, 3, 2)))


def test_a_packed_file_cut_short_is_refused_where_it_ends(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 20)).astype(np.uint8)
    path = write(tmp_path / "v.nii.gz", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    np.testing.assert_array_equal(nifti.read_frame(path, 2)[:, :, 0], noise[:, :, 2].T)
    for _ in range(2):
        with pytest.raises(ImageError, match=r"slice 15: cannot be decoded \(Compressed file ended"):
            nifti.read_frame(path, 15)
    whole = gzip.decompress(write(tmp_path / "w.nii.gz", noise).read_bytes())
    path.write_bytes(gzip.compress(whole[:-100]))
    with pytest.raises(ImageError, match="is cut short in slice 19 of 20"):
        nifti.read_frame(path, 19)


def test_a_packed_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = write(tmp_path / "v.nii", ramp(4, 3, 2))
    patched(path, 42, np.array([9000, 9000, 32767], "<i2").tobytes())
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(path.read_bytes() + bytes(2**24)))
    started = time.monotonic()
    with pytest.raises(ImageError, match="GiB"):
        nifti.count_frames(tmp_path / "v.nii.gz")
    assert time.monotonic() - started < 1


def test_what_is_no_nifti_is_not_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(b"\x5c\x01\0\0" + bytes(600))
    assert not nifti.recognize(path, path.read_bytes()[:512])
    with pytest.raises(ImageError, match="is no NIfTI file"):
        nifti.count_frames(path)
    pair = write(tmp_path / "p.nii", ramp(4, 3, 2))
    patched(pair, 344, b"ni1\0")
    assert not nifti.recognize(pair, pair.read_bytes()[:512])
    assert not nifti.recognize(path, gzip.compress(b"text")[:512])
    assert not nifti.recognize(path, b"\x1f\x8bnonsense")
    assert not nifti.recognize(path, b"")
    with pytest.raises(ImageError, match="no such file"):
        nifti.count_frames(tmp_path / "none.nii")
    with pytest.raises(ImageError, match="has 2 slices, so there is no slice 2"):
        nifti.read_frame(write(tmp_path / "v.nii", ramp(4, 3, 2)), 2)


def test_slices_of_a_packed_file_in_order_unpack_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "v.nii.gz", ramp(16, 16, 30, dtype=np.uint8))
    rewinds: list[int] = []
    reader: Any = gzip._GzipReader  # type: ignore[attr-defined]
    rewind = reader._rewind
    monkeypatch.setattr(reader, "_rewind", lambda self: rewinds.append(1) or rewind(self))
    for i in range(30):
        nifti.read_frame(path, i)
    assert rewinds == []


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_any_damage_is_a_data_error_and_never_hangs(tmp_path: Path, suffix: str) -> None:
    rng = random.Random(1)
    source = write(
        tmp_path / f"v{suffix}", np.random.default_rng(0).normal(0, 9, (12, 11, 5)).astype(np.float32)
    )
    for trial in range(150):
        data = bytearray(source.read_bytes())
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(len(data) if trial % 3 == 0 else 352)] = rng.randrange(256)
        if trial % 6 == 0:
            del data[rng.randrange(len(data)) :]
        path = tmp_path / f"{trial}{suffix}"
        path.write_bytes(data)
        started = time.monotonic()
        for reads in (nifti.read_frame, nifti.read_labels):
            try:
                reads(path, nifti.count_frames(path) - 1)
            except DataError as error:
                assert str(path) in str(error)
        path.unlink()
        assert time.monotonic() - started < 5


def test_a_folder_of_volumes_is_a_dataset_without_masks(tmp_path: Path) -> None:
    first, second = ramp(4, 3, 2, dtype=np.uint8), ramp(5, 4, 1, dtype=np.uint8)
    write(tmp_path / "a.nii.gz", first)
    write(tmp_path / "b.nii", second)
    (tmp_path / "readme.md").write_text("mine")
    data = open_dataset(tmp_path)
    assert data.format == "nifti"
    assert [sample.id for sample in data.samples] == ["a__0000", "a__0001", "b"]
    assert [sample.group for sample in data.samples] == ["a", "a", None]
    assert data.samples[0].spacing_mm == pytest.approx((0.7, 0.5))
    assert any("ignored beside the NIfTI volumes, by suffix: .md (1)" in note for note in data.notes)
    np.testing.assert_array_equal(load_item(data.samples[1]).frames[0, :, :, 0], first[:, :, 1].T)
    problems: list[DataError] = []
    (tmp_path / "a.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:80])
    (tmp_path / "c.nii").write_bytes(b"\x5c\x01\0\0" + bytes(340) + b"n+1\0")
    assert [sample.id for sample in open_dataset(tmp_path, problems=problems).samples] == ["b"]
    assert [problem.code for problem in problems] == ["unreadable_image", "unreadable_image"]
