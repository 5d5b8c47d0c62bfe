"""Training batches of clips and of conversations with several turns, against official and hand-computed numbers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vesalius.models.checkpoint import OpenedModel, new_model, open_model
from vesalius.models.families.table import family_of
from vesalius.models.sam2 import SegPrompts
from vesalius.types import Item


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    return new_model("tiny", seed=0)


def test_turns_have_the_official_tokens_and_labels(oracle: Path) -> None:
    processor = open_model(oracle / "internvl_qwen2").processor
    stored = np.load(oracle / "internvl_qwen2/train/train_expected.npz")
    turns = [
        ("Can you segment the artery in this image?", "It is [SEG]."),
        ("Where is the vein in this picture? Please respond with a segmentation mask.", "Sure, it is [SEG]."),
    ]
    picture = Image.open(oracle / "inputs/odd_517x389.png").convert("RGB")
    ids, labels = processor.encode(turns, family_of(processor.spec.family).read_image(picture, processor.spec))
    kept = stored["attention_mask"][1].astype(bool)
    # the official code puts one more line break behind the end, which nothing reads
    assert ids == stored["input_ids"][1][kept][:-1].tolist()
    assert labels == stored["labels"][1][kept][:-1].tolist()


@pytest.mark.parametrize("family", ["internvl_qwen2", "internvl_internlm2"])
def test_turns_are_the_tokens_of_their_text(oracle: Path, family: str) -> None:
    """Tokens of single turns equal those of the whole conversation."""
    processor = open_model(oracle / family).processor
    turns = [("What is this?", "An angiogram."), ("Of what?", "The heart.")]
    picture = Image.open(oracle / "inputs/square_400.png").convert("RGB")
    pixels = family_of(processor.spec.family).read_image(picture, processor.spec)
    ids, _ = processor.encode(turns, pixels)
    image = processor.image_text(pixels)
    template = processor.spec.prompt
    past = template.before_answer(turns[0][0], image) + turns[0][1] + template.stop + "\n"
    assert ids == processor.tokenizer.encode(past + template.mark_up(turns[1][0]) + turns[1][1] + template.stop)


def video() -> Item:
    frames = np.random.default_rng(1).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    return Item("clip", frames, ("vessel", "wire"), np.zeros((2, 2, 40, 60), bool))


def test_one_seg_is_decoded_on_every_frame_of_its_clip(opened: OpenedModel) -> None:
    model, processor, clip = opened.model, opened.processor, video()
    still = Item("still", clip.frames[:1] // 2, ("vessel",), np.zeros((1, 1, 40, 60), bool))
    talk = Item("talk", clip.frames[1:], (), turns=(("What is it?", "A heart."),))
    batch = processor.collate([still, clip, talk], [0, 0, 0])
    heard = []
    handle = model.projector.register_forward_hook(lambda module, given, made: heard.append(made.detach()))
    maps = model(batch).masks.logits
    handle.remove()
    (embedding,) = heard
    assert len(embedding) == 3  # one a phrase
    assert len(maps) == sum(map(len, batch.masks)) == 1 + 2 * 2
    # the phrases of each frame, and where their maps are to be: both frames of the first come before the second
    for frame, segs, places in [(0, [0], [0]), (1, [1, 2], [1, 3]), (2, [1, 2], [2, 4])]:
        prompt = SegPrompts(embedding[segs], torch.tensor(segs), torch.full((len(segs),), frame))
        with torch.no_grad():
            by_hand = model.decode(batch.g_pixel_values, prompt).logits
        torch.testing.assert_close(maps[places].detach(), by_hand, atol=1e-4, rtol=1e-4)
    last = model.projector.linear_2.bias
    of_each = [torch.autograd.grad(maps[place].sum(), last, retain_graph=True)[0] for place in (1, 2)]
    assert all(bool(gradient.any()) for gradient in of_each)  # every frame teaches the [SEG]


def test_a_batch_of_conversations_has_no_masks(opened: OpenedModel) -> None:
    clip = video()
    talk = Item("talk", clip.frames[:1], (), turns=(("What is it?", "A heart."),))
    nothing = Item("none", clip.frames[:1], ("wire",), np.zeros((1, 1, 40, 60), bool), absent=frozenset({0}))
    output = opened.model(opened.processor.collate([talk, nothing], [0]))
    assert output.masks.logits.shape[0] == 0
    assert len(output.text_labels) > 0


@pytest.mark.slow
def test_first_frames_of_a_video_are_decoded_as_the_official_code_does(oracle: Path) -> None:
    """The official code prompts the first five frames with [SEG] without memory, as in training."""
    opened = open_model(oracle / "internvl_qwen2")
    expected = np.load(oracle / "internvl_qwen2/expected.npz")
    noted = json.loads((oracle / "internvl_qwen2/expected.json").read_text())["video6"]
    paths = sorted((oracle / "inputs/video6").iterdir())[:5]
    frames = np.stack([np.array(Image.open(path).convert("RGB")) for path in paths])
    masks = np.zeros((1, *frames.shape[:3]), bool)
    batch = opened.processor.collate([Item("video6", frames, ("blood vessel",), masks)], [0])
    # the stored words are others than the template's
    answer = expected["video6/answer_ids"].tolist()
    ids = torch.tensor([[*expected["video6/prompt_ids"].reshape(-1).tolist(), *answer]])
    labels = ids.clone()
    labels[0, : -len(answer)] = -100
    batch = replace(batch, input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids))
    with torch.no_grad():
        maps = opened.model(batch).masks.logits
    assert noted["forced_prediction"] == opened.processor.tokenizer.decode(answer)
    difference = maps - torch.from_numpy(expected["video6/seg0/lowres_best"][:5])
    assert difference.abs().max() <= 1e-3
