"""Colors of masks: one for each phrase, and three for the difference between prediction and ground truth."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from itertools import count

Color = tuple[int, int, int]

# The colorblind-safe palette of Okabe & Ito 2008, https://jfly.uni-koeln.de/color/. These three mark differences only.
YELLOW, SKY_BLUE, VERMILLION = (240, 228, 66), (86, 180, 233), (213, 94, 0)
TP_COLOR, FP_COLOR, FN_COLOR = YELLOW, VERMILLION, SKY_BLUE

PHRASE_COLORS: tuple[Color, ...] = (
    (0, 225, 255),
    (225, 0, 195),
    (30, 200, 40),
    (50, 100, 255),
    (150, 255, 190),
    (0, 105, 50),
    (125, 40, 165),
    (60, 160, 160),
)
"""Colors of the first phrases. Red, orange and yellow are left out, because retinas and stained tissue have them. Each
differs by at least 20 (CIEDE2000) from nine of ten pixels of angiograms and retinas, and by 9 or more from each other
color for readers with protanopia or deuteranopia."""

GOLDEN = 0.618034


def phrase_colors(phrases: Iterable[str]) -> dict[str, Color]:
    """Phrase -> RGB color (0 to 255), all distinct, in the order in which the phrases first occur.

    The order decides, so pass the phrases of the whole dataset or job: then a phrase has one color in all its pictures.
    The first eight colors are `PHRASE_COLORS`; further ones have hues from green to magenta and are harder to tell apart.
    No phrases give an empty dict.
    """
    colors = list(PHRASE_COLORS)
    distinct = dict.fromkeys(phrases)
    steps = count()
    while len(colors) < len(distinct):
        step = next(steps)
        hue = 0.36 + 0.54 * (step * GOLDEN % 1)
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.9, 0.55, 0.75)[step % 3], (1, 0.8, 0.6)[step % 3])
        color = round(255 * red), round(255 * green), round(255 * blue)
        if color not in colors:
            colors.append(color)
    return dict(zip(distinct, colors[: len(distinct)], strict=True))


def as_css(color: Color) -> str:
    """The color as hexadecimal digits for a style sheet, such as `#00e1ff`."""
    return "#{:02x}{:02x}{:02x}".format(*color)
