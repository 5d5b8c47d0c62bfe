"""Clips: masks propagated by the official procedure and by SAM 2's own memory."""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.codes import raises_code
from transformers import Sam2VideoModel

from vesalius.data.clips import Clip
from vesalius.errors import CheckpointError, ImageError, SettingError
from vesalius.inference.official import OfficialPredictor
from vesalius.inference.tiles import TileSettings
from vesalius.inference.video import KEY_FRAMES, _Propagator, nearest_keys, read_prompts, spread
from vesalius.jobs.opening import load_predictor
from vesalius.models.batch import Batch
from vesalius.models.cards import ModelCard
from vesalius.models.checkpoint import OpenedModel
from vesalius.models.generation import Answer
from vesalius.segmenter import FramePredictions, Propagation

FRAMES = 7


@pytest.fixture
def predictor(small_predictor: OfficialPredictor) -> OfficialPredictor:
    return small_predictor


@pytest.fixture(scope="module")
def clip() -> list[np.ndarray]:
    """A dark disc that crosses a light field."""
    y, x = np.mgrid[:60, :80]
    frames = [np.full((60, 80, 3), 200, np.uint8) for _ in range(FRAMES)]
    for t, frame in enumerate(frames):
        frame[(y - 30) ** 2 + (x - 15 - 8 * t) ** 2 < 100] = 40
    return frames


def logits(frames: Sequence[FramePredictions], prompt: int = 0) -> dict[int, np.ndarray]:
    return {frame.index: frame.predictions[prompt].logits for frame in frames}


