"""Video memory: `VideoSession` equals the official code, `Tracker` the mask propagation of transformers."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.codes import raises_code
from tests.models.numbers import close, random
from transformers import Sam2VideoInferenceSession, Sam2VideoModel

from vesalius.errors import CheckpointError, SettingError
from vesalius.masks import resize_bilinear
from vesalius.models.memory import NO_OBJECT, PROMPTED_FRAMES, FrameMasks, Tracker, VideoSession
from vesalius.models.sam2 import decode, encode_images, take_best

FAMILIES = [
    "internvl_internlm2",  # object scores above 0 in each frame: real pointers
    pytest.param("internvl_qwen2", marks=pytest.mark.slow),
    pytest.param("qwen2_5_vl", marks=pytest.mark.slow),
    pytest.param("qwen3_vl", marks=pytest.mark.slow),
]

# largest absolute difference that another float32 implementation may have; logits are up to 35
FEATURES, POINTERS, LOGITS, PROPAGATED = 1e-4, 1e-4, 1e-3, 2e-3
ROUNDED_MEMORY = 3e-4
"""Tolerance for bfloat16 memories; tighter, since rounding alone changes logits by 7e-4."""


@pytest.mark.parametrize("family", FAMILIES)
def test_video_equals_the_official_code(
    oracle: Path, official_sam: Callable[[str], Sam2VideoModel], square: Callable[[Path], torch.Tensor], family: str
) -> None:
    expected = np.load(oracle / family / "expected.npz")
    noted = json.loads((oracle / family / "expected.json").read_text())["video6"]["seg0"]
    sam = official_sam(family)
    session = VideoSession(sam, torch.from_numpy(expected["video6/seg_embeds"]))
    for t, path in enumerate(video_files(oracle)):
        with listening(sam) as heard:
            masks = session.segment(square(path))
        logits = LOGITS if t < PROMPTED_FRAMES else PROPAGATED
        check_frame(masks, expected, "video6/seg0", t, logits, POINTERS)
        close(masks.logits[0], expected["video6/seg0/lowres_best"][t], logits)
        close(heard["memory"][0, :, 2::8, 2::8], expected["video6/seg0/mem_sample"][t], logits)
        if "video6/seg0/pix_feat_with_mem_sample" in expected:  # not stored of the Qwen families
            seen = heard["decoded"][0, ::4, 2::8, 2::8]
            close(seen, expected["video6/seg0/pix_feat_with_mem_sample"][t], FEATURES)
        size = tuple(noted["mask_shape"][1:])
        full = resize_bilinear(resize_bilinear(masks.logits[0].numpy(), (1024, 1024)), size)
        close(full[::8, ::8], expected["video6/seg0/mask_logits_sample"][t], logits)
        check_mask(full, expected["video6/seg0/mask_packed"][t], noted["near_zero_pixels_1e3"][t])


@pytest.mark.parametrize("family", FAMILIES[:2])
def test_bfloat16_memories_equal_those_of_the_official_code(
    oracle: Path, official_sam: Callable[[str], Sam2VideoModel], square: Callable[[Path], torch.Tensor], family: str
) -> None:
    expected = np.load(oracle / family / "expected.npz")
    noted = json.loads((oracle / family / "expected.json").read_text())["video6"]["seg0"]
    session = VideoSession(
        official_sam(family), torch.from_numpy(expected["video6/seg_embeds"]), memory_dtype=torch.bfloat16
    )
    stored = "video6/membf16/seg0"
    for t, path in enumerate(video_files(oracle)):
        masks = session.segment(square(path))
        check_frame(masks, expected, stored, t, LOGITS if t < PROMPTED_FRAMES else ROUNDED_MEMORY, POINTERS)
    close(masks.logits[0], expected[f"{stored}/lowres_best_propagated"][0], ROUNDED_MEMORY)
    size = tuple(noted["mask_shape"][1:])
    full = resize_bilinear(resize_bilinear(masks.logits[0].numpy(), (1024, 1024)), size)
    check_mask(full, expected[f"{stored}/mask_packed"][-1], noted["near_zero_pixels_1e3"][-1])


def video_files(oracle: Path) -> list[Path]:
    return sorted((oracle / "inputs" / "video6").glob("*.png"))


def check_frame(masks: FrameMasks, expected: Any, stored: str, t: int, logits: float, pointers: float) -> None:
    close(masks.scores[0], expected[f"{stored}/ious"][t], logits)
    close(masks.object_scores[0], expected[f"{stored}/object_score_logits"][t], logits)
    close(masks.pointers[0], expected[f"{stored}/obj_ptr"][t], pointers)
    if f"{stored}/best_idx" in expected:
        assert masks.scores[0].argmax() == expected[f"{stored}/best_idx"][t]


def check_mask(logits: np.ndarray, packed: np.ndarray, near_zero: int) -> None:
    """At most as many pixels differ as have an official logit within 1e-3 of zero."""
    mask = np.unpackbits(packed, count=logits.size).reshape(logits.shape)
    assert ((logits > 0) != mask).sum() <= near_zero


@contextmanager
def listening(sam: Sam2VideoModel) -> Iterator[dict[str, torch.Tensor]]:
    """Collects, within the block, the `memory` of a frame with its `places`, and the features `decoded`."""
    heard: dict[str, torch.Tensor] = {}

    def hear_memory(module: object, args: object, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        heard["memory"], heard["places"] = output

    def hear_decoder(module: object, args: object, inputs: dict[str, torch.Tensor]) -> None:
        heard["decoded"] = inputs["image_embeddings"]

    hooks = (
        sam.memory_encoder.register_forward_hook(hear_memory),
        sam.mask_decoder.register_forward_pre_hook(hear_decoder, with_kwargs=True),
    )
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def phrases(count: int) -> torch.Tensor:
    """Prompt embeddings that are large enough to keep the objects different."""
    return 20 * random(count, 128, seed=1)


def frames(count: int) -> list[torch.Tensor]:
    return list(random(count, 1, 3, 128, 128))


def test_objects_together_equal_each_alone(small_sam: Sam2VideoModel) -> None:
    embeddings = phrases(3)
    together = VideoSession(small_sam, embeddings)
    alone = [VideoSession(small_sam, embeddings[i : i + 1]) for i in range(3)]
    for frame in frames(9):
        masks = together.segment(frame)
        assert masks.logits.shape == (3, 32, 32)
        for i, session in enumerate(alone):
            one = session.segment(frame)
            for name in ("logits", "scores", "object_scores", "pointers"):
                torch.testing.assert_close(getattr(masks, name)[i], getattr(one, name)[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(masks.logits[0], masks.logits[1], atol=1e-2)


def test_first_frames_are_decoded_from_the_phrase_alone(small_sam: Sam2VideoModel) -> None:
    embeddings = phrases(2)
    session = VideoSession(small_sam, embeddings, prompted_frames=3)
    with torch.no_grad():
        alone = [decode(small_sam, encode_images(small_sam, frame), embeddings[None]) for frame in frames(4)]
    expected = [take_best(decoded.candidates, decoded.scores)[0] for decoded in alone]
    found = [session.segment(frame).logits for frame in frames(4)]
    for t in range(3):
        torch.testing.assert_close(found[t], expected[t], atol=0, rtol=0)
    assert not torch.allclose(found[3], expected[3], atol=1e-2)


def test_a_long_video_attends_to_the_same_frames_as_transformers(small_sam: Sam2VideoModel) -> None:
    """Compares memories, their ages and pointers until both windows, of 6 and of 15 frames, have moved on."""
    session = VideoSession(small_sam, phrases(1))
    native = Sam2VideoInferenceSession(dtype=torch.float32)
    native.obj_id_to_idx(1)
    past: dict[str, dict[int, dict[str, torch.Tensor]]] = native.output_dict_per_obj[0]
    for t, frame in enumerate(frames(PROMPTED_FRAMES + 18)):
        with listening(small_sam) as heard, torch.no_grad():
            masks = session.segment(frame)
            vision = small_sam.get_image_features(frame, return_dict=True)
            expected = small_sam._prepare_memory_conditioned_features(
                native,
                frame_idx=t,
                obj_idx=0,
                is_initial_conditioning_frame=t < PROMPTED_FRAMES,
                current_vision_features=vision.fpn_hidden_states[-1],
                current_vision_positional_embeddings=vision.fpn_position_encoding[-1],
                num_total_frames=1000,
            )
        torch.testing.assert_close(heard["decoded"], expected, atol=1e-5, rtol=0)
        past["cond_frame_outputs" if t < PROMPTED_FRAMES else "non_cond_frame_outputs"][t] = {
            "maskmem_features": heard["memory"].flatten(2).permute(2, 0, 1),
            "maskmem_pos_enc": heard["places"].flatten(2).permute(2, 0, 1),
            "object_pointer": masks.pointers,
        }


def test_a_long_video_needs_no_more_memory_than_a_short_one(small_sam: Sam2VideoModel) -> None:
    session = VideoSession(small_sam, phrases(2))

    def held_values() -> int:
        kept = [held for held in vars(session).values() if isinstance(held, Iterable)]
        return sum(tensor.untyped_storage().nbytes() for each in kept for tensor in each)

    sizes = []
    for frame in frames(PROMPTED_FRAMES + 20):
        session.segment(frame)
        sizes.append(held_values())
    assert sizes[0] < sizes[PROMPTED_FRAMES] < sizes[PROMPTED_FRAMES + 14]
    assert len(set(sizes[PROMPTED_FRAMES + 14 :])) == 1


def test_each_part_is_called_once_a_frame_for_all_objects(small_sam: Sam2VideoModel) -> None:
    calls: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        calls[name] = 0

        def one_more(*_: object) -> None:
            calls[name] += 1

        return one_more

    for name in ("vision_encoder.backbone", "mask_decoder", "memory_encoder", "memory_attention"):
        small_sam.get_submodule(name).register_forward_hook(count(name))
    session = VideoSession(small_sam, phrases(4))
    for frame in frames(8):
        session.segment(frame)
    assert calls == {"vision_encoder.backbone": 8, "mask_decoder": 8, "memory_encoder": 8, "memory_attention": 3}


def test_the_autograd_graph_is_not_kept(small_sam: Sam2VideoModel) -> None:
    session = VideoSession(small_sam, phrases(1).requires_grad_())
    for frame in frames(7):
        masks = session.segment(frame)
    assert not masks.logits.requires_grad
    assert not masks.pointers.requires_grad


def test_a_video_in_half_precision_stays_near(small_sam: Sam2VideoModel) -> None:
    embeddings, clip = phrases(2), frames(8)
    full = VideoSession(small_sam, embeddings)
    expected = [full.segment(frame).logits for frame in clip]
    half = VideoSession(small_sam.to(torch.bfloat16), embeddings)
    found = [half.segment(frame.to(torch.bfloat16)).logits for frame in clip]
    assert found[-1].dtype == torch.bfloat16
    for one, other in zip(found, expected, strict=True):
        assert (one.float() - other).abs().mean() < 0.15 * other.std()


def propagate(
    sam: Sam2VideoModel,
    clip: Sequence[torch.Tensor],
    shown: dict[int, torch.Tensor],
    start: int,
    reverse: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[int, torch.Tensor]:
    """Frame -> logits (n, g, g) of transformers after masks bool (n, S, S) as prompts on some frames.

    transformers takes the pointer to a shown mask from the best of three tokens; SAM 2's own code, by which it was
    trained, from that of the single mask.
    """
    whole = sam._single_frame_forward

    def with_one_token(**given: Any) -> Any:
        return whole(**given, **({} if "multimask_output" in given else {"multimask_output": False}))

    monkeypatch.setattr(sam, "_single_frame_forward", with_one_token)
    session = Sam2VideoInferenceSession(video=torch.cat(list(clip)), dtype=torch.float32)
    with torch.inference_mode():
        for frame, masks in shown.items():
            for index, mask in enumerate(masks):
                session.add_mask_inputs(session.obj_id_to_idx(index), frame, mask[None, None].float())
            session.obj_with_new_inputs = [*range(len(masks))]
            sam(session, frame_idx=frame)
        found = sam.propagate_in_video_iterator(
            session, start_frame_idx=start, reverse=reverse, max_frame_num_to_track=len(clip)
        )
        logits = {output.frame_idx: output.pred_masks[:, 0] for output in found}
    monkeypatch.undo()
    return logits


def shown_masks(sam: Sam2VideoModel, masks: FrameMasks) -> torch.Tensor:
    """bool (n, S, S): the binary masks of a key frame that the memory gets."""
    square = (sam.config.image_size, sam.config.image_size)
    full = torch.nn.functional.interpolate(masks.logits[None], square, mode="bilinear", align_corners=False)
    return full[0] > 0


@pytest.mark.parametrize("family", ["internvl_internlm2", pytest.param("qwen3_vl", marks=pytest.mark.slow)])
def test_tracking_with_official_weights_equals_transformers(
    oracle: Path,
    official_sam: Callable[[str], Sam2VideoModel],
    square: Callable[[Path], torch.Tensor],
    family: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sam = official_sam(family)
    clip = [square(path) for path in video_files(oracle)[:3]]
    tracker = Tracker(sam, torch.from_numpy(np.load(oracle / family / "expected.npz")["video6/seg_embeds"]))
    shown = {0: shown_masks(sam, tracker.prompt(0, clip[0]))}
    expected = propagate(sam, clip, shown, 0, False, monkeypatch)
    for t in (1, 2):
        close(tracker.propagate(t, clip[t]).logits, expected[t].numpy(), LOGITS)


@pytest.mark.parametrize(("keys", "reverse"), [((0, 10, 25), False), ((24,), True), ((3, 24), True)])
def test_tracking_several_objects_through_a_long_clip_equals_transformers(
    small_sam: Sam2VideoModel, keys: tuple[int, ...], reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clip is so long that both windows, of 6 frames and of 15 pointers, move on."""
    clip, tracker = frames(26), Tracker(small_sam, phrases(2))
    shown = {key: shown_masks(small_sam, tracker.prompt(key, clip[key])) for key in keys}
    start = max(keys) if reverse else min(keys)
    if reverse:
        tracker.reverse()
    expected = propagate(small_sam, clip, shown, start, reverse, monkeypatch)
    others = [t for t in (range(start, -1, -1) if reverse else range(start, 26)) if t not in keys]
    for t in others:
        close(tracker.propagate(t, clip[t]).logits, expected[t].numpy(), LOGITS)
    assert len(others) > 15


