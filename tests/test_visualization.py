"""Six-panel figures and overlays: positions, colors, text, and missing fonts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from vesalius import fonts, visualization
from vesalius.colors import FN_COLOR, FP_COLOR, PHRASE_COLORS, TP_COLOR
from vesalius.language import speaking
from vesalius.visualization import CONTOUR_GRAY, GAP, LINE, PANEL_SIDE, overlay, overlay_phrases, panel_size, six_panels

TITLE_HEIGHT = 2 * GAP + 2 * LINE


def panels(image, target, prediction, **texts) -> Image.Image:
    shown = {"title": "a", "prompt": "vessel", "scores": {"dice": 0.5, "iou": None}, **texts}
    return six_panels(image, target, prediction, **shown)


def halves(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A gray image; the target is its left half, the prediction its upper half."""
    target, prediction = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    target[:, : size[1] // 2] = True
    prediction[: size[0] // 2] = True
    return np.full((*size, 3), 128, dtype=np.uint8), target, prediction


def panel(figure: Image.Image, number: int, size: tuple[int, int]) -> np.ndarray:
    """The pixels of panel 0 to 5."""
    height, width = panel_size(size)
    cell = (figure.width - GAP) // 3
    row, column = divmod(number, 3)
    x = GAP + column * cell
    y = TITLE_HEIGHT + row * (LINE + height + GAP) + LINE
    return np.asarray(figure)[y : y + height, x : x + width]


@pytest.mark.parametrize("size", [(100, 100), (512, 512), (2336, 3504), (900, 60), (60, 900), (1, 1)])
def test_every_image_fills_its_panels_and_keeps_its_aspect_ratio(size):
    height, width = panel_size(size)
    figure = panels(*halves(size))

    assert max(height, width) == PANEL_SIDE
    assert height / width == pytest.approx(size[0] / size[1], rel=0.05)
    assert (panel(figure, 0, size) == 128).all()
    cell = max(width, visualization.PANEL_WIDTH_MIN) + GAP
    assert figure.size == (GAP + 3 * cell, TITLE_HEIGHT + 2 * (LINE + height + GAP) + LINE + GAP)


@pytest.mark.parametrize("size", [(100, 100), (512, 512), (1024, 2048)])
def test_panels_show_target_prediction_and_difference(size):
    figure = panels(*halves(size))
    height, width = panel_size(size)
    quarters = [(height // 4, width // 4), (height // 4, 3 * width // 4), (3 * height // 4, width // 4)]
    target, prediction, difference = (panel(figure, number, size) for number in (1, 2, 5))

    assert [target[pixel][0] for pixel in quarters] == [255, 0, 255]
    assert [prediction[pixel][0] for pixel in quarters] == [255, 255, 0]
    assert [tuple(difference[pixel]) for pixel in quarters] == [TP_COLOR, FP_COLOR, FN_COLOR]
    assert tuple(difference[3 * height // 4, 3 * width // 4]) == (45, 45, 45)


def test_contours_run_around_the_masks_and_do_not_cover_them():
    size = (512, 512)
    color = PHRASE_COLORS[1]
    figure = panels(*halves(size), color=color)
    target, prediction = panel(figure, 3, size), panel(figure, 4, size)

    line = (256, 257)  # two pixels, outside the mask
    assert (target[:, line] == color).all() and (prediction[line, :] == color).all()
    assert (np.delete(target, line, axis=1) == CONTOUR_GRAY).all()
    assert (np.delete(prediction, line, axis=0) == CONTOUR_GRAY).all()


def test_dark_images_are_not_darkened_under_contours():
    image, target, prediction = halves((64, 64))
    figure = panels(image // 2, target, prediction)
    assert (panel(figure, 3, (64, 64))[:, :16] == 64).all()


@pytest.mark.parametrize("size", [(100, 100), (2336, 3504), (900, 60)])
def test_text_fits_between_the_margins_for_every_image_size(size):
    figure = np.asarray(panels(*halves(size), scores={"dice": 0.123, "iou": None}))
    assert (figure[-GAP - LINE :, -GAP:] == 255).all() and (figure[-GAP - LINE :, :GAP] == 255).all()


def test_legend_shows_the_three_colors():
    figure = np.asarray(panels(*halves((64, 64))))
    legend = {tuple(pixel) for pixel in figure[-GAP - LINE : -GAP].reshape(-1, 3)}

    assert {TP_COLOR, FP_COLOR, FN_COLOR} <= legend


def test_a_vessel_thinner_than_a_panel_pixel_stays_visible():
    image, target, _ = halves((2048, 2048))
    target[:] = False
    target[:, 1000:1002] = True
    figure = panels(image, target, np.zeros_like(target))

    missed = panel(figure, 5, (2048, 2048)).astype(int)
    assert (np.abs(missed - FN_COLOR).sum(axis=2) < 60).any(axis=1).all()


def test_empty_masks_are_drawn():
    image, target, _ = halves((64, 64))
    nothing = np.zeros_like(target)
    figure = panels(image, nothing, nothing)

    assert (panel(figure, 1, (64, 64)) == 0).all()
    assert all((panel(figure, number, (64, 64)) == CONTOUR_GRAY).all() for number in (3, 4))


def test_masks_of_another_size_or_type_are_refused():
    image, target, prediction = halves((64, 32))
    with pytest.raises(ValueError, match=r"target must be bool \(64, 32\); got bool \(32, 64\)"):
        panels(image, target.T, prediction)
    with pytest.raises(ValueError, match=r"prediction must be bool .* got uint8"):
        panels(image, target, prediction.astype(np.uint8))


def test_overlay_is_a_translucent_fill_with_a_contour_around_it():
    image = np.full((7, 7, 3), 100, dtype=np.uint8)
    mask = np.zeros((7, 7), dtype=bool)
    mask[3, 3] = True
    drawn = np.asarray(overlay(image, mask, (200, 0, 0), alpha=0.5))

    assert tuple(drawn[3, 3]) == (150, 50, 50)
    assert {tuple(drawn[pixel]) for pixel in ((2, 3), (4, 3), (3, 2), (3, 4))} == {(200, 0, 0)}
    assert (drawn[2, 2] == 100).all() and (drawn[0] == 100).all()
    assert (image == 100).all()


def test_overlay_of_an_empty_mask_is_the_image():
    image = np.random.default_rng(0).integers(0, 255, (9, 5, 3), dtype=np.uint8)
    assert (np.asarray(overlay(image, np.zeros((9, 5), dtype=bool))) == image).all()


def test_an_overlay_of_several_phrases_has_a_color_for_each_and_a_legend():
    image = np.full((200, 300, 3), 100, dtype=np.uint8)
    masks = {name: np.zeros((200, 300), dtype=bool) for name in ("artery", "vein", "optic disc")}
    masks["artery"][20:60, 20:60] = True
    masks["vein"][40:80, 40:80] = True  # overlaps the artery
    drawn = np.asarray(overlay_phrases(image, masks))

    assert drawn.shape[0] > 200 and drawn.shape[1] == 300
    picture, legend = drawn[:200], drawn[200:]
    seen = {tuple(pixel) for pixel in picture.reshape(-1, 3)}
    assert seen >= set(PHRASE_COLORS[:2]) and PHRASE_COLORS[2] not in seen
    assert {tuple(pixel) for pixel in legend.reshape(-1, 3)} >= set(PHRASE_COLORS[:3])  # an empty mask is named too
    assert (picture[60, 41:59] == PHRASE_COLORS[0]).all()  # the outline of the artery is not hidden by the vein

    chosen = {"artery": PHRASE_COLORS[4], "vein": PHRASE_COLORS[5], "optic disc": PHRASE_COLORS[6]}
    bare = np.asarray(overlay_phrases(image, masks, chosen, legend=False))
    assert bare.shape == image.shape and (bare[60, 41:59] == PHRASE_COLORS[4]).all()


@pytest.mark.parametrize("width", [1, 40, 200, 3000])
def test_a_legend_fits_every_width(width):
    masks = {f"a long phrase number {i} 血管": np.zeros((9, width), dtype=bool) for i in range(11)}
    drawn = np.asarray(overlay_phrases(np.zeros((9, width, 3), np.uint8), masks))
    assert drawn.shape[1] == width and (width < 9 or (drawn[9:, -3:] == 255).all())


# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
DEFICIENCIES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("kind", DEFICIENCIES)
def test_colorblind_readers_can_distinguish_the_three_colors(kind):
    seen = [_lab(np.array(DEFICIENCIES[kind]) @ _linear(color)) for color in (TP_COLOR, FP_COLOR, FN_COLOR)]

    # CIE76; 2.3 is a just noticeable difference
    assert min(np.linalg.norm(one - two) for one, two in combinations(seen, 2)) > 30


def _linear(color) -> np.ndarray:
    value = np.array(color) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ np.clip(linear, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_long_texts_are_truncated_to_the_width():
    image, target, prediction = halves((64, 64))
    figure = panels(image, target, prediction, title="patient " * 2000, prompt="血管" * 500)

    assert (np.asarray(figure)[:, -GAP:] == 255).all()


def test_titles_and_legend_are_chinese_on_request_where_a_font_has_the_characters(monkeypatch):
    shown = [panels(*halves((64, 64)), prompt="").tobytes()]
    with speaking("zh"):
        shown.append(panels(*halves((64, 64)), prompt="").tobytes())
        monkeypatch.setattr(fonts, "FONT_FOLDERS", ())
        shown.append(panels(*halves((64, 64)), prompt="").tobytes())
    assert shown[2] == shown[0]
    monkeypatch.undo()
    if fonts.missing_font("真值") is None:
        assert shown[1] != shown[0]
