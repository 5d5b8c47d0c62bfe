"""Convert free text with an optional image or video, the input of the official `predict_forward`, to a `Batch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from vesalius.errors import SettingError
from vesalius.masks import Size
from vesalius.models.batch import IGNORE_INDEX, Batch
from vesalius.models.families.chats import CHATS
from vesalius.models.pixels import Pixels
from vesalius.models.processor import Processor

IMAGE = "<image>"
"""Placeholder of the image in an official text."""

SEEN_FRAMES = 5
"""Number of leading frames of a video that the language model sees."""


def read_official_prompt(
    processor: Processor,
    text: str,
    image: Image.Image | None = None,
    video: Sequence[Image.Image] = (),
    past_text: str = "",
    mask_prompts: Sequence[np.ndarray] = (),
) -> Batch:
    """A batch of one row that ends at the start of the answer, with all frames of a video in `g_pixel_values`.

    `past_text` is prepended unchanged. `mask_prompts` are masks (n, h, w) of regions that the text refers to.
    SettingError if text and images do not match.
    """
    _check(processor, text, image, video, mask_prompts)
    frames = list(video) or ([] if image is None else [image])
    if not frames:
        return _batch(processor, past_text + _ask(processor, text.replace(IMAGE, "")), None, [], None)
    spec, family = processor.spec, processor.family
    pixels = family.read_frames(frames[:SEEN_FRAMES], spec) if video else family.read_image(frames[0], spec)
    regions, shown = None, processor.image_text(pixels)
    if len(mask_prompts):
        regions = _regions(mask_prompts[0], (frames[0].height, frames[0].width), family.region_cells(spec) or 0)
        shown += _name_regions(regions, family.image_marks[1])
    asked = text.replace(IMAGE, shown) if family.image_tag else shown + text.replace(IMAGE, "")
    return _batch(processor, past_text + _ask(processor, asked), pixels, frames, regions)


def _check(
    processor: Processor,
    text: str,
    image: Image.Image | None,
    video: Sequence[Image.Image],
    mask_prompts: Sequence[np.ndarray],
) -> None:
    if image is not None and len(video):
        raise SettingError("give an image or a video, not both", code="conflicting_settings")
    family = processor.family
    if (image is not None or len(video)) and family.image_tag and text.count(IMAGE) != 1:
        raise SettingError(
            f"the text must contain {IMAGE} once, at the position of the image; got {text!r}",
            code="invalid_prompt",
            field="text",
        )
    if len({frame.size for frame in video}) > 1:
        raise SettingError(
            f"the frames of a video must have one size; got {sorted({f.size for f in video})}",
            code="wrong_shape",
            field="video",
        )
    if len(mask_prompts) and (image is None or family.region_cells(processor.spec) is None):
        raise SettingError("mask_prompts need an image and a model that supports them", code="conflicting_settings")


def _ask(processor: Processor, question: str) -> str:
    return processor.family.system_prompt + processor.spec.prompt.mark_up(question)


def _regions(masks: np.ndarray, size: Size, cells: int) -> torch.Tensor:
    """Regions resampled to the cells of a tile by nearest neighbor, bool (n, side, side) with side^2 = `cells`."""
    side = int(cells**0.5)
    shapes = {np.shape(mask) for mask in masks}
    if shapes != {tuple(size)}:
        raise SettingError(
            f"mask_prompts must be masks of the image's size {size}; got {sorted(shapes)}",
            code="wrong_shape",
            field="mask_prompts",
        )
    pixels = torch.as_tensor(np.asarray(masks, dtype=np.float32))
    regions = functional.interpolate(pixels[None], size=(side, side), mode="nearest")[0].bool()
    if lost := [i for i, region in enumerate(regions, start=1) if not region.any()]:
        raise SettingError(
            f"region {lost[0]} of mask_prompts is empty, or too small for the {side} x {side} cells",
            code="wrong_shape",
            field="mask_prompts",
        )
    return regions


def _name_regions(regions: torch.Tensor, token: str) -> str:
    cells = regions.flatten(1).sum(dim=1).tolist()
    named = ", ".join(f"region{i}<vp>{token * count}</vp>" for i, count in enumerate(cells, start=1))
    return f"\nThere are {len(cells)} part regions in the picture: {named}.\n"


def _batch(
    processor: Processor, prompt: str, pixels: Pixels | None, frames: list[Image.Image], regions: torch.Tensor | None
) -> Batch:
    ids = processor.tokenizer.encode(prompt)
    wanted = 0 if pixels is None else sum(pixels.tokens) + (0 if regions is None else int(regions.sum()))
    if pixels is not None and ids.count(processor.image_id) != wanted:
        token = processor.family.image_marks[1]
        raise SettingError(f"the text must not contain the image token {token}", code="invalid_prompt", field="text")
    batch = processor.make_batch(
        [(0, ids, [IGNORE_INDEX] * len(ids))],
        [] if pixels is None else [pixels],
        [[processor.for_segmenter(frame) for frame in frames]] if frames else [],
        [(frame.height, frame.width) for frame in frames],
    )
    return replace(batch, regions=regions)


def official_text(processor: Processor, ids: Sequence[int]) -> str:
    """The answer decoded as in the official code, with special tokens and the stop token."""
    tokenizer = processor.tokenizer
    if not CHATS[processor.spec.prompt.chat].spaced:
        return tokenizer.decode(list(ids), skip_special_tokens=False).strip()
    special = set(tokenizer.get_added_vocab().values())
    runs: list[list[int]] = []
    for token in ids:
        if runs and token not in special and runs[-1][-1] not in special:
            runs[-1].append(token)
        else:
            runs.append([token])
    return " ".join(tokenizer.decode(run, skip_special_tokens=False) for run in runs).strip()
