"""Words and pixels to tensors, exactly as the official code does it: the same object trains and predicts.

Both image inputs are resized by Pillow's bicubic filter, which no tensor resize equals, and normalised with the
ImageNet mean and deviation. Source: `dynamic_preprocess` and `DirectResize` of ByteDance/Sa2VA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from vesalius.errors import SettingError
from vesalius.masks import Size
from vesalius.models.specs import IMAGE_TOKEN, SEG, ModelSpec
from vesalius.types import Item

MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], dtype=np.float32)
NOT_LEARNED = -100
"""Label of a position whose token is given, not learned."""


@dataclass(frozen=True)
class Batch:
    """The input of one step, under the official names. One row is one question; rows may share an image."""

    input_ids: torch.Tensor
    """int64 (b, t), padded on the left."""
    attention_mask: torch.Tensor
    """int64 (b, t), 0 where padded."""
    labels: torch.Tensor
    """int64 (b, t): the token where it belongs to an answer, else -100."""
    pixel_values: torch.Tensor
    """float (tiles of all images, 3, 448, 448)."""
    g_pixel_values: list[torch.Tensor]
    """An image each: float (3, S, S) for the segmenter."""
    masks: list[torch.Tensor]
    """An image each: uint8 (n, H, W) at the original size; empty list where nothing is known."""
    image_of_row: torch.Tensor
    """int64 (b,)."""
    tiles_of_image: list[int]
    frames_per_batch: list[int]
    """Frames of each image: 1."""
    sizes: list[Size]
    """Original (h, w) of each image."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """The batch on a device; `dtype` is for the two pixel inputs."""
        return replace(
            self,
            **{
                name: getattr(self, name).to(device)
                for name in ("input_ids", "attention_mask", "labels", "image_of_row")
            },
            pixel_values=self.pixel_values.to(device, dtype),
            g_pixel_values=[pixels.to(device, dtype) for pixels in self.g_pixel_values],
            masks=[mask.to(device) for mask in self.masks],
        )

    def as_mapping(self) -> dict[str, Any]:
        """The official mapping: each question brings its own copy of the image's tiles."""
        starts = np.cumsum([0, *self.tiles_of_image])
        images = self.image_of_row.tolist()
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "labels": self.labels,
            "pixel_values": torch.cat([self.pixel_values[starts[i] : starts[i + 1]] for i in images]),
            "g_pixel_values": self.g_pixel_values,
            "masks": self.masks,
            "frames_per_batch": self.frames_per_batch,
        }


