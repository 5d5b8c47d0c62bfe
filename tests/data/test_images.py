"""Image and mask files: exact pixels, and errors that name the file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from tests.codes import raises_code

from vesalius.data.decoders.limits import MAX_PIXELS
from vesalius.data.images import list_images, mask_values, read_image, read_mask, sample_id
from vesalius.errors import AnnotationError, ImageError, InterruptionError

RED = np.array([[[255, 0, 0], [0, 0, 0]], [[10, 20, 30], [255, 255, 255]]], dtype=np.uint8)
GRAY = np.array([[0, 7], [128, 255]], dtype=np.uint8)


def test_rgb_pixels_come_back_exactly_from_a_path_that_is_not_ascii(tmp_path: Path) -> None:
    path = tmp_path / "血管 é" / "图像.png"
    path.parent.mkdir()
    Image.fromarray(RED).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image, RED)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_8_bit_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    black_and_white = np.where(GRAY[..., None] > 100, 255, 0).astype(np.uint8).repeat(3, axis=2)
    Image.fromarray(black_and_white).convert(mode).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), black_and_white)


def test_an_opaque_palette_is_accepted(tmp_path: Path) -> None:
    Image.fromarray(RED).quantize(4).save(tmp_path / "a.png", transparency=bytes([255, 255, 255, 255]))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RED)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_refused(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RED).convert(mode)
    image.putpixel((0, 0), (9, 200) if mode == "LA" else (9, 9, 9, 200))
    image.save(tmp_path / "a.png")
    with raises_code(ImageError, "transparent_image", "a.png"):
        read_image(tmp_path / "a.png")


def test_a_transparent_color_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GRAY).save(tmp_path / "a.png", transparency=7)
    with raises_code(ImageError, "transparent_image"):
        read_image(tmp_path / "a.png")


def test_missing_empty_broken_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp", "tif"):
        Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    codes = {"missing.png": "not_found", ".": "unreadable_file"}
    for name in ("missing.png", "empty.png", "text.png", ".", "cut.png", "cut.jpg", "cut.bmp", "cut.tif"):
        with raises_code(ImageError, codes.get(name, "unreadable_image"), str(tmp_path / name)) as error:
            read_image(tmp_path / name)
        assert error.value.path == str(tmp_path / name)


def test_flipped_bytes_give_an_image_or_an_image_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a"
    for suffix in ("png", "jpeg", "bmp", "tiff"):
        Image.fromarray(RED.repeat(8, axis=0)).save(path, format=suffix)
        data = bytearray(path.read_bytes())
        for _ in range(60):
            broken = bytearray(data)
            for offset in rng.integers(0, len(data), 3):
                broken[offset] = rng.integers(256)
            path.write_bytes(broken)
            try:
                assert read_image(path).dtype == np.uint8
            except ImageError as error:
                assert str(path) in str(error)


def test_a_signal_during_decoding_passes_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(image: Image.Image) -> None:
        raise InterruptionError("stopped by SIGTERM", 15)

    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", stopped)
    with pytest.raises(InterruptionError):
        read_image(tmp_path / "a.png")


def test_animations_need_a_frame_number(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 4), gray, dtype=np.uint8)) for gray in (0, 99, 200)]
    for name in ("a.gif", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with raises_code(ImageError, "multi_frame_file", "3 frames"):
            read_image(tmp_path / name)
        assert read_image(tmp_path / name, 1).max() == 99
        with raises_code(ImageError, "frame_count_mismatch"):
            read_image(tmp_path / name, 3)


@pytest.mark.parametrize("side", [14_200, 25_000])
def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    header = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, *[0] * 6)
    (tmp_path / "a.bmp").write_bytes(header)
    assert side * side > MAX_PIXELS
    with raises_code(ImageError, "image_too_large", "200"):
        read_image(tmp_path / "a.bmp")


def test_masks_are_true_where_the_pixel_is_not_zero(tmp_path: Path) -> None:
    expected = GRAY != 0
    Image.fromarray(GRAY).save(tmp_path / "gray.png")
    Image.fromarray(GRAY.astype(np.uint16) * 200).save(tmp_path / "deep.png")
    Image.fromarray(expected).save(tmp_path / "bit.png")
    Image.fromarray(GRAY).convert("RGB").save(tmp_path / "rgb.png")
    Image.fromarray(GRAY).convert("RGBA").save(tmp_path / "rgba.png")
    palette = Image.fromarray(expected.astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    palette.save(tmp_path / "palette.png")
    for path in sorted(tmp_path.glob("*.png")):
        mask = read_mask(path, (2, 2))
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, expected, err_msg=path.name)


def test_ambiguous_masks_are_refused(tmp_path: Path) -> None:
    Image.fromarray(RED).save(tmp_path / "color.png")
    white_first = Image.fromarray(GRAY.clip(0, 1)).convert("P")
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    white_first.save(tmp_path / "palette.png")
    Image.fromarray(GRAY.astype(np.float32)).save(tmp_path / "float.tif")
    codes = {"color.png": "ambiguous_mask", "palette.png": "ambiguous_mask", "float.tif": "unsupported_color_model"}
    for name, code in codes.items():
        with raises_code(AnnotationError, code, name):
            read_mask(tmp_path / name, (2, 2))


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    with raises_code(AnnotationError, "size_mismatch", "2 x 2", "512 x 400"):
        read_mask(tmp_path / "a.png", (512, 400))


CLASSES = np.array([[0, 1, 2], [2, 7, 0]], dtype=np.uint8)
PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], *[[9, 9, 9]] * 4, [1, 2, 3]], dtype=np.uint8)
INDICES: tuple[int, ...] = (1, 2, 7)


def test_a_class_map_gives_the_mask_of_each_gray_level_or_palette_index(tmp_path: Path) -> None:
    Image.fromarray(CLASSES).save(tmp_path / "gray.png")
    Image.fromarray(CLASSES.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(CLASSES).convert("RGB").save(tmp_path / "rgb.png")
    palette = Image.fromarray(CLASSES).convert("P")
    palette.putpalette(PALETTE.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    for path in sorted(tmp_path.glob("*.png")):
        for values in ((1,), (7,), (2, 7), (300,)):
            mask = read_mask(path, (2, 3), values, (*INDICES, 300))
            np.testing.assert_array_equal(mask, np.isin(CLASSES, values), err_msg=path.name)
        assert mask_values(path) == [0, 1, 2, 7]


def test_a_class_map_gives_the_mask_of_each_color(tmp_path: Path) -> None:
    Image.fromarray(PALETTE[CLASSES]).save(tmp_path / "rgb.png")
    Image.fromarray(PALETTE[CLASSES]).convert("RGBA").save(tmp_path / "rgba.png")
    Image.fromarray(PALETTE[CLASSES]).quantize(4).save(tmp_path / "palette.png")
    colors = {index: (int(r), int(g), int(b)) for index in INDICES for r, g, b in [PALETTE[index]]}
    for path in sorted(tmp_path.glob("*.png")):
        for index, color in colors.items():
            mask = read_mask(path, (2, 3), [color], list(colors.values()))
            np.testing.assert_array_equal(mask, index == CLASSES, err_msg=path.name)


def test_a_value_of_no_class_is_an_error_with_its_pixel_count(tmp_path: Path) -> None:
    Image.fromarray(CLASSES).save(tmp_path / "gray.png")
    Image.fromarray(PALETTE[CLASSES]).save(tmp_path / "rgb.png")
    Image.fromarray(CLASSES.astype(np.uint16)).save(tmp_path / "deep.png")
    with raises_code(AnnotationError, "unknown_mask_value", ": 2 (pixels: 2) and 1 more"):
        read_mask(tmp_path / "gray.png", (2, 3), (1,))
    red, last = (255, 0, 0), (1, 2, 3)
    with raises_code(AnnotationError, "unknown_mask_value", "[0, 255, 0] (pixels: 2)", "[255, 0, 0], [1, 2, 3]"):
        read_mask(tmp_path / "rgb.png", (2, 3), (red,), (last,))
    with raises_code(AnnotationError, "ambiguous_mask"):
        read_mask(tmp_path / "rgb.png", (2, 3), (1,), (1,))
    with raises_code(AnnotationError, "unsupported_color_model", "mode I"):
        read_mask(tmp_path / "deep.png", (2, 3), (red,), (red,))


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 7)), st.booleans())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_palette_image_gives_the_mask_of_each_class(tmp_path: Path, classes: np.ndarray, bits: bool) -> None:
    image = Image.fromarray(classes).convert("P")
    image.putpalette(np.random.default_rng(0).permutation(np.arange(24, dtype=np.uint8)).tolist())
    image.putpalette([0, 0, 0, *(image.getpalette() or [])[3:]])
    image.save(tmp_path / "a.png", **({"bits": 4} if bits else {}))
    size = classes.shape[0], classes.shape[1]
    for value in range(1, 8):
        mask = read_mask(tmp_path / "a.png", size, (value,), range(1, 8))
        np.testing.assert_array_equal(mask, classes == value)
    assert mask_values(tmp_path / "a.png") == sorted(set(classes.ravel().tolist()))


def test_the_values_of_a_mask_are_at_most_256(tmp_path: Path) -> None:
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)[::-1].copy()).save(tmp_path / "a.png")
    assert mask_values(tmp_path / "a.png") == list(range(256))
    Image.fromarray(GRAY != 0).save(tmp_path / "b.png")
    assert mask_values(tmp_path / "b.png") == [0, 1]


def test_ids_are_paths_without_suffix_and_without_a_leading_images_folder() -> None:
    for path, expected in {
        "a.png": "a",
        "images/a.png": "a",
        "images/p1/a.b.png": "p1__a.b",
        "p1/images/a.png": "p1__images__a",
        "images.png": "images",
    }.items():
        assert sample_id(Path(path)) == expected


def test_folders_list_images_at_any_depth_and_no_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "a.jpeg", "deep/c.TIFF", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == [
        "a.jpeg",
        "b.PNG",
        "deep/c.TIFF",
    ]
