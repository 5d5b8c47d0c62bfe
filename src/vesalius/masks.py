"""Masks: conversion between polygons, COCO RLE and boolean arrays, and resizing.

Masks are bool (h, w). Polygon points are (x, y) in pixels of the original image, where (0, 0) is the outer
corner of the first pixel. Polygons are rasterized by pycocotools, the reference implementation of COCO. Other
rasterizers include the boundary: on coronary vessels, `cv2.fillPoly` reaches only a Dice of 0.940 against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco

Size = tuple[int, int]
"""(height, width) in pixels."""

EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)
"""Structuring element of 8-connectivity, which defines the connected components of masks."""


class Rle(TypedDict):
    """COCO run-length encoding; `counts` is the compressed string, or a list of run lengths."""

    size: list[int]
    counts: str | list[int]


def rasterize(polygons: Sequence[Sequence[float]], size: Size) -> Bool[np.ndarray, "h w"]:
    """Union of polygons `[x1, y1, x2, y2, ...]` as a mask of `size`; without polygons, an empty mask.

    Polygons are clipped to the image. Raises ValueError for fewer than 3 points or non-finite coordinates. Time grows
    with the distance of points outside the image, so check untrusted coordinates first.
    """
    for index, polygon in enumerate(polygons):
        if found := polygon_error(polygon):
            raise ValueError(f"polygon {index} {found[1]}")
    if not polygons:
        return np.zeros(size, dtype=bool)
    runs = coco.frPyObjects([list(map(float, polygon)) for polygon in polygons], *size)
    # coco.decode raises a DeprecationWarning under numpy 2 at each call
    return _decode_runs(_run_lengths(coco.merge(runs)["counts"]), size)


def polygon_error(polygon: Sequence[float], size: Size | None = None) -> tuple[str, str] | None:
    """(code, message) of the error of a polygon `[x1, y1, x2, y2, ...]`; None for a valid polygon.

    The codes are `too_few_points` (also for an odd number of coordinates), `not_finite`, and, if the `size` of the image
    is given, `outside_image` for a point more than one pixel outside.
    """
    if len(polygon) % 2:
        return "too_few_points", f"has {len(polygon)} numbers; x and y must come in pairs"
    if len(polygon) < 6:
        n = len(polygon) // 2
        return "too_few_points", f"has {n} point{'s' * (n != 1)}; at least 3 are needed"
    points = np.asarray(polygon, dtype=float).reshape(-1, 2)
    if not np.isfinite(points).all():
        wrong = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        return "not_finite", f"has a coordinate that is not a finite number (point {wrong})"
    if size is not None and (beyond := overshoot(points, size)) > 1:
        return "outside_image", f"{describe_span(points, size)}, {beyond:.4g} px beyond its edge"
    return None


def overshoot(points: Float[np.ndarray, "n 2"], size: Size) -> float:
    """Distance in pixels of the farthest point (x, y) outside an image of `size`; 0 or less if all are inside."""
    return float(max(-points.min(), points[:, 0].max() - size[1], points[:, 1].max() - size[0]))


def describe_span(points: Float[np.ndarray, "n 2"], size: Size) -> str:
    """Bounding box of the points, as text: `spans x 3 to 900 and y 0 to 50 in an image of 512 x 512 (h x w)`."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return f"spans x {left:g} to {right:g} and y {top:g} to {bottom:g} in an image of {size[0]} x {size[1]} (h x w)"


