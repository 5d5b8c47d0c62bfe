"""Pictures of every depth, files with several pages, animations, and photos turned by EXIF."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from tests.codes import raises_code
from tests.deep_files import write_png16

from vesalius.data.dataset import decode_sample
from vesalius.data.decoders.decoded import turn
from vesalius.data.decoders.frame_files import KINDS, FrameReader, kind_of, series_of
from vesalius.data.decoders.picture import open_pages
from vesalius.data.decoders.picture_series import SeriesDecoder, frame_time_ms
from vesalius.data.image_files import find_images
from vesalius.data.images import decode_image, read_image
from vesalius.errors import ImageError
from vesalius.types import MaskFile, Polygons, Sample
from vesalius.window import Window

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (13, 17), dtype=np.uint16)
WIDE = RNG.integers(0, 65536, (13, 17, 3), dtype=np.uint16)
OPAQUE = np.full((13, 17, 1), 65535, np.uint16)


def stored(path: Path) -> np.ndarray:
    with closing(open_pages(path)) as pages:
        return pages.read(pages.frames[0]).values


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", "u2 i2 u4 i4 i1 f2 f4 f8".split())
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_gray_tiff_of_every_type_gives_the_stored_values(
    tmp_path: Path, dtype: str, order: str, compression: Any
) -> None:
    kind = np.dtype(dtype)
    values = RNG.integers(0, 2 ** (8 * kind.itemsize) if kind.kind != "f" else 2**8, (13, 17), dtype=np.uint64)
    expected = (values / 7).astype(kind) if kind.kind == "f" else values.astype(kind)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, expected, byteorder=order, compression=compression, photometric="minisblack")
    found = stored(path)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "deflate"}, {"compression": "deflate", "predictor": True}, {"planarconfig": "separate"}],
)
def test_16_bit_colors_of_tiff_keep_their_low_bytes(tmp_path: Path, order: str, options: Any) -> None:
    path = tmp_path / "a.tif"
    data = np.moveaxis(WIDE, 2, 0) if "planarconfig" in options else WIDE
    tifffile.imwrite(path, data, photometric="rgb", byteorder=order, **options)
    np.testing.assert_array_equal(stored(path), WIDE)


def test_16_bit_pngs_keep_their_low_bytes(tmp_path: Path) -> None:
    np.testing.assert_array_equal(stored(write_png16(tmp_path / "gray.png", DEEP)), DEEP)
    np.testing.assert_array_equal(stored(write_png16(tmp_path / "rgb.png", WIDE)), WIDE)
    for name, values in {"la": DEEP[:, :, None], "rgba": WIDE}.items():
        path = write_png16(tmp_path / f"{name}.png", np.concatenate([values, OPAQUE], axis=2))
        np.testing.assert_array_equal(stored(path), values.squeeze())
        with raises_code(ImageError, "transparent_image"):
            read_image(write_png16(tmp_path / f"{name}2.png", np.concatenate([values, OPAQUE - 1], axis=2)))


def test_16_bit_pnm_keeps_its_values_and_wide_colors_of_pnm_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 17 13 65535\n" + DEEP.astype(">u2").tobytes())
    np.testing.assert_array_equal(stored(tmp_path / "a.pgm"), DEEP)
    (tmp_path / "a.ppm").write_bytes(b"P6 17 13 65535\n" + WIDE.astype(">u2").tobytes())
    with raises_code(ImageError, "invalid_bit_depth"):
        read_image(tmp_path / "a.ppm")


def test_a_deep_image_shows_its_range_and_says_which(tmp_path: Path) -> None:
    levels = np.linspace(0, 255, 17 * 13).round().astype(np.uint8).reshape(13, 17)
    Image.fromarray(levels).save(tmp_path / "8.png")
    write_png16(tmp_path / "16.png", levels.astype(np.uint16) * 16 + 100)
    tifffile.imwrite(tmp_path / "float.tif", (levels / 255).astype(np.float32))
    tifffile.imwrite(tmp_path / "double.tif", levels * 3.0 - 400)
    tifffile.imwrite(tmp_path / "signed.tif", levels.astype(np.int16) * 8 - 1024)
    expected = np.repeat(levels[:, :, None], 3, axis=2)
    found = {path.name: decode_image(path) for path in sorted(tmp_path.iterdir())}
    for name, each in found.items():
        np.testing.assert_array_equal(each.pixels, expected, err_msg=name)
    assert {name: (each.depth, each.window) for name, each in found.items()} == {
        "8.png": ("8-bit", None),
        "16.png": ("16-bit", (100, 4180)),
        "float.tif": ("32-bit float", (0, 1)),
        "double.tif": ("64-bit float", (-400, 365)),
        "signed.tif": ("signed 16-bit", (-1024, 1016)),
    }


def test_a_given_window_applies_to_every_depth_and_counts_what_it_clips(tmp_path: Path) -> None:
    values = np.arange(0, 2000, 10, dtype=np.uint16).reshape(10, 20)
    shown = decode_image(write_png16(tmp_path / "a.png", values), window=Window.of((500, 1000)))
    assert shown.window == (500, 1000)
    assert shown.clipped == (values < 500).mean() + (values > 1000).mean()
    assert shown.pixels[:, :, 0].ravel()[[0, 49, 50, 75, 100, 199]].tolist() == [0, 0, 0, 128, 255, 255]
    Image.fromarray((values // 10).astype(np.uint8)).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png", window=Window.of((50, 100))), shown.pixels)


def test_a_tiff_that_stores_white_as_0_is_inverted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 300], [600, 900]], np.uint16), photometric="miniswhite")
    assert read_image(tmp_path / "a.tif")[:, :, 0].tolist() == [[255, 170], [85, 0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_an_error_that_names_the_file(tmp_path: Path, bad: float) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[1, bad]], np.float32))
    with raises_code(ImageError, "not_finite_pixels", "a.tif", "1 of 2") as error:
        read_image(tmp_path / "a.tif")
    assert error.value.path == str(tmp_path / "a.tif")


def test_a_compression_that_nothing_here_decodes_is_an_image_error(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DEEP.astype(np.float64), compression="deflate")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    tag = content.index((259).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    content[tag + 8 : tag + 10] = (5).to_bytes(2, "little")
    (tmp_path / "a.tif").write_bytes(content)
    with raises_code(ImageError, "unreadable_image", "a.tif"):
        read_image(tmp_path / "a.tif")


def test_a_tiff_that_states_more_values_than_it_has_is_refused_before_its_pixels_are_allocated(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((8, 8, 9), np.uint16), photometric="minisblack", planarconfig="contig")
    with raises_code(ImageError, "unsupported_color_model"):
        read_image(path)


@pytest.mark.parametrize("n", range(15, 22))
def test_a_webp_that_ends_in_its_header_is_no_animation(tmp_path: Path, n: int) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(b"RIFF\x10\0\0\0WEBPVP8X\0\0\0\0\0"[:n])
    assert kind_of(path) is None
    assert len(find_images([path])) == 1
    with raises_code(ImageError, "unreadable_image"):
        read_image(path)


def test_all_pages_of_a_deep_tiff_share_one_range(tmp_path: Path) -> None:
    pages = np.stack([np.full((6, 8), value, np.uint16) for value in (100, 600, 1100)])
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack")
    samples = find_images([tmp_path])
    assert [(each.id, each.frame, each.sequence) for each in samples] == [
        (f"stack__000{i}", i, "stack") for i in range(3)
    ]
    with FrameReader() as reader:
        shown = [decode_sample(sample, reader) for sample in samples]
    assert [each.pixels.max() for each in shown] == [0, 128, 255]
    assert {each.window for each in shown} == {(100, 1100)}


def test_smaller_copies_of_a_page_are_no_frames(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(WIDE, photometric="rgb")
        writer.write(WIDE[::2, ::2], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(stored(tmp_path / "a.tif"), WIDE)
    assert kind_of(tmp_path / "a.tif") is None
    assert [sample.id for sample in find_images([tmp_path / "a.tif"])] == ["a"]


def test_pages_of_wide_colors_can_be_read_twice(tmp_path: Path) -> None:
    stack = np.stack([WIDE, WIDE[::-1]])
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="rgb")
    with closing(open_pages(tmp_path / "a.tif")) as pages:
        for page in (0, 0, 1, 1, 0):
            np.testing.assert_array_equal(pages.read(page).values, stack[page])


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_animations_are_clips(tmp_path: Path, name: str) -> None:
    frames = [Image.fromarray(np.full((9, 11, 3), gray, np.uint8)) for gray in (0, 100, 200)]
    options: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=40, **options)
    assert kind_of(tmp_path / name) is KINDS["pages"]
    samples = find_images([tmp_path / name])
    assert [sample.id for sample in samples] == ["a__0000", "a__0001", "a__0002"]
    with closing(SeriesDecoder(tmp_path / name)) as decoder:
        for frame in (0, 1, 2, 1, 1, 0, 2):
            assert decoder.read(frame).pixels.mean() == 100 * frame
    assert frame_time_ms(tmp_path / name) == 40


def test_still_gif_webp_and_png_are_single_images(tmp_path: Path) -> None:
    for name in ("a.gif", "b.webp", "c.png", "d.jfif", "e.bmp", "f.pgm"):
        kind = {"d.jfif": "JPEG", "f.pgm": "PPM"}.get(name)
        Image.fromarray(DEEP.astype(np.uint8)).save(tmp_path / name, format=kind)
        assert series_of(tmp_path / name) is None
    assert [sample.id for sample in find_images([tmp_path])] == list("abcdef")
    for sample in find_images([tmp_path]):
        assert decode_sample(sample).pixels.shape == (13, 17, 3)


def turned_file(path: Path, pixels: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_photos_are_turned_upright_as_pillow_does(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = turned_file(tmp_path / f"a.{suffix}", RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8), orientation)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = decode_image(path)
    np.testing.assert_array_equal(found.pixels, expected)
    assert found.orientation == orientation
    np.testing.assert_array_equal(turn(found.stored, orientation), found.pixels)


def test_16_bit_photos_are_turned_too(tmp_path: Path) -> None:
    image = Image.fromarray(DEEP)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(stored(tmp_path / "a.png"), np.rot90(DEEP, -1))
    tifffile.imwrite(tmp_path / "a.tif", WIDE, photometric="rgb", extratags=[(0x0112, 3, 1, 6, True)])
    np.testing.assert_array_equal(stored(tmp_path / "a.tif"), np.rot90(WIDE, -1))
    tifffile.imwrite(tmp_path / "b.tif", DEEP.astype(np.float64), extratags=[(0x0112, 3, 1, 6, True)])
    np.testing.assert_array_equal(stored(tmp_path / "b.tif"), np.rot90(DEEP, -1))


def test_the_size_that_an_annotation_states_decides_which_way_round_it_is_read(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    path = turned_file(tmp_path / "a.png", pixels, 6)
    upright, as_stored = np.rot90(pixels, -1), pixels
    drawn = (Polygons(((0, 0, 5, 0, 5, 5),)),)
    for size, expected in {(24, 16): upright, (16, 24): as_stored, None: upright}.items():
        sample = Sample("a", path, ("vessel",), (drawn,), size=size)
        np.testing.assert_array_equal(decode_sample(sample).pixels, expected)
    for shape, expected in {(24, 16): upright, (16, 24): as_stored}.items():
        Image.new("L", shape[::-1]).save(tmp_path / "mask.png")
        sample = Sample("a", path, ("vessel",), ((MaskFile(tmp_path / "mask.png"),),))
        np.testing.assert_array_equal(decode_sample(sample).pixels, expected)


@pytest.mark.parametrize("exif", [b"garbage!", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b""])
def test_damaged_exif_does_not_turn_an_image(tmp_path: Path, exif: bytes) -> None:
    Image.fromarray(WIDE.astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert decode_image(tmp_path / "a.png").orientation == 1
