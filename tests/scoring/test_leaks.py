"""Training and tuning images are found by their pixels, and near-duplicates are listed."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.data.dataset import open_dataset
from vesalius.data.images import read_image
from vesalius.data.perceptual_hash import KnownImages, encode_texture, hash_image
from vesalius.errors import DataError
from vesalius.lineage import hash_pixels
from vesalius.models.cards import read_card
from vesalius.models.reference import resolve_model
from vesalius.scoring.leaks import LISTED, Leaks, find_leaks
from vesalius.segmenter import ModelDescription
from vesalius.synth.series import draw
from vesalius.types import Sample
from vesalius.window import Window


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


def near_hashes(pixels: np.ndarray) -> dict[str, tuple[str, ...]]:
    """The hashes of a training image by which near copies are found."""
    hashes = hash_image(pixels)
    return {
        "training_perceptual_hashes": (hashes.perceptual_hash,),
        "training_texture_hashes": (encode_texture(hashes.texture_hash),),
    }


def test_near_copies_are_listed_and_not_refused(samples, FakeSegmenter):
    model = FakeSegmenter()
    near = renamed(samples[3].image, "other.jpg", quality=60)
    model.describe(training_images=(hash_pixels(near),), **near_hashes(near))
    leaks = find_leaks(model.description, samples, allowed=False)
    assert (leaks.n_training, leaks.near, leaks.n_unconfirmed) == (0, ("3",), 0)
    assert leaks.notes[0].startswith("Near-duplicates of training images: 1;") and leaks.notes[0].endswith("3")


@pytest.mark.parametrize("texture", [(), ("",)])
def test_without_a_texture_hash_a_similar_image_is_counted_and_not_listed(samples, FakeSegmenter, texture):
    model = FakeSegmenter()
    hashes = near_hashes(read_image(samples[3].image)) | {"training_texture_hashes": texture}
    model.describe(training_images=(), **hashes)
    leaks = find_leaks(model.description, samples, allowed=False)
    assert (leaks.near, leaks.n_unconfirmed) == ((), 1)
    assert leaks.notes[0].startswith("1 of 5 images have a perceptual hash similar to that of a training image")


def test_real_retinas_are_no_near_copies_of_the_training_images_of_tiny(shared):
    dataset = open_dataset(shared / "data" / "chase_db1", prompt="blood vessel")
    card = read_card(resolve_model("tiny").folder)
    model = ModelDescription(
        "tiny",
        "textseg",
        training_images=card.training_images,
        training_perceptual_hashes=card.training_perceptual_hashes,
        training_texture_hashes=card.training_texture_hashes,
    )
    leaks = find_leaks(model, dataset.samples, allowed=False)
    assert (leaks.near, leaks.n_unconfirmed) == ((), 0)


def test_altered_training_images_of_tiny_are_found():
    card = read_card(resolve_model("tiny").folder)
    known = KnownImages(card.training_perceptual_hashes, card.training_texture_hashes)
    for index in range(4):  # of the training data of recipes/tiny_retina.yaml: angiograms and retinas
        pixels = draw(300, index, kind="mixed").frames[0]
        if hash_pixels(pixels) not in (card.training_images or ()):
            pytest.skip("other versions of NumPy or scikit-image, or another processor, draw other synthetic images")
        image = Image.fromarray(pixels)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=50)
        copies = (
            np.asarray(Image.open(stream)),
            np.asarray(image.resize((300, 300), Image.Resampling.BICUBIC)),
            np.clip(pixels * 1.2, 0, 255).astype(np.uint8),
            pixels[2:-2, 2:-2],
        )
        assert [known.find(np.ascontiguousarray(each)) for each in copies] == ["near"] * len(copies)
    assert known.find(draw(999, 0).frames[0]) is None


def test_long_lists_of_near_copies_are_cut_with_a_count(samples, FakeSegmenter):
    model = FakeSegmenter()
    model.describe(training_images=(), **near_hashes(read_image(samples[0].image)))
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


def test_images_are_compared_under_the_window_of_training(samples):
    """Whatever the window of the evaluation is."""
    window = Window("range", 20, 220)
    trained = hash_pixels(read_image(samples[0].image, window=window))
    model = ModelDescription("m", "m", training_images=(trained,), trained_on_unknown=False, training_window=window)
    for shown in (Window(), Window("range", 0, 100)):
        with raises_code(DataError, "training_leak", samples[0].id):
            find_leaks(model, [replace(sample, window=shown) for sample in samples], False)
    assert find_leaks(replace(model, training_window=None), samples, False).n_training == 0
