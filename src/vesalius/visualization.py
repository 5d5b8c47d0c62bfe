"""Pictures of masks: overlays, contours, and the six panels that show one prediction beside its truth.

Images are uint8 (h, w, 3) RGB, masks bool (h, w). Drawn with Pillow alone: six panels of a 512 x 512 image take 10 to
30 ms, and longer to be written as PNG.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from vesalius.masks import Size

Color = tuple[int, int, int]

# From the palette for color-blind readers of Okabe & Ito 2008, https://jfly.uni-koeln.de/color/. A missed
# pixel has the color of the truth and an invented one that of the prediction, because that is where they
# come from.
YELLOW, SKY_BLUE, VERMILLION = (240, 228, 66), (86, 180, 233), (213, 94, 0)
TRUTH_COLOR, GUESS_COLOR = SKY_BLUE, VERMILLION
TP_COLOR, FP_COLOR, FN_COLOR = YELLOW, GUESS_COLOR, TRUTH_COLOR
LEGEND = (("TP: in both", TP_COLOR), ("FP: predicted only", FP_COLOR), ("FN: missed", FN_COLOR))
WHITE, INK, GRAY = (255, 255, 255), (24, 24, 27), (96, 96, 104)

PANEL_SIDE = 512
"""Longer side of an image in a panel, pixels."""
PANEL_WIDTH_MIN = 400
"""A panel's title and the legend need this width, even over a tall and narrow image."""
GAP, LINE, TITLE_TEXT, TEXT = 16, 44, 34, 28
"""Pixels; a sheet 1600 wide that is shrunk to 512 still has letters of 9."""
CONTOUR_GRAY = 120
"""Under contours an image is darkened until nine of ten pixels are no lighter than this, of 255."""
SHOWN_COVERAGE = 0.25
"""From this share on a pixel of a panel belongs to the mask: at 0.5 vessels thinner than it would vanish."""

FONT_FOLDERS = (
    Path("/usr/share/fonts"),
    Path("/usr/local/share/fonts"),
    Path("~/.local/share/fonts").expanduser(),
    Path("~/.fonts").expanduser(),
    Path("/System/Library/Fonts"),
    Path("/Library/Fonts"),
    Path("~/Library/Fonts").expanduser(),
    Path("C:/Windows/Fonts"),
    Path("~/AppData/Local/Microsoft/Windows/Fonts").expanduser(),
)
CJK_FONTS = (
    *(
        "notosanscjk",
        "notosanssc",
        "notosanshans",
        "sourcehansans",
        "wqy",
        "msyh",
        "simhei",
        "pingfang",
        "stheiti",
    ),
    *(
        "hiragino",
        "droidsansfallback",
        "arialunicode",
        "simsun",
        "uming",
        "ukai",
        "yugoth",
        "meiryo",
        "malgun",
    ),
)
"""Beginnings of the usual file names, lower case without spaces and hyphens, the preferred one first."""


def six_panels(
    image: UInt8[np.ndarray, "h w 3"],
    truth: Bool[np.ndarray, "h w"],
    guess: Bool[np.ndarray, "h w"],
    *,
    title: str,
    prompt: str,
    scores: Mapping[str, float | None],
) -> Image.Image:
    """Original, ground truth and prediction above the contours of both and their difference, with legend and scores.

    Every image is enlarged or shrunk to the same longer side, its aspect kept. Contours and difference are
    drawn on the image in gray and darker: orange on a retina, or blue on an X-ray, cannot be seen. Contours
    run outside the mask and leave what it covers to be judged. Empty masks are drawn, and named as empty.
    `scores` may lack `dice` or `iou`, then they are not shown; None is shown as undefined. Characters that no
    font here has are drawn as codes (see `missing_font`). Raises ValueError for masks of another size.
    """
    for name, mask in (("truth", truth), ("guess", guess)):
        if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
            raise ValueError(f"{name} must be bool {image.shape[:2]}; got {mask.dtype} {mask.shape}")
    size = panel_size(image.shape[:2])
    small = _resize_image(image, size)
    gray = Image.fromarray(small).convert("L")
    light = min(1, CONTOUR_GRAY / max(1, float(np.percentile(np.asarray(gray), 90))))
    dim, dark = (np.asarray(gray.point(_darker(share)).convert("RGB")) for share in (light, 0.35))
    shares = [_coverage(mask, size) for mask in (truth, guess)]
    true, guessed = (share >= SHOWN_COVERAGE for share in shares)
    empty = ["" if mask.any() else " (empty)" for mask in (truth, guess)]
    panels = [
        ("Original", small),
        (f"Ground truth{empty[0]}", _gray(shares[0])),
        (f"Prediction{empty[1]}", _gray(shares[1])),
        ("Ground truth contour", contour(dim, true, TRUTH_COLOR, width=2)),
        ("Prediction contour", contour(dim, guessed, GUESS_COLOR, width=2)),
        ("Difference", _difference(dark, truth, guess)),
    ]
    return _lay_out(panels, size, title, prompt, scores)


