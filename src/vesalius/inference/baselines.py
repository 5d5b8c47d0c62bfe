"""The baselines of the text-prompted model, under the same verbs: a U-Net, and a filter that nobody trained.

Neither reads text. The U-Net has a channel for each phrase that it was trained on and refuses any other. The filter
answers every phrase with the same mask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image

from vesalius.cleaning import CleanedPrediction, Cleaning
from vesalius.data.images import as_pixels
from vesalius.errors import SettingError
from vesalius.extras import require
from vesalius.models.cards import ModelCard
from vesalius.models.reference import FRANGI, ModelRef, resolve_model
from vesalius.models.specs import UNetSpec
from vesalius.models.stored_model import fingerprint_model
from vesalius.models.unet import OpenedUNet, open_unet, standardize
from vesalius.types import Item, Prediction

OVERLAP = 0.5
"""Share of its side that a window of the U-Net has in common with the next, as in nnU-Net."""
SIGMAS = tuple(range(3, 9))
"""Half widths in pixels of the lines that the filter looks for. scikit-image does not make up for their scale, so the
least decides: on 8 training images of ARCADE the best 5 % of pixels have a Dice of 0.17 from 1 on, of 0.34 from 2 on and
of 0.38 from 3 on."""
FLOOR = 1e-6
"""The least response of the filter, as a share of Otsu's threshold: 0 has no logarithm."""


@dataclass(frozen=True)
class FullPrediction(CleanedPrediction):
    """A prediction whose logits (n, h, w) are of the size of the image."""

    def _full_logits(self) -> np.ndarray:
        return self.logits


class Baseline(ABC):
    """A `Segmenter` that gives logits of the size of the image, an image at a time."""

    times_halved: ClassVar[int] = 0
    tiles: ClassVar[None] = None

    def __init__(
        self,
        card: ModelCard,
        *,
        threshold: float | None = None,
        cleaning: Cleaning | None = None,
        batch: int = 4,
        name: str = "",
        fingerprint: str | None = None,
    ) -> None:
        if batch < 1:
            raise SettingError(f"batch must be at least 1; got {batch}")
        if threshold is not None and not 0 < threshold < 1:
            raise SettingError(f"the threshold must lie between 0 and 1; got {threshold}")
        self.bundle_card = card
        self.threshold = card.threshold if threshold is None else threshold
        self.cleaning = cleaning or Cleaning()
        self.batch = batch
        self.name = name or card.kind
        self.fingerprint = fingerprint

    @property
    def card(self) -> dict[str, Any]:
        """What reports say of the model."""
        card = self.bundle_card
        return {"name": self.name, "kind": card.kind, "fingerprint": self.fingerprint, "step": card.step}

    @property
    def settings(self) -> dict[str, Any]:
        """What else decides the numbers, for reports."""
        mended = self.cleaning != Cleaning()
        return {**self._how, **({"cleaning": self.cleaning.model_dump()} if mended else {})}

    @property
    def training_images(self) -> tuple[str, ...] | None:
        """SHA-256 of the pixels of each image that the weights were trained on."""
        return self.bundle_card.training_images

    @property
    def trained_on_unknown(self) -> bool:
        """Whether they were trained on others, too, that nobody knows."""
        return self.bundle_card.saw_unknown_images

    @property
    def training_perceptual_hashes(self) -> tuple[str, ...]:
        """Perceptual hash of each of them."""
        return self.bundle_card.training_perceptual_hashes

    @property
    def tuning_images(self) -> tuple[str, ...]:
        """SHA-256 of the pixels of each image that the threshold was found on."""
        return self.bundle_card.tuning_images if self.threshold == self.bundle_card.threshold else ()

    @property
    def threshold_origin(self) -> dict[str, Any]:
        """Where the threshold comes from, for reports."""
        if self.threshold != self.bundle_card.threshold:
            return {"how": "given"}
        return self.bundle_card.threshold_origin.model_dump(exclude_none=True)

    def __call__(self, image: str | Path | Image.Image | np.ndarray, prompt: str) -> Prediction:
        """The prediction for one phrase on one image: a path, a PIL image or a uint8 array (h, w, 3) or (h, w)."""
        name = Path(image).stem if isinstance(image, str | Path) else "image"
        return self.predict([Item(name, as_pixels(image)[None], (prompt,))])[0]

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        """One prediction for each (item, prompt), in order; masks that the items may hold are not looked at."""
        return [prediction for item in items for prediction in self._predict_one(item)]

    def _predict_one(self, item: Item) -> list[Prediction]:
        maps = self._find_logits(item.frames[0], item.prompts)
        return [
            FullPrediction(
                id=item.id,
                prompt=prompt,
                status="ok",
                size=item.size,
                logits=logits[None],
                scores=(float(1 / (1 + np.exp(-logits.max(initial=0)))),),
                threshold=self.threshold,
                cleaning=self.cleaning,
            )
            for prompt, logits in zip(item.prompts, maps, strict=True)
        ]

    @property
    @abstractmethod
    def _how(self) -> dict[str, Any]:
        """Settings beside the cleaning."""

    @abstractmethod
    def _find_logits(
        self, frame: UInt8[np.ndarray, "h w 3"], prompts: Sequence[str]
    ) -> Float32[np.ndarray, "n h w"]:
        """A map for each prompt."""


