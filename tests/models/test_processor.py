"""`Processor`: batches of items."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.codes import raises_code

from vesalius.errors import SettingError
from vesalius.models.batch import IGNORE_INDEX, Batch
from vesalius.models.families.tokenizers import byte_tokenizer
from vesalius.models.presets import find_spec
from vesalius.models.processor import Processor
from vesalius.models.prompts import PromptTemplate
from vesalius.types import Item

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "tiling.json"


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(find_spec("tiny"), byte_tokenizer())


def item(*prompts: str, size: tuple[int, int] = (40, 60), masks: bool = True) -> Item:
    pixels = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    return Item("a", pixels, prompts, np.zeros((len(prompts), 1, *size), bool) if masks else None)


def test_only_the_answer_and_its_end_are_learned(processor: Processor) -> None:
    batch = processor([item("blood vessel")], answered=True)
    learned = batch.labels[0][batch.labels[0] != IGNORE_INDEX].tolist()
    assert processor.tokenizer.decode(learned) == "Sure, [SEG].<|im_end|>"
    assert learned[-1] == processor.stop_id
    assert (batch.labels[0, -len(learned) :] == batch.input_ids[0, -len(learned) :]).all()


def test_question_stands_in_the_chat_markup_after_the_image(processor: Processor) -> None:
    batch = processor([item("blood vessel")])
    text = processor.tokenizer.decode(batch.input_ids[0])
    image = "<img>" + "<IMG_CONTEXT>" * processor.spec.vlm["image_seq_length"] * batch.tiles_of_image[0] + "</img>"
    question = "Please segment the blood vessel in this image."
    assert text == f"<|im_start|>user\n{image}\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert (batch.labels == IGNORE_INDEX).all()


@given(st.text(min_size=1).filter(lambda text: text.strip() and "\x00" not in text))
def test_every_phrase_of_every_language_survives_the_byte_tokenizer(phrase: str) -> None:
    tokenizer = byte_tokenizer()
    marks = ("<|im_start|>", "<|im_end|>", "[SEG]", "<img>", "</img>", "<IMG_CONTEXT>", "<p>", "</p>", "<vp>", "</vp>")
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
    with raises_code(SettingError, "invalid_prompt"):
        processor([item(prompt)])


def test_no_prompt_is_refused(processor: Processor) -> None:
    with raises_code(SettingError, "no_prompt"):
        processor([item()])


def test_question_longer_than_the_context_is_refused(processor: Processor) -> None:
    with raises_code(SettingError, "context_too_long", "4096"):
        processor([item("word " * 1000)])


def test_training_draws_among_the_questions(processor: Processor) -> None:
    texts = {processor.tokenizer.decode(processor.collate([item("x")], [which]).input_ids[0]) for which in range(6)}
    assert len(texts) == len(processor.spec.prompt.questions)


def clip(frames: int, *prompts: str) -> Item:
    pixels = np.random.default_rng(0).integers(0, 256, (frames, 40, 60, 3), dtype=np.uint8)
    masks = np.zeros((len(prompts), frames, 40, 60), bool)
    for place in range(len(prompts)):
        for frame in range(frames):
            masks[place, frame, place, frame] = True
    return Item("clip", pixels, prompts, masks)


def learned_text(processor: Processor, batch: Batch, row: int) -> str:
    return processor.tokenizer.decode(batch.labels[row][batch.labels[row] != IGNORE_INDEX].tolist())


def test_collating_an_image_uses_the_drawn_template(processor: Processor) -> None:
    items = [item("a", "b"), item("c")]
    taught, asked = processor.collate(items, [0, 0, 0]), processor(items, answered=True)
    for name in ("input_ids", "labels", "attention_mask", "pixel_values", "image_of_row"):
        assert torch.equal(getattr(taught, name), getattr(asked, name)), name
    assert [mask.shape for mask in taught.masks] == [mask.shape for mask in asked.masks]
    assert taught.draws == (0, 0, 0)
    with pytest.raises(ValueError, match=r"\(3\), got 2"):
        processor.collate(items, [0, 0])


def test_absent_phrase_is_answered_with_words_and_has_no_mask(processor: Processor) -> None:
    one = replace(item("vessel", "catheter"), absent=frozenset({1}))
    batch = processor.collate([one], [0, 0])
    assert learned_text(processor, batch, 0) == "Sure, [SEG].<|im_end|>"
    assert learned_text(processor, batch, 1) == "There is no catheter in this image.<|im_end|>"
    assert [tuple(mask.shape) for mask in batch.masks] == [(1, 40, 60)]


def test_every_denial_follows_every_question(processor: Processor) -> None:
    one = replace(item("x"), absent=frozenset({0}))
    texts = {processor.tokenizer.decode(processor.collate([one], [which]).input_ids[0]) for which in range(9)}
    template = processor.spec.prompt
    assert len(texts) == len(template.questions) * len(template.absent_answers) == 9


def test_absent_phrase_with_a_mask_is_refused() -> None:
    masks = np.ones((1, 1, 40, 60), bool)
    with pytest.raises(ValueError, match="'x' is marked absent but has a mask"):
        replace(item("x"), masks=masks, absent=frozenset({0}))


def test_only_the_answers_of_a_conversation_are_learned(processor: Processor) -> None:
    talk = replace(item(masks=False), turns=(("What is this?", "An angiogram."), ("Of what?", "Of the heart.")))
    batch = processor.collate([talk], [])
    assert learned_text(processor, batch, 0) == "An angiogram.<|im_end|>Of the heart.<|im_end|>"
    text = processor.tokenizer.decode(batch.input_ids[0])
    assert text.partition("</img>\n")[2] == (
        "What is this?<|im_end|>\n<|im_start|>assistant\nAn angiogram.<|im_end|>\n"
        "<|im_start|>user\nOf what?<|im_end|>\n<|im_start|>assistant\nOf the heart.<|im_end|>"
    )
    assert [len(mask) for mask in batch.masks] == [0]


def test_masks_of_a_clip_come_phrase_by_phrase(processor: Processor) -> None:
    batch = processor.collate([item("a"), clip(3, "b", "c")], [0, 0, 0])
    assert batch.frames_per_batch == [1, 3]
    assert len(batch.g_pixel_values) == 4
    assert batch.tiles_of_image[1] == 3
    assert batch.masks[1].flatten(1).argmax(1).tolist() == [0, 1, 2, 60, 61, 62]
    text = processor.tokenizer.decode(batch.input_ids[1])
    assert text.count("</img>\n<img>") == 2


def test_a_clip_is_refused_where_an_image_is_needed(processor: Processor) -> None:
    with raises_code(SettingError, "wrong_shape", "2 frames"):
        processor([clip(2, "a")])


@pytest.mark.parametrize(
    ("turns", "code", "named"),
    [
        ((("a [SEG]?", "b"),), "invalid_prompt", "[SEG]"),
        ((("a?", "b <|im_end|>"),), "invalid_prompt", "<|im_end|>"),
        ((("a?", "word " * 1000),), "context_too_long", "4096"),
    ],
)
def test_a_conversation_with_control_tokens_or_too_long_is_refused(
    processor: Processor, turns: tuple[tuple[str, str], ...], code: str, named: str
) -> None:
    processor.check_turns((("What is this?", "An angiogram."),), (40, 60))
    with raises_code(SettingError, code, named):
        processor.check_turns(turns, (40, 60))


def test_a_template_without_absent_answers_gets_the_default_ones() -> None:
    old = {"chat": "qwen_chat", "questions": ("Where is {phrase}?",), "answers": ("[SEG]",)}
    assert PromptTemplate(**old).deny("wire") == "There is no wire in this image."
    with pytest.raises(ValueError, match=r"an absent answer must contain {phrase} once, and no \[SEG\]"):
        PromptTemplate(absent_answers=("No {phrase} [SEG].",))
