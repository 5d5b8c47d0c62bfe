"""NIfTI volumes: orientation of slices, one window per file, and limits against hostile headers."""

from __future__ import annotations

import gzip
import random
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.codes import raises_code

from vesalius.data.dataset import load_item, open_dataset
from vesalius.data.decoders import nifti
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.images import read_image
from vesalius.errors import DataError, ImageError

nib = pytest.importorskip("nibabel", reason="needs the extra nifti")


def write(path: Path, volume: np.ndarray, second: bool = False, **header: Any) -> Path:
    """Write a volume with nibabel, spacing (0.5, 0.7, 2) mm, and further header fields."""
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
    """Overwrite the bytes at offset `at` of the file's header."""
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    return path


def read(path: Path, index: int) -> np.ndarray:
    """Read one slice with a new decoder."""
    with closing(nifti.NiftiDecoder(path)) as decoder:
        return decoder.read(index).pixels


def numbers(path: Path, index: int) -> np.ndarray:
    with closing(nifti.NiftiDecoder(path)) as decoder:
        return decoder.numbers(index)


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
        frame = read(path, i)
        assert frame.dtype == np.uint8
        np.testing.assert_array_equal(frame, np.repeat(np.array(by_hand[i])[:, :, None], 3, axis=2))
        np.testing.assert_array_equal(numbers(path, i), by_hand[i])
    np.testing.assert_array_equal(read_image(path, 1), read(path, 1))
    assert nifti.spacing_mm(path) == pytest.approx((0.7, 0.5))


def test_big_endian_files_are_the_same(tmp_path: Path) -> None:
    volume = ramp(5, 4, 3, dtype=">i2")
    image = nib.Nifti1Image(volume, np.eye(4), nib.Nifti1Header(endianness=">"))
    image.header.set_data_dtype(">i2")
    image.to_filename(tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == b"\0\0\x01\x5c"
    np.testing.assert_array_equal(numbers(tmp_path / "big.nii", 2), volume[:, :, 2].T)


def test_all_slices_use_the_window_of_the_header(tmp_path: Path) -> None:
    volume = ramp(10, 10, 3)
    path = write(tmp_path / "v.nii", volume, cal_min=50, cal_max=150)
    shown = read(path, 0)[:, :, 0]
    expected = np.rint(np.clip((volume[:, :, 0].T - 50) / 100, 0, 1) * 255)
    np.testing.assert_array_equal(shown, expected)
    assert (read(path, 2) == 255)[volume[:, :, 2].T > 150].all()


def test_without_a_window_percentiles_of_the_whole_volume_are_black_and_white(tmp_path: Path) -> None:
    volume = ramp(10, 10, 10)
    path = write(tmp_path / "v.nii", volume)
    low, high = np.percentile(volume, (0.5, 99.5))
    for i in (4, 0, 9):
        expected = np.rint(np.clip((volume[:, :, i].T - low) / (high - low), 0, 1) * 255)
        np.testing.assert_array_equal(read(path, i)[:, :, 0], expected)


def test_percentiles_of_a_large_volume_come_from_voxels_of_all_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "MAX_SAMPLED", 4096)
    volume = np.random.default_rng(0).normal(0, 300, (64, 64, 20)).astype(np.float32)
    volume[32:] += 4000
    low, high = nifti._percentiles(*nifti.version_of(write(tmp_path / "v.nii.gz", volume)), nifti.PERCENTILES)
    expected = np.percentile(volume, (0.5, 99.5))
    assert low == pytest.approx(expected[0], abs=150)
    assert high == pytest.approx(expected[1], abs=150)


def test_slope_and_intercept_are_applied_before_the_window(tmp_path: Path) -> None:
    path = write(tmp_path / "v.nii", ramp(4, 4, 2, dtype=np.uint8), cal_min=-1024, cal_max=-1004)
    patched(path, 112, np.array([2, -1024], "<f4").tobytes())  # scl_slope, scl_inter
    values = 2.0 * np.arange(32).reshape(4, 4, 2)[:, :, 1].T
    np.testing.assert_array_equal(read(path, 1)[:, :, 0], np.rint(255 * np.clip(values / 20, 0, 1)))
    np.testing.assert_array_equal(numbers(path, 1), values - 1024)