class UNetPredictor(Baseline):
    """A U-Net ready to predict: windows that overlap by half, blended by a Gaussian; no mirroring.

    `batch` windows go through it together. SettingError for a phrase that it was not trained on.
    """

    def __init__(self, opened: OpenedUNet, **settings: Any) -> None:
        super().__init__(opened.card, **settings)
        self.model = opened.model
        self.spec = opened.card.spec

    @property
    def _how(self) -> dict[str, Any]:
        parameter = next(self.model.parameters())
        where = {"device": str(parameter.device), "dtype": str(parameter.dtype).removeprefix("torch.")}
        return {**where, "patch": self.spec.patch, "overlap": OVERLAP, "phrases": list(self.spec.phrases)}

    def check_prompts(self, prompts: Iterable[str]) -> None:
        """Raise SettingError for phrases that the U-Net has no channel for."""
        check_channel(self.spec, *prompts)

    @torch.inference_mode()
    def _find_logits(
        self, frame: UInt8[np.ndarray, "h w 3"], prompts: Sequence[str]
    ) -> Float32[np.ndarray, "n h w"]:
        self.check_prompts(prompts)
        infer = require("monai.inferers", "baselines", "U-Nets").sliding_window_inference
        device = next(self.model.parameters()).device
        pixels = torch.from_numpy(standardize(frame))[None].to(device)
        maps = infer(
            pixels,
            roi_size=(self.spec.patch, self.spec.patch),
            sw_batch_size=self.batch,
            predictor=self.model,
            overlap=OVERLAP,
            mode="gaussian",
        )[0]
        rows = [self.spec.phrases.index(prompt) for prompt in prompts]
        return np.asarray(maps[rows].float().cpu().numpy())


class FrangiFilter(Baseline):
    """The vesselness of Frangi et al. 1998 (doi 10.1007/BFb0056195): no training, no text.

    It finds dark lines of about 6 to 16 pixels in the green channel, as vessels are in angiograms and in images of the
    retina; bright ones it does not. The response r becomes the probability r / (r + t), where t is Otsu's threshold of
    the image's responses: at 0.5 the mask is Otsu's.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(ModelCard(kind=FRANGI), **settings)

    @property
    def _how(self) -> dict[str, Any]:
        return {"sigmas": list(SIGMAS), "ridges": "dark", "channel": "green", "text": "not read"}

    def _find_logits(
        self, frame: UInt8[np.ndarray, "h w 3"], prompts: Sequence[str]
    ) -> Float32[np.ndarray, "n h w"]:
        from skimage.filters import frangi, threshold_otsu

        response = frangi(frame[:, :, 1] / 255, sigmas=SIGMAS, black_ridges=True)
        usual = threshold_otsu(response)
        # nothing that looks like a line, as in a flat image
        share = response / usual if usual > 0 else np.zeros_like(response)
        logits = np.log(np.maximum(share, FLOOR))
        return np.repeat(logits.astype(np.float32)[None], len(prompts), axis=0)


def check_channel(spec: UNetSpec, *phrases: str) -> None:
    """Raise SettingError for phrases that a U-Net has no channel for."""
    if unknown := [repr(phrase) for phrase in phrases if phrase not in spec.phrases]:
        raise SettingError(
            f"this U-Net has no channel for {', '.join(unknown)}; it was trained on: {', '.join(spec.phrases)}"
        )


def is_baseline(model: str | Path) -> bool:
    """Whether MODEL names the filter or a U-Net."""
    return resolve_model(model).is_baseline


def load_baseline(
    model: str | Path | ModelRef,
    *,
    threshold: float | None = None,
    cleaning: Cleaning | None = None,
    batch: int = 4,
    device: str = "cpu",
) -> Baseline:
    """Open the filter, or the bundle or run of a U-Net; without `threshold` the bundle's own is used."""
    ref = resolve_model(model)
    settings: dict[str, Any] = {
        "threshold": threshold,
        "cleaning": cleaning,
        "batch": batch,
        "name": ref.name,
    }
    if ref.kind == "frangi":
        return FrangiFilter(**settings)
    return UNetPredictor(open_unet(ref.folder, device), fingerprint=fingerprint_model(ref), **settings)
