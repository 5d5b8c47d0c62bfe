"""Read NIfTI volumes (`.nii`, `.nii.gz`) as slices with display gray levels.

A slice is taken along the last axis, as stored: axis 0 (x) runs to the right and axis 1 (y) down, so slice k is
`volume[:, :, k].T`, the array of SimpleITK and nnU-Net. The affine is not applied: a viewer that orients volumes to the
patient may show the same slice mirrored.

All slices of a file share one gray scale: from `cal_min` (black) to `cal_max` (white) if the header states them; the
stored values for uint8 without scaling; otherwise from the 0.5th to the 99.5th percentile of the finite voxels (an even
sample of at most four million). Values outside are clipped to black or white, and NaN is black.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped, UInt8

from vesalius.data.decoders.decoded import Decoded, as_rgb, depth_of
from vesalius.data.decoders.limits import check_pixels, decoding, image_error, version_of
from vesalius.extras import require
from vesalius.window import AUTO, Range, Window, clipped_fraction

SUFFIXES = (".nii", ".nii.gz")

MAX_BYTES = 8 * 2**30
"""Maximum size of a decompressed volume; a gzip file of 8 MB can decompress to this size."""
MAX_SLICES = 100_000
MAX_OFFSET = 2**26
"""Maximum offset of the voxels in bytes, after the header and its extensions."""
MAX_SAMPLED = 2**22
"""Maximum number of voxels sampled for percentiles."""
PERCENTILES = (0.5, 99.5)

GZIP = b"\x1f\x8b"
MAGICS = {348: (344, b"n+1\0"), 540: (4, b"n+2\0")}
"""Header length (the first number of the header) -> (offset of the magic bytes, magic bytes)."""
MM_OF_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""`xyzt_units` -> mm: unknown (taken as mm, like ITK), meters, millimeters, micrometers."""


