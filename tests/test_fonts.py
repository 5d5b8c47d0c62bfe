"""Fonts of figures: found by file name, regular weights first, chosen for each run of characters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image, ImageDraw

from vesalius import fonts
from vesalius.fonts import Face, chart_families, draw_text, drawable, label, missing_font
from vesalius.language import speaking
from vesalius.notebook import draw_figure


def write_font(path: Path, characters: str, height: int = 700) -> Path:
    """A font in which every character is a filled box of this height, in thousandths of the text size."""
    names = [f"u{ord(each):x}" for each in characters]
    pen = TTGlyphPen(None)
    for index, point in enumerate([(50, 0), (50, height), (950, height), (950, 0)]):
        (pen.lineTo if index else pen.moveTo)(point)
    pen.closePath()
    box = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap(dict(zip(map(ord, characters), names, strict=True)))
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **dict.fromkeys(names, box)})
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)
    return path


def drawn(text: str, width: int | None = None) -> np.ndarray:
    picture = Image.new("RGB", (400, 60), (255, 255, 255))
    length = draw_text(ImageDraw.Draw(picture), (4, 30), text, 28, (0, 0, 0), width)
    assert (np.asarray(picture)[:, 4 + length + 2 :] == 255).all()
    return np.asarray(picture)


def faces(text: str) -> list[tuple[str, str]]:
    """The runs of a text: name of the font file, and characters."""
    return [(face.file.name if face.file else "built in", run) for face, run in fonts._runs(text, fonts.FONT_FOLDERS)]


@pytest.fixture
def chinese_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A font folder with one font, which has Chinese characters but neither digits nor Latin letters."""
    font = write_font(tmp_path / "fonts" / "DroidSansFallbackFull.ttf", "患者血管真值")
    monkeypatch.setattr(fonts, "FONT_FOLDERS", (tmp_path / "fonts",))
    return font


def test_each_run_of_characters_has_the_first_font_with_them(chinese_only: Path) -> None:
    assert faces("患者 12 Ω血") == [
        (chinese_only.name, "患者 "),
        ("built in", "12 "),
        ("DejaVuSans.ttf", "Ω"),
        (chinese_only.name, "血"),
    ]
    assert missing_font("患者 12 Ω血") is None
    assert drawable("患者 12") == "患者 12"
    both = drawn("患者12")
    assert (both != drawn("患者")).any() and (both != drawn("\\u60a3\\u800512")).any()


def test_all_fonts_of_a_line_share_the_baseline(chinese_only: Path) -> None:
    rows = [np.flatnonzero((drawn(text) < 128).any(axis=(1, 2))).max() for text in ("患", "1", "患1")]
    assert max(rows) - min(rows) <= 1


def test_characters_without_a_font_are_reported_and_drawn_as_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "FONT_FOLDERS", ())
    sentence = missing_font("冠状动脉 vessel 7")
    assert sentence is not None
    assert "冠状动脉," in sentence and "\\u51a0" in sentence and "fonts-noto-cjk" in sentence
    assert drawable("血 7") == "\\u8840 7"
    assert (drawn("血") == drawn("\\u8840")).all()


@pytest.mark.parametrize("text", ["blood vessel – 0.5", "Ωμέγα", "кровеносный сосуд", "", "  \n\t", "\x07"])
def test_bundled_fonts_have_latin_greek_and_cyrillic(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "FONT_FOLDERS", ())
    assert missing_font(text) is None


def test_fonts_are_found_by_file_name_regular_weights_first(tmp_path: Path) -> None:
    names = [
        "NotoSansCJK-Bold.ttf",
        "NotoSansCJK-Black.ttf",
        "NotoSansCJK-Regular.ttf",
        "wqy-microhei.ttf",
        "Other.ttf",
    ]
    for name in names:
        write_font(tmp_path / "deep" / name, "血")
    (tmp_path / "msyh.ttc").write_bytes(b"no font")
    deja_vu, *found = fonts._find_faces((tmp_path, Path("/no/such/folder")))
    assert deja_vu.file is not None and deja_vu.file.name == "DejaVuSans.ttf"
    assert [face.file.name for face in found if face.file] == [names[2], names[3], names[1], names[0]]
    assert {face.number for face in found} == {0}
    assert fonts._open_face(tmp_path / "msyh.ttc") is None


def test_long_texts_are_truncated_to_the_width(chinese_only: Path) -> None:
    assert (drawn("血管 12 " * 30, width=200)[:, 210:] == 255).all()


def test_labels_stay_english_where_no_font_has_the_translation(chinese_only: Path) -> None:
    with speaking("zh"):
        assert label("Ground truth") == "真值"
        assert label("Prediction contour") == "Prediction contour"
        assert label("prompt: {prompt}", prompt="血") == "prompt: 血"


def test_charts_name_a_font_for_every_character(chinese_only: Path) -> None:
    assert chart_families("vessel") == ["DejaVu Sans"]
    assert chart_families("vessel 血管") == ["DejaVu Sans", chinese_only.stem]
    image, mask = np.zeros((16, 16, 3), np.uint8), np.ones((16, 16), bool)
    figure = draw_figure(
        image, "血管", mask, None, "'血管' 8 动", (0, 114, 178)
    )  # a glyph that is missing would be a warning
    FigureCanvasAgg(figure).draw()
    assert figure.axes[0].get_title() == "'血管' 8 \\u52a8"


def test_a_collection_gives_its_font_for_simplified_chinese() -> None:
    face = next((face for face in fonts._find_faces(fonts.FONT_FOLDERS) if face.number), None)
    if face is None:
        pytest.skip("no collection with a font for simplified Chinese is installed, such as fonts-noto-cjk")
    assert str(fonts._open_font(face, 12).getname()[0]).endswith(" SC")
    assert face != Face(face.file)
