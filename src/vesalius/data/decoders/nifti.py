"""NIfTI volumes (`.nii`, `.nii.gz`) as slices: the pixels that are shown, and the numbers of label volumes.

A slice is taken along the last axis, as stored: axis 0 (x) runs to the right and axis 1 (y) down, so slice k
is `volume[:, :, k].T`. That is the array of SimpleITK and nnU-Net. The affine is not applied: a viewer that
turns volumes to the patient may show the same slice mirrored.

Gray levels are the same for all slices of a file: from `cal_min` (black) to `cal_max` (white) where its
header states them; bytes without scaling as they are; otherwise from the 0.5th to the 99.5th percentile of
the volume's finite numbers (of at most four million voxels, evenly taken). What lies outside is black or
white, and NaN is black.
"""

from __future__ import annotations

import gzip
import math
import threading
import weakref
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from vesalius.data.decoders.limits import check_pixels, decoding, version_of
from vesalius.errors import AnnotationError, ImageError
from vesalius.extras import require

SUFFIXES = (".nii", ".nii.gz")

MAX_BYTES = 8 * 2**30
"""Of a volume once it is unpacked: a gzip file of 8 MB can hold as much."""
MAX_SLICES = 100_000
MAX_OFFSET = 2**26
"""Bytes before the voxels: the header and its extensions."""
MAX_SAMPLED = 2**22
"""Voxels that percentiles are taken from."""
PERCENTILES = (0.5, 99.5)

GZIP = b"\x1f\x8b"
MAGICS = {348: (344, b"n+1\0"), 540: (4, b"n+2\0")}
"""Length of the header, which is its first number -> (where the magic stands, what it is)."""
MM_OF_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Of `xyzt_units`: unknown (taken as mm, as ITK does), meters, millimeters, micrometers."""


def recognize(path: Path, head: bytes) -> bool:
    """Whether the first bytes, gzip or not, are those of a NIfTI-1 or -2 file in one part."""
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 512)
        except zlib.error:
            return False
    # read from the wrong end, 348 and 540 are huge
    length = min(int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
    at, magic = MAGICS.get(length, (0, b"none"))
    return head[at : at + 4] == magic


def count_frames(path: Path) -> int:
    """Slices of the volume, by its header: the length of axis 2, 1 for a plane.

    Raises ImageError for a header that is broken, one axis or more than three (further axes of length 1 are
    dropped), voxels that are neither real numbers nor RGB24, slices above 200 megapixels, more than
    `MAX_SLICES` or `MAX_BYTES`, or a file that is shorter than its header says; MissingExtraError without
    nibabel.
    """
    return _volume(*version_of(path)).shape[2]


def read_frame(path: Path, frame: int) -> UInt8[np.ndarray, "h w 3"]:
    """One slice as RGB, in the orientation and with the gray levels that the module states.

    The file stays open: slices of a gzip file that are read in order unpack it once. Raises ImageError as
    `count_frames`, and where there is no such slice or the file ends before it.
    """
    version = version_of(path)
    volume = _volume(*version)
    stored = _reader(*version, threading.get_ident()).read(frame)
    if volume.dtype.fields:
        return stored.view(np.uint8).reshape(*stored.shape, 3).copy()
    window = volume.window
    if window is None and (volume.dtype != np.uint8 or volume.is_scaled):
        window = _percentiles(*version)
    gray = stored if window is None else _show(volume.scale(stored), *window)
    return np.repeat(gray[:, :, None], 3, axis=2)


def read_labels(path: Path, frame: int) -> Int64[np.ndarray, "h w"]:
    """The numbers of one slice of a label volume, in the orientation of `read_frame`.

    ImageError as for `read_frame`; AnnotationError where a number is not whole, or the file is in color.
    """
    version = version_of(path)
    volume = _volume(*version)
    if volume.dtype.fields:
        raise AnnotationError(
            f"{path}: is in color and holds no labels; give the label volume", code="invalid_labels"
        )
    numbers = volume.scale(_reader(*version, threading.get_ident()).read(frame))
    with np.errstate(invalid="ignore"):  # NaN, and what lies beyond int64
        labels = numbers.astype(np.int64)
    wrong = numbers[labels != numbers]
    if wrong.size:
        raise AnnotationError(
            f"{path}, slice {frame}: holds {float(wrong[0]):g}, which is no label; labels are whole numbers",
            code="invalid_labels",
        )
    return labels


def spacing_mm(path: Path) -> tuple[float, float] | None:
    """(y, x) from pixel to pixel of a slice; None where the header states none."""
    return _volume(*version_of(path)).spacing_mm


@dataclass(frozen=True)
class Volume:
    """What the header of a file says."""

    shape: tuple[int, int, int]
    """Lengths of axes 0, 1 and 2: width and height of a slice, and how many there are."""
    dtype: np.dtype[Any]
    """Of voxels in the file; with fields for RGB24."""
    offset: int
    """Of the first voxel, bytes."""
    slope: float
    intercept: float
    window: tuple[float, float] | None
    """What is black and what is white, where the header states it."""
    spacing_mm: tuple[float, float] | None

    @property
    def slice_bytes(self) -> int:
        """Bytes of one slice in the file."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def is_scaled(self) -> bool:
        """Whether stored numbers stand for others."""
        return (self.slope, self.intercept) != (1, 0)

    def scale(self, stored: Shaped[np.ndarray, ...]) -> Shaped[np.ndarray, ...]:
        """The numbers that stored ones stand for: themselves, or float64."""
        with np.errstate(over="ignore"):
            return stored * np.float64(self.slope) + self.intercept if self.is_scaled else stored