def recognize(path: Path, head: bytes) -> bool:
    """True if the first bytes, compressed or not, are those of a single-file NIfTI-1 or NIfTI-2 volume."""
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 512)
        except zlib.error:
            return False
    # the smaller number has the right byte order: byte-swapped, 348 and 540 are huge
    length = min(int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
    at, magic = MAGICS.get(length, (0, b"none"))
    return head[at : at + 4] == magic


def count_frames(path: Path) -> int:
    """Number of slices stated in the header: the length of axis 2, or 1 for a 2D image.

    Raises ImageError for a damaged header, one axis or more than three (trailing axes of length 1 are dropped), voxels
    that are neither real numbers nor RGB24, slices above `MAX_PIXELS`, more than `MAX_SLICES` slices or `MAX_BYTES`
    bytes, or a truncated file; MissingExtraError without nibabel.
    """
    return _volume(*version_of(path)).shape[2]


def spacing_mm(path: Path) -> tuple[float, float] | None:
    """Pixel spacing (y, x) in mm within a slice; None if the header does not state it."""
    return _volume(*version_of(path)).spacing_mm


@dataclass(frozen=True)
class Volume:
    """Properties of a volume stated in its header."""

    shape: tuple[int, int, int]
    """Lengths of axes 0, 1 and 2: width and height of a slice, and the number of slices."""
    dtype: np.dtype[Any]
    """Type of the stored voxels; a structured type for RGB24."""
    offset: int
    """Byte offset of the voxels."""
    slope: float
    intercept: float
    window: tuple[float, float] | None
    """Values shown as black and as white, if the header states them."""
    spacing_mm: tuple[float, float] | None

    @property
    def n_bytes(self) -> int:
        """Size of the decompressed voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


class NiftiDecoder:
    """Decoder of one open volume, for one thread at a time; reading in order decompresses a gzip file once."""

    def __init__(self, path: Path) -> None:
        self.path, self._version = path, version_of(path)
        self._volume = _volume(*self._version)
        self.n_frames = self._volume.shape[2]
        with decoding(path):
            self._file = unpack(path)
        volume = self._volume
        spec = (volume.shape, volume.dtype, volume.offset, volume.slope, volume.intercept)
        self._voxels = _nibabel("nibabel.arrayproxy").ArrayProxy(self._file, spec)

    def read(self, frame: int, window: Window = AUTO) -> Decoded:
        """A slice as RGB, as stored (axis 0 right, axis 1 down) with display gray levels; ImageError as `numbers`.

        `auto` is the window of the header, or the percentiles above. Other windows apply to the scaled values.
        """
        numbers, volume = self.numbers(frame), self._volume
        depth = depth_of(volume.dtype) if volume.dtype.fields is None else "8-bit"
        if volume.dtype.fields:
            numbers = np.ascontiguousarray(numbers).view(np.uint8).reshape(*numbers.shape, 3)
        shown = self._range(window, numbers.dtype)
        if shown is None:
            return Decoded(as_rgb(numbers), None, depth)
        clipped = 0.0 if window.kind == "auto" else clipped_fraction(numbers, shown)
        return Decoded(as_rgb(_apply_window(numbers, *shown)), shown, depth, clipped)

    def _range(self, window: Window, dtype: np.dtype[Any]) -> Range | None:
        """Values shown as black and white; None if the stored values are gray levels or colors."""
        if window.kind == "range":
            return window.low, window.high
        if window.kind == "percentile":
            return _percentiles(*self._version, (window.low, window.high))
        if self._volume.dtype.fields or (self._volume.window is None and dtype == np.uint8):
            return None
        return self._volume.window or _percentiles(*self._version, PERCENTILES)

    def numbers(self, index: int) -> Shaped[np.ndarray, "h w"]:
        """Voxel values of a slice, as stored, or scaled as float64 if the header states a slope and intercept.

        Raises ImageError if there is no such slice or the file ends before it.
        """
        if not 0 <= index < self.n_frames:
            raise image_error(
                self.path,
                f"has {self.n_frames} slices, so there is no slice {index} (numbered from 0)",
                "frame_count_mismatch",
            )
        with decoding(self.path, f"slice {index}"), np.errstate(over="ignore"):
            try:
                return np.asarray(self._voxels[..., index]).T
            except ValueError as error:  # nibabel: not enough data in file
                raise image_error(
                    self.path, f"is truncated in slice {index} of {self.n_frames}", "truncated_file"
                ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@lru_cache(maxsize=1024)
def _volume(path: Path, size: int, time_ns: int) -> Volume:
    nibabel = _nibabel("nibabel")
    with decoding(path):
        with unpack(path) as file:
            head = file.read(540)
        if not recognize(path, head):
            raise image_error(path, "is not a single-file NIfTI volume", "unsupported_file_type")
        second = head[4:8] == b"n+2\0"
        kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
        volume = _read_header(kind(head if second else head[:348], check=False), path)
        with path.open("rb") as file:
            packed = file.read(2) == GZIP
    needed = volume.offset + volume.n_bytes
    if not packed and size < needed:
        raise image_error(path, f"is truncated: its header states {needed} bytes, but it has {size}", "truncated_file")
    return volume


def _read_header(header: Any, path: Path) -> Volume:
    shape = _read_shape(header["dim"].tolist(), path)
    dtype = header.get_data_dtype()
    if dtype.fields is None and (dtype.kind not in "iuf" or dtype.itemsize > 8):
        raise image_error(path, f"has voxels of type {dtype}", "unsupported_volume")
    if dtype.fields is not None and dtype.itemsize != 3:
        raise image_error(path, "has colors with transparency", "unsupported_volume")
    offset = float(header["vox_offset"])
    if not int(header["sizeof_hdr"]) <= offset <= MAX_OFFSET:
        raise image_error(path, f"states an invalid voxel offset ({offset:g})", "damaged_file")
    slope, intercept = header.get_slope_inter()
    low, high = float(header["cal_min"]), float(header["cal_max"])
    window = (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None
    unit = MM_OF_UNIT.get(int(header["xyzt_units"]) & 7, math.nan)
    x, y = (float(side) * unit for side in header["pixdim"][1:3])
    spacing = (y, x) if 0 < x < math.inf and 0 < y < math.inf else None
    scaling = (1.0, 0.0) if slope is None else (float(slope), float(intercept))
    volume = Volume(shape, dtype, int(offset), *scaling, window, spacing)
    if volume.n_bytes > MAX_BYTES:
        raise image_error(
            path,
            f"has {volume.n_bytes / 2**30:.0f} GiB of voxels; the limit is {MAX_BYTES // 2**30}",
            "image_too_large",
        )
    return volume


def _read_shape(dim: list[int], path: Path) -> tuple[int, int, int]:
    """(width, height, slices) from `dim`: the number of axes, then their lengths."""
    lengths = dim[1 : dim[0] + 1]
    while len(lengths) > 2 and lengths[-1] == 1:
        lengths.pop()
    shown = " x ".join(map(str, lengths))
    if not 2 <= len(lengths) <= 3 or min(lengths) < 1:
        raise image_error(path, f"has {len(lengths)} axes ({shown})", "unsupported_volume")
    width, height, n = (*lengths, 1)[:3]
    check_pixels(height, width, str(path))
    if n > MAX_SLICES:
        raise image_error(path, f"has {n} slices; the limit is {MAX_SLICES}", "image_too_large")
    return width, height, n


@lru_cache(maxsize=1024)
def _percentiles(path: Path, size: int, time_ns: int, limits: Range) -> Range:
    volume = _volume(path, size, time_ns)
    area = volume.shape[0] * volume.shape[1]
    # an odd stride visits all columns even if the row length is a power of two
    stride = -(-area * volume.shape[2] // MAX_SAMPLED) | 1
    decoder = NiftiDecoder(path)
    try:
        # the bytes of an RGB24 voxel are its values
        parts = [_flat(decoder.numbers(index))[-index * area % stride :: stride] for index in range(decoder.n_frames)]
    finally:
        decoder.close()
    numbers = np.concatenate(parts)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        raise image_error(path, "has no finite voxel", "damaged_file")
    low, high = np.percentile(numbers, limits)
    return float(low), float(high)


def _flat(numbers: np.ndarray) -> np.ndarray:
    return numbers.ravel() if numbers.dtype.fields is None else np.ascontiguousarray(numbers).view(np.uint8).ravel()


def _apply_window(numbers: np.ndarray, low: float, high: float) -> UInt8[np.ndarray, "h w *c"]:
    """Gray levels 0 to 255 of numbers; a window of width 0 is a threshold above which values are white."""
    with np.errstate(invalid="ignore", over="ignore"):
        gray = (numbers.astype(np.float64) - low) / (high - low) if low < high else numbers > high
    return np.rint(255 * np.clip(np.nan_to_num(gray), 0, 1)).astype(np.uint8)


def unpack(path: Path) -> BinaryIO:
    """The open file, decompressed if it is a gzip file."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    return gzip.GzipFile(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def _nibabel(module: str) -> Any:
    return require(module, "nifti", "NIfTI files")
