"""Burned-in text: clear text is found, without false positives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from vesalius.curation.burned_in import find_text
from vesalius.data.images import list_images, read_image


def picture(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).normal(110, 6, (200, 300))
    return Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))


def as_pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("height", [10, 16, 30])
@pytest.mark.parametrize("value", [0, 255])
def test_a_line_of_letters_is_found_where_it_stands(height: int, value: int) -> None:
    image = picture()
    ImageDraw.Draw(image).text((20, 120), "MUELLER HANS", fill=value, font=ImageFont.load_default(height))
    boxes = find_text(as_pixels(image))
    assert boxes
    for left, top, right, bottom in boxes:
        assert 15 <= left < right <= 20 + 12 * height
        assert 118 <= top < bottom <= 125 + 1.5 * height


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (40, 40)])
def test_images_without_text_have_none(size: tuple[int, int]) -> None:
    assert find_text(as_pixels(picture())) == []
    assert find_text(np.zeros((*size, 3), np.uint8)) == []
    assert find_text(np.full((*size, 3), 255, np.uint8)) == []


def test_a_line_and_a_few_dots_are_no_text() -> None:
    image = picture()
    draw = ImageDraw.Draw(image)
    draw.line((0, 0, 300, 200), fill=255, width=4)
    for x in (50, 70, 90):
        draw.ellipse((x, 100, x + 10, 110), fill=255)
    assert find_text(as_pixels(image)) == []


def test_angiograms_give_no_false_positive(shared: Path) -> None:
    files = list_images(shared / "data" / "arcade" / "images")[::6]
    assert sum(bool(find_text(read_image(file))) for file in files) == 0
