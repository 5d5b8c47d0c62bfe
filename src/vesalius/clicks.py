"""Clicks correct a mask: logits are changed near the clicked pixels, without a model. Imports no torch.

Each click that the mask contradicts adds a bump to the logits. The bump falls with the distance from the click, and with
the difference in gray level and in logit, so that it follows the clicked structure (docs/decisions/0014-clicks.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from scipy import ndimage

from vesalius.calls import describe
from vesalius.errors import SettingError
from vesalius.masks import Size

Click = tuple[tuple[float, float], bool]
"""((x, y), positive): a point in pixels of the image, and whether its pixel belongs to the mask."""

REACH = 1 / 32
"""Standard deviation of a bump, as a fraction of the image's longer side."""
GRAY_SCALE, LOGIT_SCALE = 30.0, 4.0
"""Differences in gray level and in logit that reduce a bump to 61 %."""
MARGIN = 1.0
"""Logit of a corrected pixel beyond the threshold: a probability of 0.73 for a threshold of 0.5."""
JITTER = 1e-2
"""Added to the kernel's diagonal, so that opposite clicks side by side do not give huge bumps."""
CUT = 4.0
"""Distance in standard deviations beyond which a bump is 0."""


def check_clicks(points: Any, size: Size, earlier: Sequence[Click] = ()) -> tuple[Click, ...]:
    """The clicks `earlier` and `points`, checked; a click on the pixel of an earlier one replaces it.

    SettingError (`invalid_point`) for an empty list, a value that is no ((x, y), positive), numbers that are not finite,
    points outside the image (h, w), and one pixel that `points` clicks both as positive and as negative.
    """
    if not isinstance(points, Iterable) or isinstance(points, str | bytes | Mapping):
        raise _refuse(f"points is a list such as [((120, 80), True)]; got {describe(points)}")
    listed = [_check_click(each, size) for each in points]
    if not listed:
        raise _refuse("there is no point; give at least one")
    sign: dict[tuple[int, int], bool] = {}
    for click in listed:
        if sign.setdefault(pixel_of(click), click[1]) != click[1]:
            raise _refuse(f"the pixel of {click[0]} is both a positive and a negative point")
    return (*(click for click in earlier if pixel_of(click) not in sign), *listed)


def _check_click(click: Any, size: Size) -> Click:
    try:
        (x, y), positive = click
        x, y = float(x), float(y)
    except (TypeError, ValueError):
        raise _refuse(f"a point is ((x, y), True) or ((x, y), False); got {describe(click)}") from None
    if not isinstance(positive, bool | np.bool_):
        raise _refuse(f"a point is ((x, y), True) or ((x, y), False); got {describe(click)}")
    if not (math.isfinite(x) and math.isfinite(y)):
        raise _refuse(f"the point ({x:g}, {y:g}) is not finite")
    if not (0 <= x < size[1] and 0 <= y < size[0]):
        raise _refuse(f"the point ({x:g}, {y:g}) lies outside the image of {size[1]} x {size[0]} pixels")
    return (x, y), bool(positive)


def _refuse(message: str) -> SettingError:
    return SettingError(message, code="invalid_point", field="points")


def pixel_of(click: Click) -> tuple[int, int]:
    """(row, column) of the clicked pixel: (10.7, 3.2) lies in row 3, column 10."""
    (x, y), _ = click
    return int(y), int(x)


def correct(
    logits: Float32[np.ndarray, "h w"],
    image: UInt8[np.ndarray, "h w 3"],
    clicks: Sequence[Click],
    threshold: float = 0.5,
) -> Float32[np.ndarray, "h w"]:
    """The logits with every positive click above the probability `threshold` and every negative one below.

    Clicks that the logits satisfy hold their neighborhood against the bumps of the others. The result does not depend on
    the order of the clicks.
    """
    level = logit_of(threshold)
    rows, columns = np.array([pixel_of(click) for click in clicks]).T
    signs = np.array([1.0 if positive else -1.0 for _, positive in clicks])
    reach = REACH * max(logits.shape)
    gray = ndimage.gaussian_filter(image.mean(axis=2, dtype=np.float32), 1.0) / GRAY_SCALE
    scaled = logits / np.float32(LOGIT_SCALE)
    ahead = signs * (logits[rows, columns].astype(np.float64) - level)
    needed = signs * np.maximum(MARGIN - ahead, 0)

    def kernel(index: int, inside: tuple[slice, slice]) -> np.ndarray:
        """The bump of one click in a rectangle."""
        y, x = np.ogrid[inside]
        row, column = rows[index], columns[index]
        distance = (((y - row) ** 2 + (x - column) ** 2) / reach**2).astype(np.float32)
        distance = distance + (gray[inside] - gray[row, column]) ** 2 + (scaled[inside] - scaled[row, column]) ** 2
        return np.exp(-distance / 2)

    windows = [_around(row, column, CUT * reach, logits.shape) for row, column in zip(rows, columns, strict=True)]
    between = np.zeros((len(clicks), len(clicks)))
    bumps = [kernel(index, inside) for index, inside in enumerate(windows)]
    for index, ((down, right), bump) in enumerate(zip(windows, bumps, strict=True)):
        hit = (rows >= down.start) & (rows < down.stop) & (columns >= right.start) & (columns < right.stop)
        between[hit, index] = bump[rows[hit] - down.start, columns[hit] - right.start]
    weights = np.linalg.solve(between + JITTER * np.eye(len(clicks)), needed)
    corrected = logits.copy()
    for inside, bump, weight in zip(windows, bumps, weights, strict=True):
        corrected[inside] += np.float32(weight) * bump
    # exact at the clicked pixels, despite the jitter
    corrected[rows, columns] = level + signs * np.maximum(signs * (corrected[rows, columns] - level), MARGIN)
    return corrected


def logit_of(threshold: float) -> float:
    """The logit of a probability."""
    return math.log(threshold) - math.log1p(-threshold)


def _around(row: int, column: int, reach: float, shape: tuple[int, ...]) -> tuple[slice, slice]:
    most = math.ceil(reach)
    return (
        slice(max(0, row - most), min(shape[0], row + most + 1)),
        slice(max(0, column - most), min(shape[1], column + most + 1)),
    )
