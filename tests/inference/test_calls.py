"""Calls of a predictor: products of images and prompts, every form of an image, and wrong arguments."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.codes import raises_code

import vesalius
from vesalius.data.pictures import as_pixels, picture_ids
from vesalius.errors import ImageError, SettingError
from vesalius.inference.baselines import FrangiFilter
from vesalius.inference.official import OfficialPredictor
from vesalius.synth import write_dataset
from vesalius.types import Item

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
NOISE[0, :2] = [[0, 0, 0], [255, 255, 255]]  # so that the range of values is 0 to 255
GRAY = NOISE[:, :, :1]


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


FORMS: dict[str, Any] = {
    "array": NOISE,
    "channels first": NOISE.transpose(2, 0, 1),
    "opaque alpha": np.dstack([NOISE, np.full((40, 60), 255, np.uint8)]),
    "floats in 0..1": NOISE / 255,
    "float32 in 0..1": (NOISE / 255).astype(np.float32),
    "uint16": NOISE.astype(np.uint16) * 257,
    "uint16 with alpha": np.dstack([NOISE, np.full((40, 60), 255)]).astype(np.uint16) * 257,
    "int64": NOISE.astype(int) - 100,
    "tensor": torch.from_numpy(NOISE),
    "float tensor, channels first": torch.from_numpy(NOISE).permute(2, 0, 1) / 255,
    "tensor with gradient": (torch.from_numpy(NOISE) / 255).requires_grad_(),
    "PIL": Image.fromarray(NOISE),
    "PIL with alpha": Image.fromarray(NOISE).convert("RGBA"),
    "bytes": encoded(Image.fromarray(NOISE)),
    "bytearray": bytearray(encoded(Image.fromarray(NOISE))),
    "TIFF": encoded(Image.fromarray(NOISE), "TIFF"),
}
GRAY_FORMS: dict[str, Any] = {
    "(h, w)": GRAY[:, :, 0],
    "(h, w, 1)": GRAY,
    "(1, h, w)": GRAY.transpose(2, 0, 1),
    "PIL L": Image.fromarray(GRAY[:, :, 0]),
    "PIL I;16": Image.fromarray(GRAY[:, :, 0].astype(np.uint16) * 257),
    "PIL I": Image.fromarray(GRAY[:, :, 0].astype(np.int32)),
    "PIL F": Image.fromarray(GRAY[:, :, 0].astype(np.float32) / 255),
    "PIL LA": Image.fromarray(GRAY[:, :, 0]).convert("LA"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_has_the_same_pixels(form: str) -> None:
    np.testing.assert_array_equal(as_pixels(FORMS[form]), NOISE)


@pytest.mark.parametrize("form", GRAY_FORMS)
def test_every_form_of_a_gray_image_has_the_same_pixels(form: str) -> None:
    np.testing.assert_array_equal(as_pixels(GRAY_FORMS[form]), np.repeat(GRAY, 3, axis=2))


def test_file_object_and_path_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(FORMS["bytes"])
    for image in (io.BytesIO(FORMS["bytes"]), tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(as_pixels(image), NOISE)
    with (tmp_path / "a.png").open("rb") as file:
        np.testing.assert_array_equal(as_pixels(file), NOISE)


def test_palette_black_and_white_and_cmyk_are_converted_by_pillow() -> None:
    for mode in ("P", "1", "CMYK", "YCbCr", "HSV"):
        image = Image.fromarray(NOISE).convert(mode)
        np.testing.assert_array_equal(as_pixels(image), np.asarray(image.convert("RGB")))
    black = np.zeros((4, 5), bool)
    black[1, 2] = True
    np.testing.assert_array_equal(as_pixels(black)[:, :, 0], black * 255)


WRONG: dict[str, tuple[type, str, Any]] = {
    "none": (SettingError, "bad_value", None),
    "number": (SettingError, "bad_value", 3),
    "mapping": (SettingError, "bad_value", {"image": NOISE}),
    "lists of numbers": (SettingError, "bad_value", [[1, 2], [3, 4]]),
    "channels on both ends": (SettingError, "bad_value", NOISE[:3]),
    "two channels": (SettingError, "bad_value", NOISE[:, :, :2]),
    "batch": (SettingError, "bad_value", NOISE[None]),
    "empty": (SettingError, "bad_value", NOISE[:0]),
    "words": (SettingError, "bad_value", np.array([["a"]])),
    "complex": (SettingError, "bad_value", GRAY * 1j),
    "NaN": (ImageError, "not_finite_pixels", np.full((9, 9), np.nan)),
    "sparse tensor": (SettingError, "bad_value", torch.zeros(9, 9).to_sparse()),
    "tensor without values": (SettingError, "bad_value", torch.zeros(9, 9, device="meta")),
    "text file": (SettingError, "bad_value", io.StringIO("text")),
    "transparent array": (ImageError, "transparent_image", np.dstack([NOISE, GRAY])),
    "transparent PIL": (ImageError, "transparent_image", Image.new("RGBA", (9, 9))),
    "no bytes": (ImageError, "unreadable_image", b""),
    "other bytes": (ImageError, "unreadable_image", b"hello"),
    "cut bytes": (ImageError, "unreadable_image", FORMS["bytes"][:300]),
    "cut file in PIL": (ImageError, "unreadable_image", Image.open(io.BytesIO(FORMS["bytes"][:300]))),
    "missing file": (ImageError, "not_found", "nowhere.png"),
    "folder": (ImageError, "unreadable_file", "."),
    "URL": (ImageError, "not_local", "https://host.org/a.png"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_image_is_refused_with_a_code(name: str) -> None:
    kind, code, image = WRONG[name]
    with raises_code(kind, code):
        FrangiFilter()(image, "vessel")


def test_closed_files_and_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path)
    with path.open("rb") as file:
        pass
    with Image.open(path) as image:
        pass
    for closed in (file, image):
        with raises_code(SettingError, "bad_value"):
            FrangiFilter()(closed, "vessel")


def test_the_official_interface_refuses_wrong_arguments(small_predictor: OfficialPredictor) -> None:
    with raises_code(SettingError, "unknown_setting"):
        small_predictor.predict_forward(img=NOISE, text="<image>")
    for wrong in ({"video": 3}, {"text": 3}, {"image": 3}):
        with raises_code(SettingError, "bad_value"):
            small_predictor.predict_forward(**wrong)


def test_clips_refuse_wrong_arguments(small_predictor: OfficialPredictor) -> None:
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("bad_value", lambda: small_predictor.predict_video(3, "vessel")),
        ("bad_value", small_predictor.predict_video),
        ("no_prompt", lambda: small_predictor.predict_video([NOISE], [])),
        ("invalid_prompt", lambda: small_predictor.predict_video([NOISE], [3])),
        ("unknown_setting", lambda: small_predictor.predict_video([NOISE], "vessel", propagate="sam2")),
    ]
    for code, call in calls:
        with raises_code(SettingError, code):
            call()


def test_a_clip_with_one_prompt_as_text_has_one_prediction_for_each_frame(small_predictor: OfficialPredictor) -> None:
    frames = small_predictor.predict_video([NOISE, NOISE], "vessel")
    assert [[each.prompt for each in frame.predictions] for frame in frames] == [["vessel"], ["vessel"]]


def test_an_image_of_a_list_is_named_by_its_place() -> None:
    with raises_code(SettingError, "bad_value", "image2"):
        FrangiFilter()([NOISE, NOISE, NOISE[:3]], "vessel")
    with raises_code(ImageError, "unreadable_image", "image1"):
        FrangiFilter()([NOISE, b"hello"], "vessel")


CALLS: dict[str, tuple[str, Callable[[FrangiFilter], Any]]] = {
    "no prompt": ("bad_value", lambda p: p(NOISE)),
    "prompt None": ("invalid_prompt", lambda p: p(NOISE, None)),
    "blank prompt": ("invalid_prompt", lambda p: p(NOISE, " ")),
    "a number": ("invalid_prompt", lambda p: p(NOISE, 5)),
    "bytes": ("invalid_prompt", lambda p: p(NOISE, b"vessel")),
    "one of two is None": ("invalid_prompt", lambda p: p(NOISE, ["vessel", None])),
    "empty list": ("no_prompt", lambda p: p(NOISE, [])),
    "unknown name": ("unknown_setting", lambda p: p(NOISE, "vessel", threshhold=0.3)),
    "frame of an array": ("conflicting_settings", lambda p: p(NOISE, "vessel", frame=0)),
    "frame of text": ("bad_value", lambda p: p("a.png", "vessel", frame="0")),
    "negative frame": ("bad_value", lambda p: p("a.png", "vessel", frame=-1)),
    "predict without prompts": ("no_prompt", lambda p: p.predict([NOISE])),
    "predict of items with prompts": (
        "conflicting_settings",
        lambda p: p.predict([Item("a", NOISE[None], ())], "vessel"),
    ),
    "predict of one image": ("bad_value", lambda p: p.predict(NOISE, "vessel")),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls_are_refused_with_a_code(name: str) -> None:
    code, call = CALLS[name]
    with raises_code(SettingError, code):
        call(FrangiFilter())


def test_lists_give_products_and_single_values_do_not(small_predictor: OfficialPredictor) -> None:
    first, second, third = NOISE, NOISE[::-1].copy(), NOISE[:30]
    one = small_predictor(first, "vessel")
    assert [each.prompt for each in small_predictor(first, ["vessel", "wire"])] == ["vessel", "wire"]
    assert [each.size for each in small_predictor([first, third], "vessel")] == [(40, 60), (30, 60)]
    table = small_predictor((each for each in (first, second, third)), ("vessel", "wire"))
    assert [[each.prompt for each in row] for row in table] == 3 * [["vessel", "wire"]]
    assert [[each.id for each in row] for row in table] == [[f"image{i}"] * 2 for i in range(3)]
    np.testing.assert_allclose(table[0][0].logits, one.logits, atol=1e-3)
    np.testing.assert_allclose(table[1][1].logits, small_predictor(second, "wire").logits, atol=1e-3)
    assert small_predictor([], "vessel") == []
    assert [len(row) for row in small_predictor([first], ["vessel"])] == [1]


def test_predict_takes_images_with_prompts_and_items_without() -> None:
    predictor = FrangiFilter()
    assert [each.prompt for each in predictor.predict([NOISE, NOISE], "vessel")] == ["vessel", "vessel"]
    assert [len(row) for row in predictor.predict([NOISE], ["vessel", "wire"])] == [2]
    items = [Item("a", NOISE[None], ("vessel", "wire")), Item("b", NOISE[None], ("vessel",))]
    assert [each.id for each in predictor.predict(items)] == ["a", "a", "b"]
    assert predictor.predict([]) == []


def test_images_are_encoded_once_and_in_batches(
    small_predictor: OfficialPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, encode = [], small_predictor.encode
    monkeypatch.setattr(
        small_predictor, "encode", lambda sam, pixels: (encoded.append(len(pixels)), encode(sam, pixels))[1]
    )
    small_predictor([NOISE, NOISE, NOISE], ["vessel", "wire"])
    assert sum(encoded) == 3
    assert max(encoded) <= small_predictor.batch_size == 2


def test_frames_of_a_file_are_read_by_index(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = np.stack([GRAY[:, :, 0], GRAY[::-1, :, 0]], axis=2).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "scan.nii.gz")
    predictor = FrangiFilter()
    prediction = predictor(tmp_path / "scan.nii.gz", "vessel", frame=1)
    assert prediction.id == "scan__0001"
    content = (tmp_path / "scan.nii.gz").read_bytes()
    np.testing.assert_array_equal(predictor(content, "vessel", frame=1).mask, prediction.mask)
    with raises_code(ImageError, "multi_frame_file"):
        predictor(tmp_path / "scan.nii.gz", "vessel")
    with raises_code(ImageError, "frame_count_mismatch"):
        predictor(tmp_path / "scan.nii.gz", "vessel", frame=2)


def test_ids_are_stems_and_distinct_for_distinct_paths() -> None:
    assert picture_ids(["a/1.png"]) == ["1"]
    assert picture_ids([Path("a/1.png"), "b/2.nii.gz", NOISE]) == ["1", "2", "image2"]
    assert picture_ids(["/data/a/1.png", "/data/b/1.png"]) == ["data__a__1", "data__b__1"]
    assert picture_ids([NOISE]) == ["image"]


def test_settings_of_a_wrong_kind_are_refused() -> None:
    for name, value in (("threshold", "0.5"), ("batch_size", 2.5), ("batch_size", True), ("cleaning", 3)):
        with raises_code(SettingError, "bad_value", name):
            FrangiFilter(**{name: value})


OPENINGS: dict[str, tuple[str, Callable[[], Any]]] = {
    "no model": ("bad_value", vesalius.load_predictor),
    "model None": ("bad_value", lambda: vesalius.load_predictor(None)),
    "unknown name": ("unknown_setting", lambda: vesalius.load_predictor("frangi", treshold=0.3)),
    "answer": ("bad_value", lambda: vesalius.load_predictor("tiny", answer="yes")),
    "tiles": ("bad_value", lambda: vesalius.load_predictor("tiny", tiles=True)),
    "data": ("bad_value", lambda: vesalius.load_samples(None)),
    "sample": ("bad_value", lambda: vesalius.load_item("a.png")),
    "evaluated model": ("bad_value", lambda: vesalius.evaluate(3, [], "out")),
    "evaluated data": ("bad_value", lambda: vesalius.evaluate("frangi", [3], "out")),
    "dataset split": ("bad_value", lambda: vesalius.load_samples(".", split=3)),
    "dataset prompt": ("bad_value", lambda: vesalius.load_samples(".", prompt=3)),
    "dataset group": ("bad_value", lambda: vesalius.load_samples(".", group=3)),
    "gpus": ("bad_value", lambda: vesalius.load_predictor("tiny", gpus=2)),
    "quantization": ("bad_value", lambda: vesalius.load_predictor("tiny", quantization="3bit")),
    "no path": ("bad_value", vesalius.read_image),
    "path": ("bad_value", lambda: vesalius.read_image(NOISE)),
    "frame": ("bad_value", lambda: vesalius.read_image("a.png", frame="0")),
    "reader": ("bad_value", lambda: vesalius.read_image("a.png", reader=3)),
    "unknown name of read_image": ("unknown_setting", lambda: vesalius.read_image("a.png", farme=0)),
    "num_workers": ("bad_value", lambda: vesalius.evaluate("frangi", [], "out", num_workers="2")),
    "on_progress": ("bad_value", lambda: vesalius.evaluate("frangi", [], "out", on_progress=3)),
    "predictor by name": ("bad_value", lambda: vesalius.Predictor("tiny")),
    "predictor without a model": ("bad_value", vesalius.Predictor),
    "logits": ("wrong_shape", lambda: vesalius.LowRes([[[0.0]]])),
    "no logits": ("bad_value", vesalius.LowRes),
    "description": ("bad_value", vesalius.ModelDescription),
    "no item": ("bad_value", Item),
    "unknown name of an item": ("unknown_setting", lambda: Item("a", NOISE[None], promts=("vessel",))),
    "prompts None": ("wrong_shape", lambda: Item("a", NOISE[None], None)),
    "sample without a path": ("bad_value", lambda: vesalius.Sample("a")),
    "prediction without a prompt": ("bad_value", lambda: vesalius.Prediction("a")),
    "frames": ("wrong_shape", lambda: Item("a", NOISE, ("vessel",))),
    "prompts": ("wrong_shape", lambda: Item("a", NOISE[None], "vessel")),
}


@pytest.mark.parametrize("name", OPENINGS)
def test_wrong_arguments_of_public_functions_have_a_code(name: str) -> None:
    code, call = OPENINGS[name]
    with raises_code(SettingError, code):
        call()


def test_a_model_and_a_dataset_are_evaluated_by_name(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", 2, seed=0, size=64, num_workers=0)
    metrics = vesalius.evaluate("frangi", tmp_path / "data", tmp_path / "out", figures=False, num_workers=0)
    assert metrics["model"]["name"] == "frangi"
    assert metrics["data"]["n_samples"] == 2