def test_nan_is_black_and_infinity_is_at_the_end(tmp_path: Path) -> None:
    volume = np.linspace(0, 1, 300, dtype=np.float32).reshape(10, 10, 3)
    volume[:3, 0, 0] = np.nan, np.inf, -np.inf
    frame = read(write(tmp_path / "v.nii", volume), 0)[:, :, 0]
    assert frame[0, :3].tolist() == [0, 255, 0]
    assert frame.max() == 255
    nothing = write(tmp_path / "nan.nii", np.full((4, 4, 2), np.nan, np.float32))
    with raises_code(ImageError, "damaged_file", "finite"):
        read(nothing, 0)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (7, 0)])
def test_a_volume_of_one_value_is_black(tmp_path: Path, value: int, expected: int) -> None:
    path = write(tmp_path / "v.nii", np.full((5, 5, 2), value, np.int16))
    assert (read(path, 0) == expected).all()


def test_a_single_bright_voxel_is_white(tmp_path: Path) -> None:
    volume = np.zeros((50, 50, 4), np.float32)
    volume[3, 4, 1] = 1
    frame = read(write(tmp_path / "v.nii", volume), 1)
    assert frame[4, 3, 0] == 255
    assert np.count_nonzero(frame) == 3


def test_rgb_voxels_are_unchanged(tmp_path: Path) -> None:
    color = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 3), np.uint8)
    volume = color.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    path = write(tmp_path / "v.nii.gz", volume)
    np.testing.assert_array_equal(read(path, 1), color[:, :, 1].transpose(1, 0, 2))


def test_a_plane_is_one_slice(tmp_path: Path) -> None:
    for i, volume in enumerate((ramp(4, 3, dtype=np.uint8), ramp(4, 3, 1, 1, dtype=np.uint8))):
        path = write(tmp_path / f"{i}.nii", volume)
        assert nifti.count_frames(path) == 1
        np.testing.assert_array_equal(read_image(path)[:, :, 0], volume.reshape(4, 3).T)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.uint64, np.float32, np.float64])
def test_voxel_values_of_every_type_are_exact(tmp_path: Path, dtype: Any) -> None:
    values = numbers(write(tmp_path / "v.nii", ramp(4, 3, 2, dtype=dtype)), 1)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, ramp(4, 3, 2)[:, :, 1].T)


@pytest.mark.parametrize(("units", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (10, 1)])
def test_spacing_is_in_mm_whatever_the_unit(tmp_path: Path, units: int, factor: float) -> None:
    path = write(tmp_path / "v.nii", ramp(4, 3, 2), xyzt_units=units)
    spacing = nifti.spacing_mm(path)
    assert spacing == pytest.approx((0.7 * factor, 0.5 * factor))


def test_spacing_that_is_none_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "v.nii", ramp(4, 3, 2))
    patched(path, 80, np.array([0], "<f4").tobytes())  # pixdim[1]
    assert nifti.spacing_mm(path) is None


def test_hostile_headers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def header(*values: int) -> bytes:
        return np.array(values, "<i2").tobytes()

    def offset(value: float) -> bytes:
        return np.array([value], "<f4").tobytes()

    small = ramp(4, 3, 2)
    cases = {
        "axes4": (ramp(2, 2, 2, 3), 40, b"", "unsupported_volume", "4 axes (2 x 2 x 2 x 3)"),
        "axes1": (small, 40, header(1), "unsupported_volume", "1 axes"),
        "axes0": (small, 40, header(0), "unsupported_volume", "0 axes"),
        "none": (small, 42, header(0), "unsupported_volume", "3 axes (0 x 3 x 2)"),
        "large": (small, 42, header(32767, 32767), "image_too_large", "1074 megapixels"),
        "many": (small, 42, header(9000, 9000, 32767), "image_too_large", "4944 GiB"),
        "offset": (small, 108, offset(1e30), "damaged_file", "offset (1e"),
        "early": (small, 108, offset(4), "damaged_file", "offset (4)"),
        "nan": (small, 108, offset(np.nan), "damaged_file", "offset (nan)"),
        "complex": (small.astype(np.complex64), 40, b"", "unsupported_volume", "complex64"),
        "type": (small, 70, header(77), "unreadable_image", ""),
        "short": (small, 42, header(4, 3, 9), "truncated_file", "568 bytes"),
    }
    for name, (volume, at, data, code, holds) in cases.items():
        path = patched(write(tmp_path / f"{name}.nii", volume), at, data)
        with raises_code(ImageError, code, str(path), holds):
            nifti.count_frames(path)
    monkeypatch.setattr(nifti, "MAX_SLICES", 1)
    with raises_code(ImageError, "image_too_large", "2 slices"):
        nifti.count_frames(write(tmp_path / "slices.nii", small))


