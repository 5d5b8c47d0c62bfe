"""Detect candidate regions of burned-in text; they are only reported, and pixels stay unchanged."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are exclusive."""

CONTRAST = 40
"""Minimum difference in gray levels between a letter and its surroundings."""
MAX_STD = 40
"""Maximum standard deviation of gray levels within a letter."""
LETTER_HEIGHTS = (6, 64)
MIN_LETTERS = 4
"""Minimum number of letters in a line."""


def find_text(pixels: UInt8[np.ndarray, "h w 3"]) -> list[Box]:
    """Boxes around lines of letter-like marks of similar height, close together.

    A mark is a nearly uniform connected component, brighter or darker than its surroundings by `CONTRAST`. Small, pale,
    slanted or cursive text is missed. Measured on 300 angiograms of ARCADE and 28 retinas of CHASE_DB1: no false
    positive; a line of 23 letters, 9 to 28 pixels high and stored as JPEG, is found in 93 % of angiograms if white,
    92 % if black, 77 % if light gray.
    """
    gray = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return sorted(box for sign in (1, -1) for box in _lines(_marks(sign * gray)))


def _marks(gray: np.ndarray) -> list[Box]:
    around = ndimage.uniform_filter(gray, 2 * LETTER_HEIGHTS[0] + 9, mode="nearest")
    labels, _ = ndimage.label(gray - around > CONTRAST, structure=np.ones((3, 3)))
    low, high = LETTER_HEIGHTS
    found = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not (low <= height <= high and width <= 1.5 * height):
            continue
        own = labels[rows, columns] == index
        values = gray[rows, columns][own]
        if not 0.12 <= own.mean() <= 0.95 or values.std() > MAX_STD:
            continue
        found.append((columns.start, rows.start, columns.stop, rows.stop))
    return found


def _lines(marks: list[Box]) -> list[Box]:
    """Boxes around lines of at least `MIN_LETTERS` marks."""
    words: list[list[Box]] = []
    for mark in sorted(marks):
        for word in words:
            last = word[-1]
            height = max(mark[3] - mark[1], last[3] - last[1])
            level = abs(mark[3] - last[3]) <= 0.25 * height and abs(mark[1] - last[1]) <= 0.5 * height
            if level and -0.2 * height <= mark[0] - last[2] <= height:
                word.append(mark)
                break
        else:
            words.append([mark])
    return [
        (word[0][0], min(m[1] for m in word), word[-1][2], max(m[3] for m in word))
        for word in words
        if len(word) >= MIN_LETTERS
    ]
