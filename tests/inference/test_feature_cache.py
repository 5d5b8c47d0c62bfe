"""Feature cache: identical masks, detected damage, and a size limit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.codes import raises_code

from vesalius.errors import OutputError, SettingError
from vesalius.inference.feature_cache import CacheSettings, FeatureCache, check_no_overlap
from vesalius.inference.predictor import Predictor
from vesalius.inference.tiles import TileSettings
from vesalius.models.checkpoint import OpenedModel
from vesalius.models.sam2 import Features, encode_images
from vesalius.types import Item, Prediction

LEVELS = ("stride_4", "stride_8", "stride_16")


def items(*seeds: int, size: tuple[int, int] = (50, 70)) -> list[Item]:
    return [
        Item(f"{seed}", np.random.default_rng(seed).integers(0, 256, (1, *size, 3), dtype=np.uint8), ("vessel",))
        for seed in seeds
    ]


def cached(plain: Predictor, folder: Path, *, fingerprint: str | None = "f00d", **more) -> Predictor:
    opened = OpenedModel(plain.model, plain.processor, plain.model_card)
    cache = CacheSettings(folder=folder, **{k: v for k, v in more.items() if k == "max_bytes"})
    rest = {k: v for k, v in more.items() if k != "max_bytes"}
    return Predictor(opened, answer="force", batch_size=2, cache=cache, fingerprint=fingerprint, **rest)


def use(predictor: Predictor) -> tuple[int, int, int]:
    assert predictor.cache is not None
    return predictor.cache.use.read, predictor.cache.use.encoded, predictor.cache.use.damaged


def check_equal(left: list[Prediction], right: list[Prediction]) -> None:
    for one, other in zip(left, right, strict=True):
        assert (one.id, one.scores, one.text) == (other.id, other.scores, other.text)
        np.testing.assert_array_equal(one.logits, other.logits)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_masks_equal_those_without_cache_and_no_image_is_encoded_twice(small_predictor, tmp_path, monkeypatch):
    asked = items(0, 1, 2)
    expected = small_predictor.predict(asked)
    first = cached(small_predictor, tmp_path)
    check_equal(first.predict(asked), expected)
    assert use(first) == (0, 3, 0)
    assert len(entries(tmp_path)) == 3

    second = cached(small_predictor, tmp_path)
    monkeypatch.setattr("vesalius.inference.feature_cache.encode_images", lambda *_: pytest.fail("encoded again"))
    check_equal(second.predict(asked), expected)
    assert use(second) == (3, 0, 0)


def test_cached_and_new_images_share_a_batch_in_order(small_predictor, tmp_path):
    cached(small_predictor, tmp_path).predict(items(1))
    predictor = cached(small_predictor, tmp_path)
    check_equal(predictor.predict(items(0, 1)), small_predictor.predict(items(0, 1)))
    assert use(predictor) == (1, 1, 0)


def test_windows_are_cached_too(small_predictor, tmp_path):
    opened = OpenedModel(small_predictor.model, small_predictor.processor, small_predictor.model_card)
    tiles = TileSettings(sides=(48,))
    (expected,) = Predictor(opened, answer="force", batch_size=2, tiles=tiles).predict(items(3))
    for seen in ((0, 4, 0), (4, 0, 0)):
        predictor = cached(small_predictor, tmp_path, tiles=tiles)
        (prediction,) = predictor.predict(items(3))
        np.testing.assert_array_equal(prediction.probabilities, expected.probabilities)
        assert use(predictor) == seen


def test_entries_depend_on_weights_dtype_and_pixels(small_predictor, tmp_path):
    sam = small_predictor.model.sam
    pixels = torch.rand(1, 3, 128, 128)
    cache, other = (FeatureCache(CacheSettings(folder=tmp_path), name) for name in ("a", "b"))
    for each, seen in ((cache, pixels), (other, pixels), (cache, pixels + 1e-6)):
        each.encode(sam, seen)
    half = sam.to(torch.bfloat16)
    try:
        made, again = (cache.encode(half, pixels.to(torch.bfloat16)) for _ in range(2))
    finally:
        sam.to(torch.float32)
    assert len(entries(tmp_path)) == 4
    assert (cache.use.encoded, cache.use.read) == (3, 1)
    for level in LEVELS:
        assert getattr(again, level).dtype == torch.bfloat16
        assert torch.equal(getattr(made, level), getattr(again, level))


@pytest.mark.parametrize("harm", ["cut", "bit", "empty", "header", "text", "another's"])
def test_damaged_entry_is_written_again_and_counted(small_predictor, tmp_path, caplog, harm):
    asked = items(0, 1)
    expected = cached(small_predictor, tmp_path).predict(asked)
    path, other = entries(tmp_path)
    whole = path.read_bytes()
    bit = bytearray(whole)
    bit[len(bit) // 2] ^= 1
    damaged = {
        "cut": whole[:-9],
        "bit": bytes(bit),
        "empty": b"",
        "header": whole[:8] + whole[8:400].replace(b"stride_4", b"stride_5") + whole[400:],
        "text": b"not a tensor at all",
        "another's": other.read_bytes(),
    }
    path.write_bytes(damaged[harm])
    predictor = cached(small_predictor, tmp_path)
    check_equal(predictor.predict(asked), expected)
    assert use(predictor) == (1, 1, 1)
    assert caplog.messages == [f"{path}: is damaged and will be written again"]
    assert path.read_bytes() == whole


def test_least_recently_used_entries_are_evicted(small_predictor, tmp_path):
    sam = small_predictor.model.sam
    images = torch.rand(4, 1, 3, 128, 128)
    cache = FeatureCache(CacheSettings(folder=tmp_path), "a")
    for time, image in enumerate(images[:3]):
        cache.encode(sam, image)
        new = max(entries(tmp_path), key=lambda path: path.stat().st_mtime)
        os.utime(new, (time + 1, time + 1))
    size = entries(tmp_path)[0].stat().st_size
    cache.encode(sam, images[0])  # used again: now the newest
    tight = FeatureCache(CacheSettings(folder=tmp_path, max_bytes=int(3.5 * size)), "a")
    tight.encode(sam, images[3])
    assert len(entries(tmp_path)) == 3
    for image in (images[0], images[2], images[3]):
        tight.encode(sam, image)
    assert (tight.use.read, tight.use.encoded) == (3, 1)
    tight.encode(sam, images[1])
    assert tight.use.encoded == 2


def test_processes_that_share_a_cache_respect_its_size_limit_together(small_predictor, tmp_path):
    sam, images = small_predictor.model.sam, torch.rand(6, 1, 3, 128, 128)
    FeatureCache(CacheSettings(folder=tmp_path), "a").encode(sam, images[0])
    size = entries(tmp_path)[0].stat().st_size
    one, two = (FeatureCache(CacheSettings(folder=tmp_path, max_bytes=4 * size), "a") for _ in range(2))
    for k in range(1, 6):  # neither writes more than 3 itself
        (one if k % 2 else two).encode(sam, images[k])
        assert len(entries(tmp_path)) <= 4


def test_cache_and_output_must_not_overlap(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    for cache in (out, Path("out/cache"), tmp_path):
        with raises_code(SettingError, "not_a_cache", str(out)):
            check_no_overlap(cache, out)
    check_no_overlap(tmp_path / "out2", out)
    check_no_overlap(out, None)


def test_folder_with_other_files_is_refused(small_predictor, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with raises_code(SettingError, "not_a_cache", "thesis.tex"):
        cached(small_predictor, tmp_path)
    with raises_code(OutputError, "write_failed"):
        cached(small_predictor, tmp_path / "thesis.tex" / "cache")
    with raises_code(SettingError, "not_supported"):
        cached(small_predictor, tmp_path / "cache", fingerprint=None)


def test_features_that_cannot_be_written_are_used_and_counted(small_predictor, tmp_path, caplog):
    expected = small_predictor.predict(items(0, 1, 2))
    predictor = cached(small_predictor, tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").touch()  # a file where the folder was
    check_equal(predictor.predict(items(0, 1, 2)), expected)
    assert predictor.cache is not None
    assert (predictor.cache.use.encoded, predictor.cache.use.not_kept) == (3, 3)
    assert len(caplog.messages) == 1
    assert "not cached" in caplog.messages[0]


def test_files_of_a_killed_process_are_ignored(small_predictor, tmp_path):
    cached(small_predictor, tmp_path).predict(items(0))
    (whole,) = entries(tmp_path)
    left = tmp_path / f".{whole.name}.4711.partial"
    left.write_bytes(whole.read_bytes()[:100])
    (tmp_path / ".4711.probe").touch()
    again = cached(small_predictor, tmp_path)
    again.predict(items(0))
    assert use(again) == (1, 0, 0)


def test_cached_features_equal_the_encoded_ones(small_predictor, tmp_path):
    sam, pixels = small_predictor.model.sam, torch.rand(2, 3, 128, 128)
    cache = FeatureCache(CacheSettings(folder=tmp_path), "a")
    with torch.inference_mode():
        made: Features = encode_images(sam, pixels)
        for _ in range(2):
            kept = cache.encode(sam, pixels)
            assert all(torch.equal(getattr(made, level), getattr(kept, level)) for level in LEVELS)
