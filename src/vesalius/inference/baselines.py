"""Baselines that run in place of a text-prompted model: a U-Net, and the untrained Frangi vesselness filter.

Neither reads text. The U-Net has one output channel per training phrase and refuses other phrases. The filter returns
the same mask for every phrase.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from vesalius.extras import require
from vesalius.inference.loaded import LoadedSegmenter, device_settings
from vesalius.mask_maps import Full
from vesalius.models.cards import ModelCard
from vesalius.models.reference import FRANGI, ModelRef
from vesalius.models.stored_model import fingerprint_model
from vesalius.models.unet import OpenedUNet, open_unet, standardize
from vesalius.types import Item, Prediction

OVERLAP = 0.5
"""Overlap of neighboring U-Net windows as a fraction of the window side, as in nnU-Net."""
SIGMAS = tuple(range(3, 9))
"""Scales of the Frangi filter in pixels: about half the vessel width. scikit-image does not normalize responses across
scales, so the smallest sigma dominates: on 8 ARCADE training images the 5 % of pixels with the highest response have a
Dice of 0.17 with sigmas from 1, 0.34 from 2 and 0.38 from 3."""
FLOOR = 1e-6
"""Minimum filter response, relative to Otsu's threshold; it keeps the logarithm finite."""


class Baseline(LoadedSegmenter):
    """A segmenter that predicts logits at image resolution, one image at a time."""

    def _predict_items(self, items: Sequence[Item]) -> list[Prediction]:
        return [prediction for item in items for prediction in self._predict_one(item)]

    def _predict_one(self, item: Item) -> list[Prediction]:
        maps = self._compute_logits(item.frames[0], item.prompts)
        return [
            Prediction(
                id=item.id,
                prompt=prompt,
                status="ok",
                size=item.size,
                maps=Full(logits[None]),
                scores=(float(1 / (1 + np.exp(-logits.max(initial=0)))),),
                threshold=self.threshold,
                cleaning=self.cleaning,
            )
            for prompt, logits in zip(item.prompts, maps, strict=True)
        ]

    @abstractmethod
    def _compute_logits(
        self, frame: UInt8[np.ndarray, "h w 3"], prompts: Sequence[str]
    ) -> Float32[np.ndarray, "n h w"]:
        """Logits of the image, one map per prompt."""


class UNetPredictor(Baseline):
    """U-Net inference: sliding windows with 50 % overlap, Gaussian blending, no mirroring.

    `batch_size` is the number of windows per forward pass. A phrase that the U-Net was not trained on has no channel, so
    it is always refused (SettingError, `unknown_phrase`).
    """

    answers_unknown = False

    def __init__(self, opened: OpenedUNet, **settings: Any) -> None:
        super().__init__(opened.card, **settings)
        self.model = opened.model
        self.spec = opened.card.spec

    @property
    def _settings(self) -> dict[str, Any]:
        window = {"patch": self.spec.patch, "overlap": OVERLAP, "phrases": list(self.spec.phrases)}
        return {**device_settings(self.model), **window}

    @torch.inference_mode()
    def _compute_logits(
        self, frame: UInt8[np.ndarray, "h w 3"], prompts: Sequence[str]
    ) -> Float32[np.ndarray, "n h w"]:
        infer = require("monai.inferers", "baselines", "U-Nets").sliding_window_inference
        device = next(self.model.parameters()).device
        pixels = torch.from_numpy(standardize(frame))[None].to(device)
        maps = infer(
            pixels,
            roi_size=(self.spec.patch, self.spec.patch),
            sw_batch_size=self.batch_size,
            predictor=self.model,
            overlap=OVERLAP,
            mode="gaussian",
        )[0]
        rows = [self.spec.phrases.index(prompt) for prompt in prompts]
        return np.asarray(maps[rows].float().cpu().numpy())


class FrangiFilter(Baseline):
    """Frangi vesselness filter (Frangi et al. 1998, doi 10.1007/BFb0056195): no training, no text.

    It finds dark lines about 6 to 16 pixels wide in the green channel, such as vessels in angiograms and retinal
    images; it ignores bright lines. The response r becomes the probability r / (r + t), where t is Otsu's threshold of
    the image's responses, so a threshold of 0.5 gives Otsu's mask.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(ModelCard(kind=FRANGI), **settings)

    @property
    def _settings(self) -> dict[str, Any]:
        return {"sigmas": list(SIGMAS), "ridges": "dark", "channel": "green", "text": "not read"}

    def _compute_logits(
        self, frame: UInt8[np.ndarray, "h w 3"], prompts: Sequence[str]
    ) -> Float32[np.ndarray, "n h w"]:
        from skimage.filters import frangi, threshold_otsu

        response = frangi(frame[:, :, 1] / 255, sigmas=SIGMAS, black_ridges=True)
        otsu = threshold_otsu(response)
        # Otsu's threshold is 0 if the filter responds nowhere, for example on a constant image
        ratio = response / otsu if otsu > 0 else np.zeros_like(response)
        logits = np.log(np.maximum(ratio, FLOOR))
        return np.repeat(logits.astype(np.float32)[None], len(prompts), axis=0)


def load_baseline(ref: ModelRef, *, device: str = "cpu", **settings: Any) -> Baseline:
    """Open the Frangi filter, or the U-Net of a bundle or run; `settings` as for `LoadedSegmenter`."""
    if ref.kind == "frangi":
        return FrangiFilter(name=ref.name, **settings)
    fingerprint = fingerprint_model(ref)
    return UNetPredictor(open_unet(ref.folder, device), name=ref.name, fingerprint=fingerprint, **settings)
