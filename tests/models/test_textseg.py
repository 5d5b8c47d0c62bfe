"""`TextSegModel`: shared encodings, batching and gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from vesalius.models.batch import Batch
from vesalius.models.checkpoint import OpenedModel, new_model
from vesalius.models.generation import force_answer, generate_answer
from vesalius.models.sam2 import SegPrompts
from vesalius.types import Item


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    opened = new_model("tiny", seed=0)
    opened.model.eval()
    return opened


def make_batch(opened: OpenedModel, prompts: list[tuple[str, ...]], answered: bool = True) -> Batch:
    rng = np.random.default_rng(0)
    items = [
        Item(
            str(i),
            rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8),
            of_image,
            rng.random((len(of_image), 1, 64, 96)) > 0.5,
        )
        for i, of_image in enumerate(prompts)
    ]
    return opened.processor(items, answered=answered)


def count_calls(module: torch.nn.Module) -> list[int]:
    sizes: list[int] = []
    module.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len((args or list(kwargs.values()))[0])), with_kwargs=True
    )
    return sizes


def test_prompts_on_one_image_share_one_encoding_and_one_decoder_call(opened: OpenedModel) -> None:
    batch = make_batch(opened, [("vessel", "catheter", "wire")])
    encodings, decodings = (
        count_calls(opened.model.sam.vision_encoder.backbone),
        count_calls(opened.model.sam.mask_decoder),
    )
    tiles = count_calls(opened.model.vlm.model.vision_tower)
    with torch.no_grad():
        output = opened.model(batch)
    assert output.masks.logits.shape == (3, 128, 128)
    assert (encodings, decodings, tiles) == ([1], [1], [sum(batch.tiles_of_image)])


def test_batched_masks_equal_those_of_each_image_alone(opened: OpenedModel) -> None:
    prompts = [("vessel", "catheter"), ("a rather longer phrase",)]
    both = make_batch(opened, prompts)
    with torch.no_grad():
        together = opened.model(both).masks.logits
        second = replace(
            both,
            input_ids=both.input_ids[2:],
            labels=both.labels[2:],
            attention_mask=both.attention_mask[2:],
            image_of_row=torch.tensor([0]),
            pixel_values=both.pixel_values[both.tiles_of_image[0] :],
            g_pixel_values=both.g_pixel_values[1:],
            tiles_of_image=both.tiles_of_image[1:],
        )
        alone = opened.model(second).masks.logits
    torch.testing.assert_close(together[2:], alone, atol=1e-4, rtol=1e-4)


def test_padding_on_the_left_changes_nothing(opened: OpenedModel) -> None:
    batch = make_batch(opened, [("vessel",)])

    def padded(tensor: torch.Tensor, value: int) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (5, 0), value=value)

    wider = replace(
        batch,
        input_ids=padded(batch.input_ids, opened.processor.stop_id),
        labels=padded(batch.labels, -100),
        attention_mask=padded(batch.attention_mask, 0),
    )
    with torch.no_grad():
        plain, shifted = opened.model(batch), opened.model(wider)
    torch.testing.assert_close(plain.text_logits, shifted.text_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plain.masks.logits, shifted.masks.logits, atol=1e-4, rtol=1e-4)


def test_the_mask_of_highest_predicted_iou_is_kept(opened: OpenedModel) -> None:
    with torch.no_grad():
        masks = opened.model(make_batch(opened, [("vessel", "catheter")])).masks
    for i in range(2):
        best = int(masks.candidate_scores[i].argmax())
        torch.testing.assert_close(masks.logits[i], masks.candidates[i, best])
        assert masks.scores[i] == masks.candidate_scores[i].max()


def test_gradient_of_the_mask_reaches_every_part(opened: OpenedModel) -> None:
    model = opened.model
    model.zero_grad()
    model(make_batch(opened, [("vessel",)])).masks.logits.square().mean().backward()
    reached = {
        "decoder's high-resolution convolution": model.sam.mask_decoder.conv_s0.weight,
        "SAM encoder": model.sam.vision_encoder.backbone.patch_embed.projection.weight,
        "no-memory embedding": model.sam.no_memory_embedding,
        "projector": model.projector.linear_1.weight,
        "language model": model.vlm.model.language_model.layers[0].self_attn.q_proj.weight,
        "vision encoder": model.vlm.model.vision_tower.embeddings.patch_embeddings.projection.weight,
    }
    without = [name for name, parameter in reached.items() if parameter.grad is None or not parameter.grad.any()]
    model.zero_grad()
    assert without == []


def test_prompt_embedding_decides_the_mask(opened: OpenedModel) -> None:
    batch = make_batch(opened, [("vessel",)])
    embeddings = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    seg = SegPrompts(embeddings, torch.tensor([0, 0]), torch.tensor([0, 0]))
    with torch.no_grad():
        logits = opened.model.decode(batch.g_pixel_values, seg).logits
    assert not torch.allclose(logits[0], logits[1])


def test_no_seg_decodes_to_no_mask_and_encodes_nothing(opened: OpenedModel) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    encodings = count_calls(opened.model.sam.vision_encoder.backbone)
    masks = opened.model.decode([], SegPrompts(torch.zeros(0, 128), nothing, nothing))
    assert masks.logits.shape == (0, 128, 128)
    assert masks.scores.shape == (0,)
    assert encodings == []


def test_a_forced_answer_equals_the_training_pass(opened: OpenedModel) -> None:
    batch = make_batch(opened, [("vessel", "catheter"), ("wire",)])
    answer = force_answer(opened.model, batch)
    with torch.no_grad():
        output = opened.model(batch)
        decoded = opened.model.decode(batch.g_pixel_values, answer.seg)
    torch.testing.assert_close(decoded.logits, output.masks.logits)
    assert answer.seg.image.tolist() == [0, 0, 1]
    assert [opened.processor.text(ids) for ids in answer.ids] == ["Sure, [SEG]."] * 3


@contextmanager
def speaking(opened: OpenedModel, script: list[list[int]]) -> Iterator[None]:
    """Makes the language model generate a fixed script, one token list for each row, within the block."""
    said = 0

    def follow(module: torch.nn.Module, args: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        nonlocal said
        chosen = torch.tensor([tokens[min(said, len(tokens) - 1)] for tokens in script])
        said += 1
        return torch.nn.functional.one_hot(chosen, logits.shape[-1]).to(logits.dtype)

    hook = opened.model.vlm.lm_head.register_forward_hook(follow)
    try:
        yield
    finally:
        hook.remove()


def test_generation_collects_each_seg_where_it_is_the_input(opened: OpenedModel) -> None:
    model, processor = opened.model, opened.processor
    answered = make_batch(opened, [("vessel",), ("wire",)])
    script = [row[row != -100].tolist() for row in answered.labels]
    questions = make_batch(opened, [("vessel",), ("wire",)], answered=False)
    with speaking(opened, script):
        generated = generate_answer(model, questions, processor.stop_id, 20)
    assert generated.ids == script
    given = force_answer(model, answered)
    torch.testing.assert_close(generated.seg.embedding, given.seg.embedding, atol=1e-4, rtol=1e-4)
    assert generated.says_seg.tolist() == [True, True]


def test_answers_may_have_no_one_or_two_seg(opened: OpenedModel) -> None:
    stop, seg = opened.processor.stop_id, opened.processor.seg_id
    batch = make_batch(opened, [("vessel",), ("wire",), ("none",)], answered=False)
    with speaking(opened, [[seg, stop], [seg, 65, seg, stop], [66, stop]]):
        answer = generate_answer(opened.model, batch, stop, 20)
    assert answer.ids == [[seg, stop], [seg, 65, seg, stop], [66, stop]]
    assert answer.seg.row.tolist() == [0, 1, 1]
    assert answer.says_seg.tolist() == [True, True, False]


def test_generation_stops_at_the_limit(opened: OpenedModel) -> None:
    batch = make_batch(opened, [("vessel",)], answered=False)
    with speaking(opened, [[70]]):
        answer = generate_answer(opened.model, batch, opened.processor.stop_id, 7)
    assert answer.ids == [[70] * 7]
    assert answer.seg.embedding.shape == (0, 128)
