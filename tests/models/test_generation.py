"""Speculative decoding gives the tokens and hidden states of greedy decoding in fewer forward passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius.models.batch import Batch
from vesalius.models.checkpoint import OpenedModel, new_model, open_model
from vesalius.models.generation import Answer, DraftTable, generate_answer, verify_answer
from vesalius.types import Item

MOST = 9
PROMPTS = (("vessel", "catheter"), ("a rather longer phrase",))


def make_batch(opened: OpenedModel) -> Batch:
    rng = np.random.default_rng(0)
    items = [
        Item(str(i), rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8), prompts) for i, prompts in enumerate(PROMPTS)
    ]
    return opened.processor(items)


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    """A model with random weights and large embeddings, so that each question has an answer of changing tokens."""
    opened = new_model("tiny", seed=3)
    vlm, generator = opened.model.vlm, torch.Generator().manual_seed(2)
    for part in (vlm.get_input_embeddings(), vlm.lm_head):
        part.weight = torch.nn.Parameter(0.4 * torch.randn(part.weight.shape, generator=generator))
    opened.model.eval()
    return opened


@contextmanager
def passes(opened: OpenedModel) -> Iterator[list[int]]:
    """Number of tokens per row of each forward pass of the language model."""
    lengths: list[int] = []
    hook = opened.model.vlm.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    try:
        yield lengths
    finally:
        hook.remove()


def check_equal(found: Answer, written: Answer) -> None:
    assert found.ids == written.ids
    assert found.says_seg.tolist() == written.says_seg.tolist()
    assert found.seg.row.tolist() == written.seg.row.tolist()
    assert found.seg.image.tolist() == written.seg.image.tolist()
    torch.testing.assert_close(found.seg.embedding, written.seg.embedding, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("place", range(MOST + 1))
@pytest.mark.parametrize("row", range(3))
def test_a_wrong_draft_changes_no_token(opened: OpenedModel, row: int, place: int) -> None:
    batch, nothing_stops = make_batch(opened), -1
    model = opened.model
    ids = generate_answer(model, batch, nothing_stops, MOST).ids
    assert len({tuple(each) for each in ids}) == 3
    model.seg_id = ids[1][3]  # a token that is said counts as [SEG]
    written = generate_answer(model, batch, nothing_stops, MOST)
    assert written.says_seg.any()
    draft = [*ids[row][:place], *([1] if place < MOST else [])]
    found = verify_answer(model, batch, DraftTable(draft), nothing_stops, MOST)
    check_equal(found, written)
    # only the whole answer of that row was right
    assert found.origins == ["verified" if (each, place) == (row, MOST) else "generated" for each in range(3)]


@pytest.mark.parametrize("row", range(3))
def test_the_right_draft_is_verified_in_one_pass(opened: OpenedModel, row: int) -> None:
    batch, model = make_batch(opened), opened.model
    ids = generate_answer(model, batch, -1, MOST).ids
    stop = ids[row][5]
    model.seg_id = ids[row][2]
    written = generate_answer(model, batch, stop, MOST)
    with passes(opened) as lengths:
        found = verify_answer(model, batch, DraftTable(written.ids[row]), stop, MOST)
    check_equal(found, written)
    assert found.origins[row] == "verified"
    alone = replace(
        batch,
        input_ids=batch.input_ids[[row]],
        labels=batch.labels[[row]],
        attention_mask=batch.attention_mask[[row]],
        image_of_row=batch.image_of_row[[row]],
    )
    with passes(opened) as lengths:
        verify_answer(model, alone, DraftTable(written.ids[row]), stop, MOST)
    assert lengths == [batch.input_ids.shape[1] + len(written.ids[row])]


def test_half_precision_generates_again_if_two_logits_are_close(opened: OpenedModel) -> None:
    batch, model = make_batch(opened).to("cpu", torch.bfloat16), opened.model.to(torch.bfloat16)
    head = model.vlm.lm_head.weight
    kept = head.detach().clone()
    try:
        ids = generate_answer(model, batch, -1, 4).ids
        with torch.no_grad():
            head[(ids[0][0] + 1) % len(head)] = head[ids[0][0]]  # a twin: both have the same logit
        written = generate_answer(model, batch, -1, 4)
        with passes(opened) as lengths:
            found = verify_answer(model, batch, DraftTable([*written.ids[0], 7]), 7, 5)
        # once with the draft of 5 tokens behind the questions, once without it, then token by token
        image, drafted, again, asked, *rest = lengths
        assert (image, drafted) == (again, asked + 5)
        assert set(rest) == {1}
        assert found.origins == ["generated"] * 3
    finally:
        with torch.no_grad():
            head.copy_(kept)
        model.to(torch.float32)


def test_the_image_is_read_once_for_all_questions_about_it(opened: OpenedModel) -> None:
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    prompts = ("vessel", "a rather longer phrase", "wire", "x")
    together = opened.processor([Item("a", frames, prompts)])
    shapes: list[tuple[int, ...]] = []
    hook = opened.model.vlm.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    try:
        found = generate_answer(opened.model, together, -1, 3)
    finally:
        hook.remove()
    image_tokens = int((together.input_ids[0] == opened.processor.image_id).sum())
    assert shapes[0][0] == 1
    assert shapes[0][1] >= image_tokens
    assert shapes[1] == (4, together.input_ids.shape[1] - shapes[0][1])
    alone = [
        generate_answer(opened.model, opened.processor([Item("a", frames, (prompt,))]), -1, 3).ids[0]
        for prompt in prompts
    ]
    assert found.ids == alone


def test_the_most_frequent_answer_is_the_next_draft() -> None:
    drafts = DraftTable([1, 2, 9])
    assert drafts.best() == (1, 2, 9)
    drafts.update([[3, 9], [4, 4]], stop_id=9)  # the second was cut
    assert drafts.best() == (1, 2, 9)
    drafts.update([[3, 9]], stop_id=9)
    assert drafts.best() == (3, 9)


@pytest.mark.parametrize("family", ["internvl_qwen2", "internvl_internlm2", "qwen2_5_vl", "qwen3_vl"])
def test_every_family_verifies_its_greedy_answer(oracle: Path, family: str) -> None:
    opened = open_model(oracle / family)
    batch = make_batch(opened)
    ids = generate_answer(opened.model, batch, -1, MOST).ids
    for place in (0, 4, MOST):
        draft = [*ids[2][:place], 5]
        check_equal(
            verify_answer(opened.model, batch, DraftTable(draft), -1, MOST),
            generate_answer(opened.model, batch, -1, MOST),
        )