def close(found: dict[int, np.ndarray], expected: dict[int, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for index, each in expected.items():
        np.testing.assert_allclose(found[index], each, atol=1e-3)


def test_prompts_of_clips_are_compared_with_the_known_phrases(
    predictor: OfficialPredictor, clip: list[np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    card = predictor.model_card.changed(phrases=("disc", "field"))
    knowing = OfficialPredictor(OpenedModel(predictor.model, predictor.processor, card), answer="force")
    broken: list[Any] = [*clip[:2], Path("nowhere.png")]
    frames = list(knowing.predict_video(broken, ["Discs", "unicorn"], propagation="official"))
    for frame in frames:  # the last one has failed
        answers = [(each.prompt, each.phrase, each.unknown_phrase) for each in frame.predictions]
        assert answers == [("Discs", "disc", False), ("unicorn", "", True)]
    assert frames[-1].predictions[1].status == "failed"
    assert caplog.text.count("does not know") == 1
    known = list(knowing.predict_video(clip[:2], ["disc"], propagation="official"))
    close(logits(known), logits(frames[:2]))
    strict = OfficialPredictor(OpenedModel(predictor.model, predictor.processor, card), strict_phrases=True)
    with raises_code(SettingError, "unknown_phrase"):
        strict.predict_video([Path("nowhere.png")], ["unicorn"])


def test_official_propagation_equals_predict_forward(
    predictor: OfficialPredictor, clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [Image.fromarray(frame) for frame in clip[:5]]
    asked = []

    def read_instead(model: object, batch: Batch, *_: object) -> Answer:
        """Forced, because these random weights write no [SEG]."""
        asked.append(batch.input_ids)
        return predictor.answer_batch(read_prompts(predictor.processor, pictures, ["blood vessel"], answered=True))

    monkeypatch.setattr("vesalius.inference.official.generate_answer", read_instead)
    question = predictor.processor.spec.prompt.ask("blood vessel")
    expected = predictor.predict_forward(video=clip, text=f"<image>\n{question}")
    own = read_prompts(predictor.processor, pictures, ["blood vessel"])
    torch.testing.assert_close(asked, [own.input_ids], atol=0, rtol=0)
    found = list(predictor.predict_video(clip, ["blood vessel"], propagation="official"))
    assert [frame.index for frame in found] == list(range(FRAMES))
    (masks,) = expected["prediction_masks"]
    np.testing.assert_array_equal([frame.predictions[0].masks[0] for frame in found], masks)
    assert found[0].predictions[0].text + "<|im_end|>" == expected["prediction"]


def test_each_frame_is_encoded_once_and_comes_in_order(predictor: OfficialPredictor, clip: list[np.ndarray]) -> None:
    encoded = []
    hook = predictor.model.sam.vision_encoder.backbone.register_forward_hook(lambda *_: encoded.append(1))
    found = list(predictor.predict_video(clip, ["blood vessel", "catheter"], reprompt_every=2))
    hook.remove()
    assert [frame.index for frame in found] == list(range(FRAMES))
    assert len(encoded) == FRAMES
    assert [each.prompt for each in found[3].predictions] == ["blood vessel", "catheter"]
    assert {each.id for each in found[3].predictions} == {"frame__0003"}
    assert {each.status for frame in found for each in frame.predictions} == {"ok"}
    for frame in found:
        np.testing.assert_array_equal(frame.pixels, clip[frame.index])
        assert all(each.masks.shape == (1, 60, 80) for each in frame.predictions)


def test_prompts_together_equal_each_prompt_alone(predictor: OfficialPredictor, clip: list[np.ndarray]) -> None:
    prompts = ["blood vessel", "catheter"]
    together = list(predictor.predict_video(clip, prompts))
    for index, prompt in enumerate(prompts):
        close(logits(list(predictor.predict_video(clip, [prompt]))), logits(together, index))


def test_frames_before_the_first_key_frame_are_predicted_backwards(
    predictor: OfficialPredictor, clip: list[np.ndarray]
) -> None:
    order = [frame.index for frame in predictor.predict_video(clip, ["blood vessel"], key_frames=[3])]
    assert order == [2, 1, 0, 3, 4, 5, 6]
    embedding = torch.randn(1, 128, generator=torch.Generator().manual_seed(0))

    def propagate(frames: list[np.ndarray]) -> dict[int, np.ndarray]:
        propagated = _Propagator(predictor, Clip(frames), embedding, [3]).propagate()
        return {index: masks.logits.numpy() for index, _, masks in propagated if masks is not None}

    there, back = propagate(clip), propagate(clip[::-1])
    close({FRAMES - 1 - index: each for index, each in back.items()}, there)
    assert np.abs(there[2] - there[4]).max() > 1e-2


def test_a_broken_frame_fails_and_the_others_are_predicted(
    predictor: OfficialPredictor, clip: list[np.ndarray]
) -> None:
    broken: list[Any] = [*clip[:3], Path("lost.png"), clip[4], np.zeros((9, 9, 3), np.uint8), clip[6]]
    found = list(predictor.predict_video(broken, ["blood vessel"], key_frames=[0]))
    assert [frame.predictions[0].status for frame in found] == ["ok"] * 3 + ["failed", "ok", "failed", "ok"]
    assert found[3].pixels is None
    assert "lost.png" in found[3].predictions[0].error
    assert "has 9 x 9 pixels (h x w), in a clip of 60 x 80" in found[5].predictions[0].error
    whole = list(predictor.predict_video(clip, ["blood vessel"], key_frames=[0]))
    assert np.abs(found[4].predictions[0].logits - whole[4].predictions[0].logits).max() > 0


def test_a_broken_key_frame_is_replaced_by_the_next_frame(predictor: OfficialPredictor, clip: list[np.ndarray]) -> None:
    broken: list[Any] = [Path("lost.png"), *clip[1:]]
    found = list(predictor.predict_video(broken, ["blood vessel"], reprompt_every=6))
    assert [(frame.index, frame.predictions[0].status) for frame in found] == [
        (0, "failed"),
        *((t, "ok") for t in range(1, FRAMES)),
    ]
    with pytest.raises(ImageError, match=r"lost\.png"):
        list(predictor.predict_video([Path("lost.png")] * 2, ["blood vessel"]))


def test_all_frames_are_read_without_any_seg(
    predictor: OfficialPredictor, clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_batch = predictor.answer_batch

    def without_seg(batch: Any) -> Any:
        answer = answer_batch(batch)
        seg = replace(answer.seg, embedding=answer.seg.embedding[:0], row=answer.seg.row[:0])
        return replace(answer, seg=seg)

    monkeypatch.setattr(predictor, "answer_batch", without_seg)
    found = list(predictor.predict_video([*clip[:2], Path("lost.png")], ["blood vessel"]))
    assert [frame.predictions[0].status for frame in found] == ["no_seg", "no_seg", "failed"]
    assert not found[0].predictions[0].mask.any()


def test_frames_are_read_on_demand_and_not_kept(predictor: OfficialPredictor, clip: list[np.ndarray]) -> None:
    alive: list[weakref.ref[Image.Image]] = []

    class LazyClip(Sequence[Image.Image]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: Any) -> Any:
            picture = Image.fromarray(clip[index % FRAMES])
            alive.append(weakref.ref(picture))
            return picture

    most = 0
    for _ in predictor.predict_video(LazyClip(), ["blood vessel"], reprompt_every=10):
        most = max(most, sum(each() is not None for each in alive))
    assert len(alive) <= 20 + len(spread(20))
    assert most <= KEY_FRAMES + 1


@given(st.sets(st.integers(0, 60), min_size=1, max_size=20), st.integers(0, 60))
def test_key_frames_in_memory_are_those_of_sam2(keys: set[int], frame: int) -> None:
    shown: Any = dict.fromkeys(sorted(keys))
    expected, _ = Sam2VideoModel._select_closest_cond_frames(SimpleNamespace(), frame, shown, KEY_FRAMES)
    assert set(nearest_keys(sorted(keys), frame)) == set(expected)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 300])
def test_the_language_model_sees_frames_of_the_whole_clip(n: int) -> None:
    seen = spread(n)
    assert len(set(seen)) == len(seen) == min(n, 5)
    assert (seen[0], seen[-1]) == (0, n - 1)


@pytest.mark.parametrize(
    ("settings", "code", "field"),
    [
        ({"propagation": "frames"}, "bad_value", "propagation"),
        ({"propagation": "official", "reprompt_every": 3}, "conflicting_settings", "propagation"),
        ({"key_frames": [1], "reprompt_every": 3}, "conflicting_settings", "key_frames"),
        ({"key_frames": [FRAMES]}, "bad_value", "key_frames"),
        ({"reprompt_every": 0}, "bad_value", "reprompt_every"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    predictor: OfficialPredictor, clip: list[np.ndarray], settings: dict[str, Any], code: str, field: str
) -> None:
    with raises_code(SettingError, code) as caught:
        predictor.predict_video(clip, ["blood vessel"], **settings)
    assert caught.value.field == field


def test_clips_and_models_that_do_not_fit_are_refused(
    predictor: OfficialPredictor, clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, frames, prompts in (("no_prompt", clip, []), ("bad_value", [], ["blood vessel"])):
        with raises_code(SettingError, code):
            predictor.predict_video(frames, prompts)
    with raises_code(SettingError, "invalid_prompt", "[SEG]"):
        list(predictor.predict_video(clip, ["[SEG]"]))
    monkeypatch.setattr(predictor, "tiles", TileSettings())
    with raises_code(SettingError, "conflicting_settings", "--tiles"):
        predictor.predict_video(clip, ["blood vessel"])
    monkeypatch.undo()
    monkeypatch.setattr(predictor.model.sam, "mem_dim", 32)
    with raises_code(CheckpointError, "invalid_model_config", "32 channels"):
        list(predictor.predict_video(clip[:1], ["blood vessel"]))


def test_propagation_through_a_memory_with_random_weights_is_refused() -> None:
    tiny = load_predictor("tiny")
    for propagation in get_args(Propagation):
        with raises_code(SettingError, "not_supported", "--propagation frames"):
            tiny.check_video(8, propagation=propagation)
        with raises_code(SettingError, "not_supported"):
            tiny.predict_video([np.zeros((9, 9, 3), np.uint8)] * 2, ["blood vessel"], propagation=propagation)


@pytest.mark.parametrize(
    ("lineage", "random"),
    [
        ({"start": "random weights, seed 3", "data": "d"}, True),
        ({"start": "tiny", "start_lineage": {"start": "random weights, seed 0"}}, True),
        ({"start": "sa2va", "start_lineage": {"converted_from": "sa2va"}}, False),
        ({"start": "bundles/mine", "start_lineage": {}}, False),
        ({"converted_from": "ByteDance/Sa2VA-4B"}, False),
        ({}, False),
    ],
)
def test_memory_is_random_if_the_first_ancestor_was(lineage: dict[str, Any], random: bool) -> None:
    assert ModelCard(kind="textseg", lineage=lineage).has_random_memory == random
