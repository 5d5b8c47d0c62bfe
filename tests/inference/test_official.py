"""`predict_forward`, the official interface: accepted and refused arguments."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.codes import raises_code

from vesalius.errors import ImageError, SettingError
from vesalius.inference.official import OfficialPredictor
from vesalius.jobs.opening import load_predictor
from vesalius.models.checkpoint import open_model

TEXT = "<image>Please segment the blood vessel."


@pytest.fixture(scope="module")
def predictor() -> OfficialPredictor:
    return load_predictor("tiny")


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_script_for_the_official_model_runs(predictor: OfficialPredictor, picture: Image.Image) -> None:
    asked = {
        "image": picture,
        "video": None,
        "text": TEXT,
        "past_text": "",
        "mask_prompts": None,
        "tokenizer": object(),
        "processor": None,
    }
    answer = predictor.predict_forward(**asked)
    assert answer["prediction"].endswith("<|im_end|>")
    assert "[SEG]" in answer["prediction"]
    assert [(mask.shape, mask.dtype) for mask in answer["prediction_masks"]] == [((1, 60, 80), np.bool_)]
    again = predictor.predict_forward(picture, None, TEXT)
    np.testing.assert_array_equal(again["prediction_masks"][0], answer["prediction_masks"][0])


def test_path_array_and_picture_give_the_same(
    predictor: OfficialPredictor, picture: Image.Image, tmp_path: Path
) -> None:
    picture.save(tmp_path / "a.png")
    masks = [
        predictor.predict_forward(image=image, text=TEXT)["prediction_masks"][0]
        for image in (picture, np.asarray(picture), tmp_path / "a.png")
    ]
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


def test_text_alone_has_no_masks(predictor: OfficialPredictor) -> None:
    assert predictor.predict_forward(text="What is a vessel?")["prediction_masks"] == []


@pytest.mark.parametrize(
    ("asked", "code", "named"),
    [
        ({"text": "no image tag"}, "invalid_prompt", "<image>"),
        ({"text": TEXT + TEXT}, "invalid_prompt", "<image>"),
        ({"text": TEXT + "<IMG_CONTEXT>"}, "invalid_prompt", "<IMG_CONTEXT>"),
        ({"text": TEXT, "mask_prompts": [np.zeros((0, 60, 80))]}, "wrong_shape", "(60, 80)"),
        ({"text": TEXT, "mask_prompts": [np.ones((1, 40, 40))]}, "wrong_shape", "(40, 40)"),
        ({"text": TEXT, "mask_prompts": [np.zeros((1, 60, 80))]}, "wrong_shape", "region 1"),
    ],
)
def test_texts_and_images_that_do_not_fit_together_are_refused(
    predictor: OfficialPredictor, picture: Image.Image, asked: dict[str, object], code: str, named: str
) -> None:
    with raises_code(SettingError, code, named):
        predictor.predict_forward(image=picture, **asked)


def test_a_missing_frame_of_a_video_is_refused(predictor: OfficialPredictor, picture: Image.Image) -> None:
    with pytest.raises(ImageError, match=r"x\.png"):
        predictor.predict_forward(image=picture, text=TEXT, video=["x.png"])


def test_rotary_frequencies_stay_in_float32() -> None:
    model = open_model("tiny", dtype=torch.bfloat16).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    frequencies = {name: buffer.dtype for name, buffer in model.named_buffers() if "inv_freq" in name}
    assert frequencies
    assert set(frequencies.values()) == {torch.float32}
