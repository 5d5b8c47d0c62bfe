"""Writing in pictures: found where it is plain, and not seen where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from vesalius.curation.burned_in import find_writing
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
    boxes = find_writing(as_pixels(image))
    assert boxes
    for left, top, right, bottom in boxes:
        assert 15 <= left < right <= 20 + 12 * height
        assert 118 <= top < bottom <= 125 + 1.5 * height


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (40, 40)])
def test_pictures_without_writing_have_none(size: tuple[int, int]) -> None:
    assert find_writing(as_pixels(picture())) == []
    assert find_writing(np.zeros((*size, 3), np.uint8)) == []
    assert find_writing(np.full((*size, 3), 255, np.uint8)) == []


def test_a_line_and_a_few_dots_are_no_writing() -> None:
    image = picture()
    draw = ImageDraw.Draw(image)
    draw.line((0, 0, 300, 200), fill=255, width=4)
    for x in (50, 70, 90):
        draw.ellipse((x, 100, x + 10, 110), fill=255)
    assert find_writing(as_pixels(image)) == []


def test_angiograms_are_not_taken_for_writing(shared: Path) -> None:
    files = list_images(shared / "data" / "arcade" / "images")[::6]
    assert sum(bool(find_writing(read_image(file))) for file in files) == 0
