"""`Processor`: converts items to a `Batch`, exactly as the official code does, for training and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from vesalius.errors import SettingError
from vesalius.masks import Size
from vesalius.models.batch import IGNORE_INDEX, Batch
from vesalius.models.families.table import family_of
from vesalius.models.pixels import Pixels, normalize, resize_bicubic
from vesalius.models.specs import SEG, ModelSpec
from vesalius.types import Item, Turn


@dataclass(frozen=True)
class PixelInputs:
    """The preprocessed pixels of one image, the slow part of a `Batch`; they can be prepared ahead, without a model."""

    pixels: Pixels
    square: torch.Tensor
    """float32 (3, S, S): input of the segmenter."""


def _mask_rows(item: Item) -> torch.Tensor:
    """Masks of the item's n prompts that are answered with [SEG], f frames each, as uint8 (n * f, h, w)."""
    if item.masks is None:
        return torch.zeros(0, *item.size, dtype=torch.uint8)
    answered = [index for index in range(len(item.prompts)) if index not in item.absent]
    return torch.from_numpy(item.masks[answered].reshape(-1, *item.size).astype(np.uint8))


class Processor:
    """Converts items to a `Batch`; immutable."""

    def __init__(self, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> None:
        self.spec = spec
        self.family = family_of(spec.family)
        self.tokenizer = tokenizer
        self.seg_id = self._id_of(SEG)
        self.image_id = self._id_of(self.family.image_marks[1])
        self.stop_id = self._id_of(spec.prompt.stop)
        self._pixels_of_size: dict[Size, Pixels] = {}

    def _id_of(self, token: str) -> int:
        ids = self.tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1:
            raise SettingError(
                f"the tokenizer splits {token}, which must be one token, into {len(ids)}", code="no_tokenizer"
            )
        return ids[0]

    def __call__(
        self, items: Sequence[Item], *, answered: bool = False, inputs: Sequence[PixelInputs] | None = None
    ) -> Batch:
        """One row for each (item, prompt), in order.

        `answered` appends the answer of the template, with its tokens as labels; otherwise rows end at the start of the
        answer. `inputs` are the results of `preprocess` for the items. SettingError without items or prompts, or for an
        empty prompt.
        """
        questions = [(i, prompt) for i, item in enumerate(items) for prompt in item.prompts]
        for _, prompt in questions:
            self.check_phrase(prompt)
        inputs = [self.preprocess(item) for item in items] if inputs is None else inputs
        pixels = [each.pixels for each in inputs]
        template = self.spec.prompt
        answer = template.answer() if answered else None
        rows = [self.encode([(template.ask(prompt), answer)], pixels[i]) for i, prompt in questions]
        return self.make_batch(
            [(i, *row) for (i, _), row in zip(questions, rows, strict=True)],
            pixels,
            [[each.square] for each in inputs],
            [item.size for item in items],
            [_mask_rows(item) for item in items if item.masks is not None],
        )

    def collate(self, items: Sequence[Item], draws: Sequence[int]) -> Batch:
        """A training batch: one row for each (item, prompt), in order, and one for an item's `turns`; answers are labels.

        `draws` has one random integer for each (item, prompt), which selects the question and answer templates. A phrase
        in `absent` is answered without [SEG] and has no masks. The language model sees all frames of a clip. Errors as
        in `__call__`.
        """
        if len(draws) != (n_prompts := sum(len(item.prompts) for item in items)):
            raise ValueError(f"expected one random draw per prompt ({n_prompts}), got {len(draws)}")
        pixels, squares, rows = [], [], []
        template, left = self.spec.prompt, iter(draws)
        for i, item in enumerate(items):
            frames = [Image.fromarray(frame) for frame in item.frames]
            pixels.append(
                self.family.read_image(frames[0], self.spec)
                if len(frames) == 1
                else self.family.read_frames(frames, self.spec)
            )
            squares.append([self.for_segmenter(frame) for frame in frames])
            for index, prompt in enumerate(item.prompts):
                self.check_phrase(prompt)
                which = next(left)
                absent = index in item.absent
                answer = template.deny(prompt, which) if absent else template.answer(which)
                rows.append((i, *self.encode([(template.ask(prompt, which), answer)], pixels[i])))
            if item.turns:
                rows.append((i, *self.encode(item.turns, pixels[i])))
        masks = [_mask_rows(item) for item in items]
        batch = self.make_batch(rows, pixels, squares, [item.size for item in items], masks)
        return replace(batch, draws=tuple(draws))

    def make_batch(
        self,
        rows: Sequence[tuple[int, list[int], list[int]]],
        pixels: Sequence[Pixels],
        squares: Sequence[list[torch.Tensor]],
        sizes: list[Size],
        masks: list[torch.Tensor] | None = None,
    ) -> Batch:
        """A batch of `rows` (image index, tokens, labels); `pixels`, `squares` (SAM 2's frames) and `sizes` are per image."""
        if not rows:
            raise SettingError("there is nothing to segment; give at least one image and one prompt", code="no_prompt")
        ids, labels, attention = self.pad([(ids, labels) for _, ids, labels in rows])
        return Batch(
            input_ids=ids,
            attention_mask=attention,
            labels=labels,
            pixel_values=torch.cat([each.values for each in pixels]) if pixels else torch.zeros(0),
            image_grid_thw=torch.cat([torch.zeros(0, 3, dtype=torch.int64), *(each.grid for each in pixels)]),
            g_pixel_values=[square for frames in squares for square in frames],
            masks=masks or [],
            image_of_row=torch.tensor([i for i, _, _ in rows]),
            tiles_of_image=[each.parts for each in pixels],
            frames_per_batch=[len(frames) for frames in squares],
            sizes=sizes,
        )

    def preprocess(self, item: Item) -> PixelInputs:
        """The preprocessed image of an item; SettingError if its size does not suit the vision-language model."""
        if len(item.frames) > 1:
            message = f"{item.id}: is a clip of {len(item.frames)} frames; give its frames one by one, or predict_video"
            raise SettingError(message, code="wrong_shape", field="frames")
        frame = Image.fromarray(item.frames[0])
        return PixelInputs(self.family.read_image(frame, self.spec), self.for_segmenter(frame))

    def for_segmenter(self, frame: Image.Image) -> torch.Tensor:
        """A frame resized and normalized for SAM 2, float32 (3, S, S); the aspect ratio is not kept."""
        return normalize(resize_bicubic(frame, (self.spec.sam_size, self.spec.sam_size)))

    def check_phrase(self, phrase: str) -> None:
        """Raise SettingError for a phrase that is empty, not valid text, or contains a control token."""
        try:
            phrase.encode()
        except UnicodeEncodeError as error:
            raise SettingError(
                f"the prompt {phrase!r} is not valid text", code="invalid_prompt", field="prompt"
            ) from error
        self.spec.prompt.ask(phrase)
        self._check_control_tokens(f"the prompt {phrase!r}", phrase)

    def check_turns(self, turns: Sequence[Turn], size: Size) -> None:
        """Raise SettingError if a conversation contains a control token or, with an image of `size`, exceeds the context."""
        for text in (text for turn in turns for text in turn):
            self._check_control_tokens(repr(text), text)
        if size not in self._pixels_of_size:  # the number of image tokens depends on the size alone
            pixels = self.family.read_image(Image.new("RGB", size[::-1]), self.spec)
            self._pixels_of_size[size] = replace(pixels, values=pixels.values.new_zeros(0))
        self.pad([self.encode(turns, self._pixels_of_size[size])])

    def _check_control_tokens(self, name: str, text: str) -> None:
        if token := next((token for token in self.tokenizer.get_added_vocab() if token in text), None):
            raise SettingError(
                f"{name} contains the control token {token}; remove it", code="invalid_prompt", field="prompt"
            )

    def image_text(self, pixels: Pixels) -> str:
        """Text of the image tokens of an image or of all frames of a video."""
        start, token, end = self.family.image_marks
        return self.family.frame_separator.join(f"{start}{token * count}{end}" for count in pixels.tokens)

    def encode(self, turns: Sequence[tuple[str, str | None]], pixels: Pixels) -> tuple[list[int], list[int]]:
        """Tokens and labels of a conversation that begins with an image or clip; only answers have labels.

        If the last answer is None, the conversation ends at the start of that answer. Turns are joined by line breaks, as
        in the official training, which also adds one after the last turn.
        """
        template = self.spec.prompt
        image = self.image_text(pixels)
        ids: list[int] = []
        labels: list[int] = []
        for number, (question, answer) in enumerate(turns):
            if number == 0:
                given = self.tokenizer.encode(template.before_answer(question, image))
            else:
                given = self._encode_part("\n" + template.mark_up(question))
            learned = [] if answer is None else self._encode_part(answer + template.stop)
            ids += given + learned
            labels += [IGNORE_INDEX] * len(given) + learned
        return ids, labels

    def _encode_part(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def template_answer(self) -> list[int]:
        """Tokens of the first answer of the template, with the stop token."""
        return self._encode_part(self.spec.prompt.answer() + self.spec.prompt.stop)

    def pad(self, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows of (tokens, labels) as `input_ids`, `labels` and `attention_mask`, padded on the left.

        SettingError for a row longer than the model's context.
        """
        longest = max(len(ids) for ids, _ in rows)
        limit = self.spec.context
        if longest > limit:
            raise SettingError(
                f"a prompt of {longest} tokens is longer than the model's context of {limit}; "
                "shorten the text or lower max_tiles",
                code="context_too_long",
            )
        if longest > self.spec.text["max_position_embeddings"] and len(rows) > 1:
            # dynamic RoPE scaling would rotate all rows by the length of the longest
            raise SettingError(
                f"a prompt of {longest} tokens needs a batch of its own; predict one image with one prompt at a time",
                code="context_too_long",
            )
        shape = (len(rows), longest)
        all_ids = torch.full(shape, self.stop_id)
        labels = torch.full(shape, IGNORE_INDEX)
        attention = torch.zeros(shape, dtype=torch.int64)
        for row, (ids, row_labels) in enumerate(rows):
            start = longest - len(ids)
            all_ids[row, start:] = torch.tensor(ids)
            labels[row, start:] = torch.tensor(row_labels)
            attention[row, start:] = 1
        return all_ids, labels, attention

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, with special tokens but without the stop token."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False).removesuffix(self.spec.prompt.stop)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that predictions depend on, for reports."""
        return {
            "question": self.spec.prompt.questions[0],
            "chat": self.spec.prompt.chat,
            "max_tiles": self.spec.max_tiles,
        }
