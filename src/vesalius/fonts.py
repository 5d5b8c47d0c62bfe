"""Text in figures: each run of characters is drawn with the first installed font that has all of them.

Fonts are found by file name, in 4 to 13 ms; matplotlib's own search takes 320 ms. Pillow's built-in Latin font comes
first, then matplotlib's font (Greek, Cyrillic, mathematics), then fonts with Chinese.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ImageDraw, ImageFont

from vesalius.colors import Color
from vesalius.language import note, translate

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
    "notosanscjk notosanssc notosanshans sourcehansans wqy msyh simhei pingfang stheiti hiragino droidsansfallback "
    "arialunicode simsun uming ukai yugoth meiryo malgun"
).split()
"""File name prefixes of fonts with Chinese, in lower case without spaces and hyphens, in order of preference."""
OTHER_WEIGHTS = "bold black heavy light thin medium demi bd. l.".split()
"""Parts of file names of fonts in another weight than regular; these are used last."""
TEST_SIZE = 28
"""Size in pixels at which glyphs are compared."""


class Face(NamedTuple):
    """A font file, and the number of the font in a collection (.ttc); no file: Pillow's built-in Latin font."""

    file: Path | None = None
    number: int = 0


def missing_font(text: str) -> str | None:
    """Note on characters of the text that no installed font has, with a package to install; None if all are there.

    Figures show such characters as codes (`\\u8840`). Callers report the note once.
    """
    lacking = [each for each in dict.fromkeys(text) if each.isprintable() and _face_of(each, FONT_FOLDERS) is None]
    if not lacking:
        return None
    shown = "".join(lacking[:12]) + ("…" if len(lacking) > 12 else "")
    return note(
        "No font on this machine has the characters {shown}, so figures show them as codes like {code}; install one, for "
        "example: apt install fonts-noto-cjk",
        shown=shown,
        code=_escape(lacking[0]),
    )


def label(text: str, **values: object) -> str:
    """The text in the current language with its values, for a figure; English if no font has the translation."""
    translated = translate(text, **values)
    return translated if missing_font(translate(text)) is None else text.format(**values)


def drawable(text: str) -> str:
    """The text with each character that no installed font has replaced by its code, such as `\\u8840`."""
    return "".join(each if _face_of(each, FONT_FOLDERS) else _escape(each) for each in text)


def chart_families(text: str) -> list[str]:
    """Font families for matplotlib's `font.family` that together have the characters of `drawable(text)`."""
    from matplotlib.font_manager import FontProperties, fontManager

    families = ["DejaVu Sans"]
    for each in dict.fromkeys(text):
        face = _face_of(each, FONT_FOLDERS)
        if face and face.file and (name := FontProperties(fname=face.file).get_name()) not in families:
            fontManager.addfont(face.file)
            families.append(name)
    return families


def fit_fonts(figure: Any) -> None:
    """Give every text of a matplotlib figure font families that together have the characters of all its texts."""
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    families = chart_families("".join(each.get_text() for each in texts))
    for each in texts:
        each.set_fontfamily(families)


def draw_text(
    draw: ImageDraw.ImageDraw,
    position: tuple[float, float],
    text: str,
    size: int,
    color: Color,
    width: int | None = None,
) -> int:
    """Draw one line of `size` pixels, truncated with … at `width`; returns the drawn width in pixels.

    `position` is the left end of the line, at its middle. All fonts share one baseline.
    """
    text = drawable(" ".join(text.split()))
    if width is not None and _length(text, size) > width:
        text = text[: int(len(text) * width / _length(text, size)) + 1]
        while text and _length(text + "…", size) > width:
            text = text[:-1]
        text += "…"
    ascent, descent = _open_font(Face(), size).getmetrics()
    x, baseline = position[0], round(position[1] + (ascent - descent) / 2)
    for face, run in _runs(text, FONT_FOLDERS):
        font = _open_font(face, size)
        draw.text((x, baseline), run, fill=color, font=font, anchor="ls")
        x += font.getlength(run)
    return round(x - position[0])


def _length(text: str, size: int) -> float:
    return sum(_open_font(face, size).getlength(run) for face, run in _runs(text, FONT_FOLDERS))


def _runs(text: str, folders: tuple[Path, ...]) -> list[tuple[Face, str]]:
    """Runs of neighboring characters with one font; blanks belong to the run before them."""
    faces: list[Face] = []
    for each in text:
        faces.append(faces[-1] if faces and each.isspace() else _face_of(each, folders) or Face())
    pairs = groupby(zip(faces, text, strict=True), key=lambda pair: pair[0])
    return [(face, "".join(each for _, each in group)) for face, group in pairs]


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


@lru_cache(maxsize=4096)
def _face_of(character: str, folders: tuple[Path, ...]) -> Face | None:
    """The first font with this character; the built-in one for blanks and control characters; None if no font has it."""
    if character.isspace() or not character.isprintable() or _has_glyph(Face(), character):
        return Face()
    return next((face for face in _find_faces(folders) if _has_glyph(face, character)), None)


@lru_cache
def _find_faces(folders: tuple[Path, ...]) -> tuple[Face, ...]:
    """The font of matplotlib, then fonts with Chinese in order of preference, regular weights before others."""
    found = []
    # the font is found without importing matplotlib, which takes 0.3 s
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        found.append(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")
    files = [file for folder in folders for file in sorted(folder.rglob("*.[tToO][tT][fFcC]"))]
    chinese = sorted(
        (any(weight in name.removeprefix(prefix) for weight in OTHER_WEIGHTS), order, number)
        for number, name in enumerate(_plain(file) for file in files)
        for order, prefix in enumerate(CJK_FONTS)
        if name.startswith(prefix)
    )
    found += [files[number] for *_, number in chinese]
    return tuple(face for face in map(_open_face, dict.fromkeys(found)) if face is not None)


def _plain(file: Path) -> str:
    return file.name.lower().replace(" ", "").replace("-", "")


def _open_face(file: Path) -> Face | None:
    """The face for simplified Chinese in a collection, else the first one; None for a broken file.

    `missing_font` reports what then cannot be drawn.
    """
    names: list[str] = []
    try:
        while not names or (file.suffix.lower() == ".ttc" and not names[-1].endswith(" SC")):
            names.append(_open_font(Face(file, len(names)), TEST_SIZE).getname()[0] or "")
    except OSError:  # a broken file, or the end of a collection
        return Face(file) if names else None
    return Face(file, len(names) - 1)


@lru_cache(maxsize=64)
def _open_font(face: Face, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size) if face.file is None else ImageFont.truetype(face.file, size, index=face.number)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ImportError("Pillow was built without FreeType; run: pip install --force-reinstall pillow")
    return font


@lru_cache(maxsize=4096)
def _has_glyph(face: Face, character: str) -> bool:
    # Pillow does not expose the character map; a font draws the same glyph for all missing characters
    font = _open_font(face, TEST_SIZE)
    picture, unknown = font.getmask(character), font.getmask("\U0010ffff")
    return (picture.size, bytes(picture)) != (unknown.size, bytes(unknown))