def test_a_truncated_gzip_file_is_read_up_to_its_end(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 20)).astype(np.uint8)
    path = write(tmp_path / "v.nii.gz", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    np.testing.assert_array_equal(read(path, 2)[:, :, 0], noise[:, :, 2].T)
    for _ in range(2):
        with raises_code(ImageError, "unreadable_image", "slice 15"):
            read(path, 15)
    whole = gzip.decompress(write(tmp_path / "w.nii.gz", noise).read_bytes())
    path.write_bytes(gzip.compress(whole[:-100]))
    with raises_code(ImageError, "truncated_file", "slice 19 of 20"):
        read(path, 19)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = write(tmp_path / "v.nii", ramp(4, 3, 2))
    patched(path, 42, np.array([9000, 9000, 32767], "<i2").tobytes())
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(path.read_bytes() + bytes(2**24)))
    started = time.monotonic()
    with raises_code(ImageError, "image_too_large", "GiB"):
        nifti.count_frames(tmp_path / "v.nii.gz")
    assert time.monotonic() - started < 1


def test_other_files_are_not_recognized_as_nifti(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(b"\x5c\x01\0\0" + bytes(600))
    assert not nifti.recognize(path, path.read_bytes()[:512])
    with raises_code(ImageError, "unsupported_file_type"):
        nifti.count_frames(path)
    pair = write(tmp_path / "p.nii", ramp(4, 3, 2))
    patched(pair, 344, b"ni1\0")
    assert not nifti.recognize(pair, pair.read_bytes()[:512])
    assert not nifti.recognize(path, gzip.compress(b"text")[:512])
    assert not nifti.recognize(path, b"\x1f\x8bnonsense")
    assert not nifti.recognize(path, b"")
    with raises_code(ImageError, "not_found"):
        nifti.count_frames(tmp_path / "none.nii")
    with raises_code(ImageError, "frame_count_mismatch", "2 slices"):
        read(write(tmp_path / "v.nii", ramp(4, 3, 2)), 2)


def test_slices_of_a_gzip_file_read_in_order_unpack_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "v.nii.gz", ramp(16, 16, 30, dtype=np.uint8))
    rewinds: list[int] = []
    reader: Any = gzip._GzipReader  # type: ignore[attr-defined]
    rewind = reader._rewind
    monkeypatch.setattr(reader, "_rewind", lambda self: rewinds.append(1) or rewind(self))
    with FrameReader() as reader:
        for i in range(30):
            read_image(path, i, reader)
    assert rewinds == []


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_any_damage_is_an_image_error_and_never_hangs(tmp_path: Path, suffix: str) -> None:
    rng = random.Random(1)
    source = write(tmp_path / f"v{suffix}", np.random.default_rng(0).normal(0, 9, (12, 11, 5)).astype(np.float32))
    for trial in range(150):
        data = bytearray(source.read_bytes())
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(len(data) if trial % 3 == 0 else 352)] = rng.randrange(256)
        if trial % 6 == 0:
            del data[rng.randrange(len(data)) :]
        path = tmp_path / f"{trial}{suffix}"
        path.write_bytes(data)
        started = time.monotonic()
        try:
            read(path, nifti.count_frames(path) - 1)
        except ImageError as error:
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
    assert any("ignored files beside the NIfTI volumes, by suffix: .md (1)" in note for note in data.notes)
    np.testing.assert_array_equal(load_item(data.samples[1]).frames[0, :, :, 0], first[:, :, 1].T)
    problems: list[DataError] = []
    (tmp_path / "a.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:80])
    (tmp_path / "c.nii").write_bytes(b"\x5c\x01\0\0" + bytes(340) + b"n+1\0")
    assert [sample.id for sample in open_dataset(tmp_path, problems=problems).samples] == ["b"]
    assert [problem.code for problem in problems] == ["unreadable_image", "unsupported_volume"]
