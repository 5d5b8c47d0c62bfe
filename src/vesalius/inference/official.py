"""The official interface: `predict_forward`, so that a script made for the official model needs one changed line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from vesalius.data.images import as_pixels
from vesalius.models.generation import generate_answer
from vesalius.models.memory import VideoSession
from vesalius.models.official_prompt import read_official_prompt, spoken
from vesalius.types import Prediction

if TYPE_CHECKING:
    from vesalius.inference.predictor import Predictor

MAX_NEW_TOKENS = 2048

Picture = str | Path | Image.Image | np.ndarray


@torch.inference_mode()
def predict_forward(
    predictor: Predictor,
    image: Picture | None = None,
    video: Sequence[Picture] | None = None,
    text: str | None = None,
    past_text: str | None = "",
    mask_prompts: Sequence[np.ndarray] | None = None,
    tokenizer: object = None,
    processor: object = None,
    *,
    official: bool = False,
) -> dict[str, Any]:
    """The model's answer, and for each [SEG] in it a mask bool (frames, h, w); an image has one frame.

    Arguments and their order are the official ones; `tokenizer` and `processor` are not looked at, for the model has
    its own. `official` keeps what the official code gets wrong (docs/decisions/0006-official-numbers.md).
    """
    del tokenizer, processor
    picture = None if image is None else Image.fromarray(as_pixels(image))
    frames = [Image.fromarray(as_pixels(frame)) for frame in video or ()]
    reader, model = predictor.processor, predictor.model
    parameter = next(model.parameters())
    batch = read_official_prompt(reader, text or "", picture, frames, past_text or "", mask_prompts or ())
    squares = batch.g_pixel_values
    # the frames stay where they are until their turn comes
    batch = replace(batch, g_pixel_values=[]).to(parameter.device, parameter.dtype)
    answer = generate_answer(model, batch, reader.stop_id, MAX_NEW_TOKENS, official)
    said = {"prediction": spoken(reader, answer.ids[0]), "prediction_masks": []}
    if not len(answer.seg.row) or not squares:
        return said
    if not frames:
        logits = model.decode([squares[0].to(parameter)], answer.seg).logits
        return said | {"prediction_masks": list(_masks(predictor, logits, batch.sizes[0])[:, None])}
    session = VideoSession(model.sam, answer.seg.embedding)
    masks = [
        _masks(predictor, session.segment(square[None].to(parameter)).logits, batch.sizes[0])
        for square in squares
    ]
    return said | {"prediction_masks": list(np.stack(masks, axis=1))}


def _masks(predictor: Predictor, logits: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """bool (n, h, w) of one frame."""
    return Prediction(
        id="frame",
        prompt="",
        status="ok",
        size=size,
        logits=logits.float().cpu().numpy(),
        input_size=predictor.processor.spec.sam_size,
        scores=(1.0,) * len(logits),
        threshold=predictor.threshold,
    ).masks
