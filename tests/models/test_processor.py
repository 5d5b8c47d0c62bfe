"""Items to a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vesalius.errors import SettingError
from vesalius.models.processor import NOT_LEARNED, Processor
from vesalius.models.specs import tiny
from vesalius.models.tokenizers import byte_tokenizer
from vesalius.types import Item

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "tiling.json"


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(tiny(), byte_tokenizer())


def item(*prompts: str, size: tuple[int, int] = (40, 60), masks: bool = True) -> Item:
    pixels = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    return Item("a", pixels, prompts, np.zeros((len(prompts), 1, *size), bool) if masks else None)


def test_only_the_answer_and_its_end_are_learned(processor: Processor) -> None:
    batch = processor([item("blood vessel")], answered=True)
    learned = batch.labels[0][batch.labels[0] != NOT_LEARNED].tolist()
    assert processor.tokenizer.decode(learned) == "Sure, [SEG].<|im_end|>"
    assert learned[-1] == processor.stop_id
    assert (batch.labels[0, -len(learned) :] == batch.input_ids[0, -len(learned) :]).all()


def test_question_stands_in_the_chat_markup_after_the_image(processor: Processor) -> None:
    batch = processor([item("blood vessel")])
    text = processor.tokenizer.decode(batch.input_ids[0])
    image = (
        "<img>"
        + "<IMG_CONTEXT>" * processor.spec.vlm["image_seq_length"] * batch.tiles_of_image[0]
        + "</img>"
    )
    question = "Please segment the blood vessel in this image."
    assert text == f"<|im_start|>user\n{image}\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert (batch.labels == NOT_LEARNED).all()


@given(st.text(min_size=1).filter(lambda text: text.strip() and "\x00" not in text))
def test_every_phrase_of_every_language_survives_the_byte_tokenizer(phrase: str) -> None:
    tokenizer = byte_tokenizer()
    marks = (
        "<|im_start|>",
        "<|im_end|>",
        "[SEG]",
        "<img>",
        "</img>",
        "<IMG_CONTEXT>",
        "<p>",
        "</p>",
        "<vp>",
        "</vp>",
    )
    if not any(mark in phrase for mark in marks):
        assert tokenizer.decode(tokenizer.encode(phrase)) == phrase


def test_rows_are_padded_on_the_left(processor: Processor) -> None:
    batch = processor([item("a"), item("a much longer phrase")])
    assert batch.attention_mask[0, 0] == 0
    assert batch.attention_mask[:, -1].all()
    assert batch.attention_mask[1].all()


def test_several_prompts_share_one_image(processor: Processor) -> None:
    batch = processor([item("a", "b"), item("c")])
    assert batch.image_of_row.tolist() == [0, 0, 1]
    assert len(batch.g_pixel_values) == 2
    assert batch.pixel_values.shape[0] == sum(batch.tiles_of_image)
    official = batch.as_mapping()
    assert official["pixel_values"].shape[0] == 2 * batch.tiles_of_image[0] + batch.tiles_of_image[1]
    assert official["frames_per_batch"] == [1, 1]
    assert [tuple(mask.shape) for mask in official["masks"]] == [(2, 40, 60), (1, 40, 60)]
    assert [mask.dtype for mask in official["masks"]] == [torch.uint8, torch.uint8]
    assert official["g_pixel_values"][0].shape == (3, 512, 512)


@pytest.mark.parametrize("prompt", ["", "  "])
def test_empty_prompt_is_refused(processor: Processor, prompt: str) -> None:
    with pytest.raises(SettingError, match="prompt is empty"):
        processor([item(prompt)])


def test_no_prompt_is_refused(processor: Processor) -> None:
    with pytest.raises(SettingError, match="nothing to ask"):
        processor([item()])


def test_question_longer_than_the_context_is_refused(processor: Processor) -> None:
    with pytest.raises(SettingError, match="longer than the model's context of 4096"):
        processor([item("word " * 1000)])


def test_training_draws_among_the_questions(processor: Processor) -> None:
    texts = {
        processor.tokenizer.decode(processor([item("x")], choice=[which]).input_ids[0]) for which in range(6)
    }
    assert len(texts) == len(processor.spec.prompt.questions)