class SliceReader:
    """One open volume: owns its file, and so where that stands. Not to be shared by threads."""

    def __init__(self, path: Path, volume: Volume) -> None:
        self.path, self.volume = path, volume
        self._file = _unpack(path)
        self.close = weakref.finalize(self, self._file.close)

    def read(self, index: int) -> Shaped[np.ndarray, "h w"]:
        """Stored numbers of a slice, read-only; ImageError where the file has none, or ends before."""
        width, height, n = self.volume.shape
        if not 0 <= index < n:
            raise ImageError(f"{self.path}: has {n} slices, so there is no slice {index} (they count from 0)")
        with decoding(self.path, f"slice {index}"):
            self._file.seek(self.volume.offset + index * self.volume.slice_bytes)
            data = self._file.read(self.volume.slice_bytes)
        if len(data) < self.volume.slice_bytes:
            raise ImageError(
                f"{self.path}: is cut short in slice {index} of {n}; copy it again from its source"
            )
        # x runs fastest in the file: lines of x are rows
        return np.frombuffer(data, self.volume.dtype).reshape(height, width)


@lru_cache(maxsize=8)
def _reader(path: Path, size: int, time_ns: int, thread: int) -> SliceReader:
    # a cache of a pure function: where the file stands changes how long a slice takes, not what it is
    with decoding(path):
        return SliceReader(path, _volume(path, size, time_ns))


@lru_cache(maxsize=1024)
def _volume(path: Path, size: int, time_ns: int) -> Volume:
    nibabel = require("nibabel", "nifti", "NIfTI files")
    with decoding(path):
        with _unpack(path) as file:
            head = file.read(540)
        if not recognize(path, head):
            raise ImageError(f"{path}: is no NIfTI file in one part; save it as .nii or .nii.gz")
        second = head[4:8] == b"n+2\0"
        kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
        volume = _read_header(kind(head if second else head[:348], check=False), path)
        with path.open("rb") as file:
            packed = file.read(2) == GZIP
    needed = volume.offset + volume.shape[2] * volume.slice_bytes
    if not packed and size < needed:
        raise ImageError(
            f"{path}: is cut short: by its header it has {needed} bytes, but there are {size}; copy it again"
        )
    return volume


def _read_header(header: Any, path: Path) -> Volume:
    shape = _read_shape(header["dim"].tolist(), path)
    dtype = header.get_data_dtype()
    if dtype.fields is None and (dtype.kind not in "iuf" or dtype.itemsize > 8):
        raise ImageError(f"{path}: has voxels of type {dtype}; save it as whole or real numbers, or RGB24")
    if dtype.fields is not None and dtype.itemsize != 3:
        raise ImageError(f"{path}: has colors with transparency; save it as RGB24")
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > MAX_BYTES:
        raise ImageError(f"{path}: holds {n_bytes / 2**30:.0f} GiB, {MAX_BYTES // 2**30} are allowed; cut it")
    offset = float(header["vox_offset"])
    if not int(header["sizeof_hdr"]) <= offset <= MAX_OFFSET:
        raise ImageError(f"{path}: says that its voxels begin at byte {offset:g}; write the file again")
    slope, intercept = header.get_slope_inter()
    low, high = float(header["cal_min"]), float(header["cal_max"])
    window = (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None
    unit = MM_OF_UNIT.get(int(header["xyzt_units"]) & 7, math.nan)
    x, y = (float(side) * unit for side in header["pixdim"][1:3])
    spacing = (y, x) if 0 < x < math.inf and 0 < y < math.inf else None
    scaling = (1.0, 0.0) if slope is None else (float(slope), float(intercept))
    return Volume(shape, dtype, int(offset), *scaling, window, spacing)


def _read_shape(dim: list[int], path: Path) -> tuple[int, int, int]:
    """`dim` is the number of axes, then their lengths."""
    lengths = dim[1 : dim[0] + 1]
    while len(lengths) > 2 and lengths[-1] == 1:
        lengths.pop()
    shown = " x ".join(map(str, lengths))
    if not 2 <= len(lengths) <= 3 or min(lengths) < 1:
        raise ImageError(f"{path}: has {len(lengths)} axes ({shown}); save one volume, or one plane, a file")
    width, height, n = (*lengths, 1)[:3]
    check_pixels(height, width, str(path))
    if n > MAX_SLICES:
        raise ImageError(f"{path}: has {n} slices, {MAX_SLICES} are allowed; cut it into parts")
    return width, height, n


@lru_cache(maxsize=1024)
def _percentiles(path: Path, size: int, time_ns: int) -> tuple[float, float]:
    volume = _volume(path, size, time_ns)
    reader = SliceReader(path, volume)
    area = volume.shape[0] * volume.shape[1]
    # odd, so that it takes all columns in turn where rows are a power of two long
    stride = -(-area * volume.shape[2] // MAX_SAMPLED) | 1
    parts = [
        volume.scale(reader.read(index).ravel()[-index * area % stride :: stride])
        for index in range(volume.shape[2])
    ]
    reader.close()
    numbers = np.concatenate(parts)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        raise ImageError(f"{path}: holds no finite number; write the file again")
    low, high = np.percentile(numbers, PERCENTILES)
    return float(low), float(high)


def _show(numbers: np.ndarray, low: float, high: float) -> UInt8[np.ndarray, "h w"]:
    """Gray levels of 255; where the window has no width, what lies above it is white."""
    with np.errstate(invalid="ignore", over="ignore"):
        share = (numbers.astype(np.float64) - low) / (high - low) if low < high else numbers > high
    return np.rint(255 * np.clip(np.nan_to_num(share), 0, 1)).astype(np.uint8)


def _unpack(path: Path) -> BinaryIO:
    """The open file, as if it had never been packed."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    return gzip.GzipFile(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]