def test_an_absent_object_has_no_mask_and_is_found_again(small_sam: Sam2VideoModel) -> None:
    tracker, clip = Tracker(small_sam, phrases(2)), frames(3)
    tracker.prompt(0, clip[0])
    head = small_sam.mask_decoder.pred_obj_score_head.proj_out
    with torch.no_grad():
        head.bias.sub_(1000)
    gone = tracker.propagate(1, clip[1])
    assert (gone.logits == NO_OBJECT).all()
    assert (gone.object_scores < 0).all()
    torch.testing.assert_close(gone.pointers, small_sam.no_object_pointer.expand(2, -1), atol=0, rtol=0)
    with torch.no_grad():
        head.bias.add_(1000)
    assert (tracker.propagate(2, clip[2]).logits > NO_OBJECT).all()


def test_a_tracker_needs_bounded_memory_and_encodes_each_frame_once(small_sam: Sam2VideoModel) -> None:
    encoded = []
    small_sam.vision_encoder.backbone.register_forward_hook(lambda *_: encoded.append(1))
    tracker, clip = Tracker(small_sam, phrases(2)), frames(40)

    def held_bytes() -> int:
        tensors = [each for pair in tracker._keys.values() for each in pair]
        tensors += [*tracker._memories.values(), *tracker._pointers.values()]
        return sum(each.untyped_storage().nbytes() for each in tensors)

    sizes = []
    for t, frame in enumerate(clip):
        if t % 10 == 0:
            tracker.prompt(t, frame)
            if t:
                tracker.forget(t - 10)
        else:
            tracker.propagate(t, frame)
        sizes.append(held_bytes())
    assert sizes[1] < sizes[5] < sizes[19]
    assert sizes[19] == sizes[29] == sizes[39]
    assert len(encoded) == 40