def panel_size(size: Size) -> Size:
    """(h, w) of an image in a panel: longer side `PANEL_SIDE`, at least one pixel each way."""
    factor = PANEL_SIDE / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    color: Color = GUESS_COLOR,
    alpha: float = 0.3,
) -> Image.Image:
    """The image with the mask filled lightly and a contour around it; an empty mask changes nothing.

    The contour runs outside the mask, so that a thin vessel stays visible under its fill. It is one pixel
    wide for a side up to `PANEL_SIDE` and grows with the image. `alpha` in [0, 1] is the share of the color
    in the fill.
    """
    paint = np.array(color, dtype=np.float32)
    result = contour(image, mask, color, width=max(1, round(max(mask.shape) / PANEL_SIDE)))
    result[mask] = (image[mask] * (1 - alpha) + paint * alpha).round()
    return Image.fromarray(result)


def contour(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    color: Color = GUESS_COLOR,
    width: int = 1,
) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of the image with a line of `width` pixels around the mask, outside of it."""
    wide = mask
    for _ in range(width):
        wide = _grown(wide)
    result = image.copy()
    result[wide & ~mask] = color
    return result


def missing_font(text: str) -> str | None:
    """One sentence that names the characters which no font here has and what to install; None if all exist.

    Pictures show such characters as codes (`\\u8840`). Callers say it once and put it into the report.
    """
    lacking = [character for character in _lacking(_font_file(text), text) if character.isprintable()]
    if not lacking:
        return None
    shown = "".join(lacking[:12]) + ("…" if len(lacking) > 12 else "")
    return (
        f"No font on this machine has the characters {shown}, so figures show them as codes like "
        f"{_escape(lacking[0])}; install one, for example: apt install fonts-noto-cjk"
    )


def _lay_out(
    panels: Sequence[tuple[str, np.ndarray]],
    size: Size,
    title: str,
    prompt: str,
    scores: Mapping[str, float | None],
) -> Image.Image:
    height, width = size[0], max(size[1], PANEL_WIDTH_MIN)
    top = GAP + 2 * LINE + GAP
    row_height = LINE + height + GAP
    sheet = Image.new("RGB", (GAP + 3 * (width + GAP), top + 2 * row_height + LINE + GAP), WHITE)
    draw = ImageDraw.Draw(sheet)
    inner = sheet.width - 2 * GAP
    _write(draw, (GAP, GAP), title, TITLE_TEXT, INK, inner)
    _write(draw, (GAP, GAP + LINE), f"prompt: {prompt}", TEXT, GRAY, inner)
    for index, (name, pixels) in enumerate(panels):
        row, column = divmod(index, 3)
        x, y = GAP + column * (width + GAP), top + row * row_height
        _write(draw, (x, y), name, TEXT, INK, width)
        sheet.paste(Image.fromarray(pixels), (x, y + LINE))
    _write_legend(draw, (GAP, sheet.height - GAP - LINE), scores)
    return sheet


def _write_legend(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], scores: Mapping[str, float | None]
) -> None:
    x, y = place
    for name, color in LEGEND:
        draw.rectangle((x, y + 4, x + TEXT, y + 4 + TEXT), fill=color, outline=INK)
        x += TEXT + 10
        x += _write(draw, (x, y), name, TEXT, INK) + GAP + GAP // 2
    for metric, name in (("dice", "Dice"), ("iou", "IoU")):
        if metric in scores:
            value = scores[metric]
            x += _write(draw, (x, y), f"{name} {'–' if value is None else f'{value:.3f}'}", TEXT, INK) + GAP


def _difference(
    dark: UInt8[np.ndarray, "H W 3"], truth: Bool[np.ndarray, "h w"], guess: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "H W 3"]:
    """The darkened image under the three kinds of pixels, each counted at full size before it is shrunk."""
    size = dark.shape[0], dark.shape[1]
    kinds = ((truth & guess, TP_COLOR), (guess & ~truth, FP_COLOR), (truth & ~guess, FN_COLOR))
    covered = [_coverage(mask, size) for mask, _ in kinds]
    total = covered[0] + covered[1] + covered[2]
    place = total > 0  # few pixels of an image are vessels
    shares = np.stack([share[place] for share in covered], axis=-1)
    # twice the share, up to all of the pixel: a line thinner than a panel's pixel would be too faint to see
    shares *= np.minimum(2, 1 / total[place])[:, None]
    paint = shares @ np.array([color for _, color in kinds], dtype=np.float32)
    rest = 1 - shares.sum(axis=-1, keepdims=True)
    result = dark.copy()
    result[place] = np.clip(paint + dark[place] * rest, 0, 255).round()
    return result


def _darker(share: float) -> list[int]:
    """For each gray value the one with this share of its light."""
    return [round(share * value) for value in range(256)]


def _resize_image(image: UInt8[np.ndarray, "h w 3"], size: Size) -> UInt8[np.ndarray, "H W 3"]:
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(resized)


def _coverage(mask: Bool[np.ndarray, "h w"], size: Size) -> Float[np.ndarray, "H W"]:
    """Share of each target pixel that the mask covers, float32 in [0, 1]; 0 or 1 where it is enlarged."""
    picture = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BOX), dtype=np.float32) / 255


def _gray(share: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    values = (share * 255).round().astype(np.uint8)
    return np.asarray(Image.fromarray(values).convert("RGB"))


def _grown(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask and its neighbors above, below, left and right."""
    wide = mask.copy()
    wide[1:] |= mask[:-1]
    wide[:-1] |= mask[1:]
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    return wide


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    color: Color,
    width: int | None = None,
) -> int:
    """Draw one line, cut with … where it is wider than `width`; the width drawn, pixels."""
    text = " ".join(text.split())
    file = _font_file(text)
    font = _open_font(file, size)
    lacking = _lacking(file, text)
    text = "".join(_escape(character) if character in lacking else character for character in text)
    if width is not None and font.getlength(text) > width:
        text = text[: int(len(text) * width / font.getlength(text)) + 1]
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text += "…"
    # fonts differ in height; from the middle of the line they all stand level
    draw.text((place[0], place[1] + LINE * 0.42), text, fill=color, font=font, anchor="lm")
    return round(font.getlength(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _font_file(text: str) -> Path | None:
    """The first font that has every character, or else the most; None is Pillow's own, for Latin."""
    if not _lacking(None, text):
        return None
    return min((None, *_font_files(FONT_FOLDERS)), key=lambda file: len(_lacking(file, text)))


@lru_cache
def _font_files(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    """matplotlib's font (Greek, Cyrillic, mathematics), then fonts with Chinese, the preferred one first."""
    found = []
    # found, not imported: that takes a third of a second
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        found.append(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")
    files = [file for folder in folders for file in sorted(folder.rglob("*.[tToO][tT][fFcC]"))]
    for name in CJK_FONTS:
        found += [
            file for file in files if file.name.lower().replace(" ", "").replace("-", "").startswith(name)
        ]
    return tuple(file for file in found if _opens(file))


def _opens(file: Path) -> bool:
    try:
        _open_font(file, TEXT)
    except OSError:  # a broken font file is one font fewer; what then cannot be drawn, missing_font says
        return False
    return True


@lru_cache(maxsize=64)
def _open_font(file: Path | None, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ImportError("Pillow was built without FreeType; run: pip install --force-reinstall pillow")
    return font


@lru_cache(maxsize=4096)
def _lacking(file: Path | None, text: str) -> tuple[str, ...]:
    """The characters of the text that the font has no glyph for, each once."""
    return tuple(each for each in dict.fromkeys(text) if not each.isspace() and not _has_glyph(file, each))


@lru_cache(maxsize=4096)
def _has_glyph(file: Path | None, character: str) -> bool:
    # Pillow does not show the character map; a font draws one and the same sign for everything that it lacks
    font = _open_font(file, TEXT)
    picture, unknown = font.getmask(character), font.getmask("\U0010ffff")
    return (picture.size, bytes(picture)) != (unknown.size, bytes(unknown))