def dilate(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask dilated by one pixel with 4-connectivity."""
    wider = mask.copy()
    wider[1:] |= mask[:-1]
    wider[:-1] |= mask[1:]
    wider[:, 1:] |= mask[:, :-1]
    wider[:, :-1] |= mask[:, 1:]
    return wider


def bounds(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of the true pixels, bottom and right exclusive; None for an empty mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1) if len(rows) else None


def encode_rle(mask: Bool[np.ndarray, "h w"]) -> Rle:
    """The mask as compressed COCO RLE that can be written as JSON."""
    runs: dict[str, Any] = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode("ascii")}


def decode_rle(rle: Rle) -> Bool[np.ndarray, "h w"]:
    """The mask of a compressed or uncompressed COCO RLE.

    Raises ValueError if the RLE is malformed, or if its runs do not fill the stated size exactly.
    """
    try:
        (height, width), counts = rle["size"], rle["counts"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("an RLE needs size [h, w] and counts") from error
    if not _whole([height, width]) or not isinstance(counts, (str, list)):
        raise ValueError("an RLE needs two integers as size, and a string or a list as counts")
    if isinstance(counts, list) and not _whole(counts):
        raise ValueError("the RLE counts must be integers >= 0")
    # pycocotools does not validate: if the runs are too short, the rest of the mask is uninitialized memory
    lengths = _run_lengths(counts.encode("ascii")) if isinstance(counts, str) else counts
    return _decode_runs(lengths, (height, width))


def _whole(values: Sequence[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _run_lengths(counts: bytes) -> list[int]:
    """Run lengths of a compressed RLE string: 5 bits per character; the sixth bit marks continuation.

    From the fourth run on, the difference to the second-last run is stored (pycocotools, maskApi.c).
    """
    chunks = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if not len(chunks):
        return []
    ends = np.flatnonzero(chunks & 0x20 == 0)
    if not len(ends) or ends[-1] != len(chunks) - 1:
        raise ValueError("the RLE string ends inside a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if chunks.min() < 0 or chunks.max() > 63 or digits.max() > 7:
        raise ValueError("the RLE string has an invalid character or number")
    shifts = 5 * (np.arange(len(chunks)) - np.repeat(starts, digits))
    values = np.add.reduceat((chunks & 0x1F) << shifts, starts)
    negative = chunks[ends] & 0x10 != 0
    values[negative] -= np.int64(1) << (5 * digits[negative])
    # runs 0 to 2 are absolute; the first difference is run 3 minus run 1
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values.tolist()


def _decode_runs(lengths: list[int], size: Size) -> Bool[np.ndarray, "h w"]:
    height, width = size
    if min(lengths, default=0) < 0:
        raise ValueError("the RLE has a run of negative length")
    if sum(lengths) != height * width or height * width >= 2**32:  # COCO counts pixels in 32 bits
        raise ValueError(
            f"the RLE runs cover {sum(lengths)} pixels, but the stated size {height} x {width} has {height * width}"
        )
    values = np.zeros(len(lengths), dtype=bool)
    values[1::2] = True
    return np.repeat(values, lengths).reshape((width, height)).T


def resize_bilinear(image: Float[np.ndarray, "h w"], size: Size) -> Float[np.ndarray, "H W"]:
    """Bilinear resampling with half-pixel centers, clamped edges and no antialiasing.

    Gives the same numbers as `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`, which the
    official code applies to logits, without importing torch.
    """
    height, width = size
    return _resize_axis(_resize_axis(image, 1, width), 0, height)


def _resize_axis(image: np.ndarray, axis: int, new: int) -> np.ndarray:
    old = image.shape[axis]
    if new == old:
        return image
    # As in torch, width is resized first and the position is a fused multiply-add in float32, computed here in
    # float64 and rounded once. Plain float32 arithmetic gives a 20 times larger error for 128 -> 3504
    position = (np.arange(new) + 0.5) * float(np.float32(old / new)) - 0.5
    position = np.clip(position.astype(np.float32), 0, None)
    low = np.minimum(position.astype(np.int64), old - 1)
    high = np.minimum(low + 1, old - 1)
    weight = (position - low).astype(image.dtype)
    weight = weight[:, None] if axis == 0 else weight[None, :]
    return image.take(low, axis) * (1 - weight) + image.take(high, axis) * weight


def area_average(mask: np.ndarray, size: Size) -> Float[np.ndarray, "H W"]:
    """Fraction of each target cell that the mask covers, float32 in [0, 1]; keeps thin lines that nearest loses.

    Exact for any ratio of sizes (pixels may span several cells), and equal to area interpolation for integer ratios.
    """
    rows, columns = (cell_weights(old, new) for old, new in zip(mask.shape, size, strict=True))
    return (rows @ mask.astype(np.float32) @ columns.T).astype(np.float32)


def cell_weights(old: int, new: int) -> np.ndarray:
    """Matrix (new, old) float32: the fraction of cell i that pixel j covers; each row sums to 1.

    Example for 3 -> 2: [[2/3, 1/3, 0], [0, 1/3, 2/3]].
    """
    edges = np.arange(new + 1, dtype=np.float64) * old / new
    pixel = np.arange(old, dtype=np.float64)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.clip(overlap, 0, None) * new / old).astype(np.float32)