def test_reversing_a_tracker_drops_propagated_frames(small_sam: Sam2VideoModel) -> None:
    clip = frames(6)
    once, twice = Tracker(small_sam, phrases(1)), Tracker(small_sam, phrases(1))
    for tracker in (once, twice):
        tracker.prompt(2, clip[2])
    for t in (3, 4, 5):
        twice.propagate(t, clip[t])
    for tracker in (once, twice):
        tracker.reverse()
    torch.testing.assert_close(once.propagate(1, clip[1]).logits, twice.propagate(1, clip[1]).logits, atol=0, rtol=0)


def test_impossible_tracking_is_refused(small_sam: Sam2VideoModel) -> None:
    embeddings = phrases(1)
    with raises_code(SettingError, "no_prompt"):
        VideoSession(small_sam, embeddings[:0])
    with raises_code(SettingError, "bad_value", "got 0"):
        VideoSession(small_sam, embeddings, prompted_frames=0)
    with pytest.raises(ValueError, match=r"\(1, 3, 128, 128\); got \(2, 3, 128, 128\)"):
        VideoSession(small_sam, embeddings).segment(random(2, 3, 128, 128))
    with raises_code(SettingError, "no_prompt"):
        Tracker(small_sam, embeddings[:0])
    with pytest.raises(ValueError, match="no key frame"):
        Tracker(small_sam, embeddings).propagate(0, random(1, 3, 128, 128))
    small_sam.mem_dim = 32
    with raises_code(CheckpointError, "invalid_model_config", "32 channels", "expects 64"):
        VideoSession(small_sam, embeddings)
    small_sam.config.enable_occlusion_spatial_embedding = True
    with raises_code(CheckpointError, "invalid_model_config", "enable_occlusion_spatial_embedding = False", "got True"):
        VideoSession(small_sam, embeddings)