class Processor:
    """Items to a `Batch`. Fixed once made."""

    def __init__(self, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.seg_id = self._id_of(SEG)
        self.image_id = self._id_of(IMAGE_TOKEN)
        self.stop_id = self._id_of(spec.prompt.stop)

    def _id_of(self, token: str) -> int:
        ids = self.tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1:
            raise SettingError(f"the tokenizer has no token {token}: it writes it as {len(ids)} tokens")
        return ids[0]

    def __call__(
        self, items: Sequence[Item], *, answered: bool = False, choice: Sequence[int] | None = None
    ) -> Batch:
        """One row for each (item, prompt), in order.

        `answered` appends the template's answer, whose tokens are the labels; without it the rows end where the
        model must speak. `choice` picks the question and answer template of each row (training draws it);
        None takes the first. Raises SettingError for no items, no prompts, or an empty prompt.
        """
        questions = [(i, prompt) for i, item in enumerate(items) for prompt in item.prompts]
        if not questions:
            raise SettingError("there is nothing to ask: no image, or no prompt")
        for _, prompt in questions:
            self.check_phrase(prompt)
        frames = [Image.fromarray(item.frames[0]) for item in items]
        tiles = [tile_image(frame, self.spec.tile_size, self.spec.max_tiles) for frame in frames]
        chosen = choice if choice is not None else [0] * len(questions)
        rows = [
            self._row(prompt, len(tiles[i]), answered, which)
            for (i, prompt), which in zip(questions, chosen, strict=True)
        ]
        ids, labels, attention = self._pad(rows)
        square = (self.spec.sam_size, self.spec.sam_size)
        return Batch(
            input_ids=ids,
            attention_mask=attention,
            labels=labels,
            pixel_values=torch.stack([normalise(tile) for of_image in tiles for tile in of_image]),
            g_pixel_values=[normalise(resize_bicubic(frame, square)) for frame in frames],
            masks=[
                torch.from_numpy(item.masks[:, 0].astype(np.uint8))
                for item in items
                if item.masks is not None
            ],
            image_of_row=torch.tensor([i for i, _ in questions]),
            tiles_of_image=[len(of_image) for of_image in tiles],
            frames_per_batch=[1] * len(items),
            sizes=[item.size for item in items],
        )

    def check_phrase(self, phrase: str) -> None:
        """Raise SettingError for a phrase that cannot be asked about: empty, no text, or with a control token."""
        try:
            phrase.encode()
        except UnicodeEncodeError as error:
            raise SettingError(f"the prompt {phrase!r} is not valid text") from error
        self.spec.prompt.ask(phrase)
        for token in self.tokenizer.get_added_vocab():
            if token in phrase:
                raise SettingError(f"the prompt {phrase!r} holds {token}, which the model takes as a command")

    def _row(self, phrase: str, tiles: int, answered: bool, which: int) -> tuple[list[int], list[int]]:
        template = self.spec.prompt
        image = f"<img>{IMAGE_TOKEN * (tiles * self.spec.tokens_per_tile)}</img>"
        ids = self.tokenizer.encode(template.before_answer(template.ask(phrase, which), image))
        if not answered:
            return ids, [NOT_LEARNED] * len(ids)
        answer = template.answers[which % len(template.answers)] + template.stop
        answer_ids = self.tokenizer.encode(answer, add_special_tokens=False)
        return ids + answer_ids, [NOT_LEARNED] * len(ids) + answer_ids

    def _pad(
        self, rows: Sequence[tuple[list[int], list[int]]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        longest = max(len(ids) for ids, _ in rows)
        limit = self.spec.vlm["text_config"]["max_position_embeddings"]
        if longest > limit:
            raise SettingError(
                f"a question of {longest} tokens is longer than the model's context of {limit}: "
                "shorten the prompt or lower max_tiles"
            )
        shape = (len(rows), longest)
        all_ids = torch.full(shape, self.stop_id)
        labels = torch.full(shape, NOT_LEARNED)
        attention = torch.zeros(shape, dtype=torch.int64)
        for row, (ids, row_labels) in enumerate(rows):
            start = longest - len(ids)
            all_ids[row, start:] = torch.tensor(ids)
            labels[row, start:] = torch.tensor(row_labels)
            attention[row, start:] = 1
        return all_ids, labels, attention

    def text(self, ids: Sequence[int]) -> str:
        """An answer's tokens as text, special tokens kept, without what ends it."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False).removesuffix(self.spec.prompt.stop)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What fixes the numbers that come out, for reports."""
        return {
            "question": self.spec.prompt.questions[0],
            "chat": self.spec.prompt.chat,
            "max_tiles": self.spec.max_tiles,
        }


def tile_image(image: Image.Image, tile: int, max_tiles: int) -> list[Image.Image]:
    """Tiles of tile x tile pixels, row by row, then a thumbnail of the whole if there is more than one.

    The image is first squashed to the grid whose aspect ratio is nearest to its own.
    """
    columns, rows = tile_grid(image.size, tile, max_tiles)
    squashed = image.resize((columns * tile, rows * tile), Image.Resampling.BICUBIC)
    tiles = [
        squashed.crop((column * tile, row * tile, (column + 1) * tile, (row + 1) * tile))
        for row in range(rows)
        for column in range(columns)
    ]
    if len(tiles) > 1:
        tiles.append(image.resize((tile, tile), Image.Resampling.BICUBIC))
    return tiles


def tile_grid(size_wh: tuple[int, int], tile: int, max_tiles: int) -> tuple[int, int]:
    """(columns, rows) of the grid of at most `max_tiles` tiles whose aspect ratio is nearest to the image's.

    Equally near grids: the larger one is taken if the image has more than half as many pixels as it.
    """
    width, height = size_wh
    best, best_difference = (1, 1), float("inf")
    for columns, rows in _grids(max_tiles):
        difference = abs(width / height - columns / rows)
        roomy = width * height > 0.5 * tile * tile * columns * rows
        if difference < best_difference or (difference == best_difference and roomy):
            best, best_difference = (columns, rows), difference
    return best


@cache
def _grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    # the official code sorts a Python set by area alone, so equal areas keep the order of the set
    grids = {
        (i, j)
        for n in range(1, max_tiles + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if i * j <= max_tiles
    }
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def resize_bicubic(image: Image.Image, size: Size) -> Image.Image:
    """The image at (h, w) by Pillow's antialiased bicubic filter; the aspect ratio is not kept."""
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def normalise(image: Image.Image) -> torch.Tensor:
    """float32 (3, h, w): ImageNet mean and deviation."""
    pixels = (np.asarray(image, dtype=np.float32) / 255 - MEAN) / DEVIATION
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
