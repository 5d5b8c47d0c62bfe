"""`OfficialPredictor`: a predictor with Sa2VA's own method `predict_forward`, for scripts written for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from vesalius.calls import check_kind, checked
from vesalius.data.pictures import Picture, as_pixels
from vesalius.errors import SettingError
from vesalius.inference.video import VideoPredictor
from vesalius.mask_maps import LowRes
from vesalius.masks import Size
from vesalius.models.generation import generate_answer
from vesalius.models.memory import VideoSession
from vesalius.models.official_prompt import official_text, read_official_prompt

MAX_NEW_TOKENS = 2048
"""Token limit of an answer in the official code."""


class OfficialPredictor(VideoPredictor):
    """A text-prompted model for images and clips, with the official `predict_forward`; `load_predictor` returns it."""

    @checked
    @torch.inference_mode()
    def predict_forward(
        self,
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
        """Answer one text about an image, a video or neither; arguments and their order are the official ones.

        Returns `prediction`, the answer with its special tokens, and `prediction_masks`, one bool array (frames, h, w)
        per [SEG]; an image is one frame. `tokenizer` and `processor` are ignored, because the model has its own.
        `official` reproduces errors of the official code (docs/decisions/0006-official-numbers.md). SettingError with
        test-time augmentation, which the official interface lacks.
        """
        del tokenizer, processor
        if self.views:
            raise SettingError(
                "the official interface has no test-time augmentation; open the model without tta",
                code="conflicting_settings",
                field="tta",
            )
        check_kind(video, Sequence | None, "video", "a list of frames")
        check_kind(text, str | None, "text", 'text such as "<image>Please segment the blood vessel."')
        picture = None if image is None else Image.fromarray(as_pixels(image, window=self.window))
        frames = [Image.fromarray(as_pixels(frame, window=self.window)) for frame in video or ()]
        parameter = next(self.model.parameters())
        batch = read_official_prompt(self.processor, text or "", picture, frames, past_text or "", mask_prompts or ())
        squares = batch.g_pixel_values
        # frames are moved to the device one by one
        batch = replace(batch, g_pixel_values=[]).to(parameter.device, parameter.dtype)
        answer = generate_answer(self.model, batch, self.processor.stop_id, MAX_NEW_TOKENS, official)
        result = {"prediction": official_text(self.processor, answer.ids[0]), "prediction_masks": []}
        if not len(answer.seg.row) or not squares:
            return result
        if not frames:
            logits = self.model.decode([squares[0].to(parameter)], answer.seg).logits
            return result | {"prediction_masks": list(self._masks(logits, batch.sizes[0])[:, None])}
        session = VideoSession(self.model.sam, answer.seg.embedding)
        masks = [self._masks(session.segment(square[None].to(parameter)).logits, batch.sizes[0]) for square in squares]
        return result | {"prediction_masks": list(np.stack(masks, axis=1))}

    def _masks(self, logits: torch.Tensor, size: Size) -> np.ndarray:
        """Masks of one frame, bool (n, h, w)."""
        maps = LowRes(logits.float().cpu().numpy(), self.processor.spec.sam_size)
        return maps.masks(size, self.threshold)
