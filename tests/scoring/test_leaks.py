"""Training and tuning images are found by their pixels, and near-duplicates are listed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.data.images import read_image
from vesalius.errors import DataError
from vesalius.lineage import hash_pixels, perceptual_hash
from vesalius.scoring.leaks import LISTED, Leaks, find_leaks
from vesalius.types import Sample


def picture(seed: int) -> Image.Image:
    """A smooth and structured image, like an angiogram."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    """Five images that have nothing in common."""
    found = []
    for index in range(5):
        path = tmp_path / f"{index}.png"
        picture(index).save(path)
        found.append(Sample(str(index), path, ("vessel",), ((),)))
    return found


def renamed(path: Path, name: str, **options: object) -> np.ndarray:
    """The pixels of a copy of the image under another name."""
    copy = path.with_name(name)
    Image.open(path).save(copy, **options)
    return read_image(copy)


@pytest.mark.parametrize("name", ["other.png", "other.bmp", "other.tif"])
def test_same_pixels_in_another_file_are_refused(samples, FakeSegmenter, name):
    model = FakeSegmenter()
    model.describe(training_images=(hash_pixels(renamed(samples[2].image, name)), "0" * 64))
    with raises_code(DataError, "training_leak", "1 of 5 images", "first: 2"):
        find_leaks(model.description, samples, allowed=False)
    leaks = find_leaks(model.description, samples, allowed=True)
    assert (leaks.n_training, leaks.near) == (1, ())
    assert "1 of 5 images" in leaks.notes[0]


def test_near_copies_are_listed_and_not_refused(samples, FakeSegmenter):
    model = FakeSegmenter()
    near = renamed(samples[3].image, "other.jpg", quality=60)
    model.describe(training_images=(hash_pixels(near),), training_perceptual_hashes=(perceptual_hash(near),))
    leaks = find_leaks(model.description, samples, allowed=False)
    assert (leaks.n_training, leaks.near) == (0, ("3",))
    assert leaks.notes[0].startswith("Near-duplicates of training images: 1;") and leaks.notes[0].endswith("3")


def test_long_lists_of_near_copies_are_cut_with_a_count(samples, FakeSegmenter):
    model = FakeSegmenter()
    hashes = (perceptual_hash(read_image(samples[0].image)),)
    model.describe(training_images=(), training_perceptual_hashes=hashes)
    many = [Sample(f"copy{index}", samples[0].image, ("vessel",), ((),)) for index in range(LISTED + 7)]
    leaks = find_leaks(model.description, many, allowed=False)
    assert len(leaks.near) == LISTED + 7 and leaks.notes[0].endswith("7 more")


@pytest.mark.parametrize("trained", [None, ()])
def test_images_that_the_threshold_was_tuned_on_are_refused_even_if_allowed(samples, FakeSegmenter, trained):
    model = FakeSegmenter()
    tuning = tuple(hash_pixels(read_image(sample.image)) for sample in samples[1:3])
    model.describe(training_images=trained, tuning_images=tuning)
    with raises_code(DataError, "tuning_leak", "2 of 5 images", "first: 1"):
        find_leaks(model.description, samples, allowed=True)


def test_unreadable_image_is_skipped(samples, FakeSegmenter):
    model = FakeSegmenter()
    model.describe(training_images=(hash_pixels(read_image(samples[4].image)),))
    samples[0].image.write_bytes(b"no image")
    samples[1].image.unlink()
    assert find_leaks(model.description, samples, allowed=True).n_training == 1


def test_model_without_training_images_or_without_a_record_of_them(samples, FakeSegmenter):
    model = FakeSegmenter()
    model.describe(training_images=())
    assert find_leaks(model.description, samples, allowed=False) == Leaks(0, (), ())
    model.describe(training_images=None)
    leaks = find_leaks(model.description, samples, allowed=False)
    assert leaks.n_training is None and "does not record" in leaks.notes[0]


def test_fine_tuned_model_whose_earlier_training_is_not_recorded(samples, FakeSegmenter):
    """Images of the fine-tuning are checked, and a note says that others cannot be."""
    model = FakeSegmenter()
    model.describe(training_images=("0" * 64,), trained_on_unknown=True)
    leaks = find_leaks(model.description, samples, allowed=False)
    assert leaks.n_training is None and "earlier training" in leaks.notes[0]
    model.describe(training_images=(hash_pixels(read_image(samples[0].image)),))
    with raises_code(DataError, "training_leak"):
        find_leaks(model.description, samples, allowed=False)
