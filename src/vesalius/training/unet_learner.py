"""Training of the U-Net baseline on random crops of the augmented images.

As in nnU-Net (Isensee et al. 2021), a third of the crops is centered on an object, Dice is computed over the batch, and
deep supervision halves the weight at each deeper level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from vesalius.inference.baselines import UNetPredictor
from vesalius.masks import Size
from vesalius.models.cards import RANDOM_START, UNetCard
from vesalius.models.reference import resolve_model
from vesalius.models.specs import UNetShape
from vesalius.models.stored_model import fingerprint_model
from vesalius.models.unet import NAME, OpenedUNet, new_unet, open_unet, standardize, with_phrases, write_unet
from vesalius.phrases import refuse_unknown
from vesalius.training.losses import LossSettings, binary_cross_entropy, focal_loss, soft_cldice_loss
from vesalius.training.run_folder import RunFolder
from vesalius.training.settings import RunSettings, conflict
from vesalius.types import Item, Turn

OBJECT_CROPS = 1 / 3
"""Fraction of crops centered on an object pixel; crops at the image edge are shifted inside."""
UNUSED_SETTINGS = "projector, trainable, optim.lr_multipliers, loss.text, loss.iou and loss.resolution"


@dataclass(frozen=True)
class CropBatch:
    """Image crops, and one row per annotated (crop, phrase)."""

    pixels: torch.Tensor
    """Crops, float32 (b, 3, p, p), standardized over the whole image and zero-padded outside it."""
    masks: torch.Tensor
    """Target masks, float32 (rows, p, p), 0 or 1."""
    image: torch.Tensor
    """Crop index of each row, int64 (rows,)."""
    channel: torch.Tensor
    """Output channel (phrase index) of each row, int64 (rows,)."""

    def to(self, device: torch.device) -> CropBatch:
        """A copy of the batch on a device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class UNetLearner:
    """Learner of a U-Net; all parameters are trainable."""

    opened: OpenedUNet
    loss: LossSettings

    @property
    def module(self) -> torch.nn.Module:
        """The network without wrappers."""
        return self.opened.model

    @property
    def groups(self) -> Mapping[str, list[torch.nn.Parameter]]:
        """One group, `U-Net`, with all parameters."""
        return {"U-Net": list(self.opened.model.parameters())}

    def check_phrase(self, phrase: str) -> None:
        """Raise SettingError for a phrase without a channel, such as one that occurs in the validation data only."""
        refuse_unknown([phrase], self.opened.card.phrases, "this U-Net")

    def check_turns(self, turns: Sequence[Turn], size: Size) -> None:
        """Raise SettingError: a U-Net cannot learn conversations."""
        raise conflict("data.conversations", "a U-Net cannot learn conversations; remove the setting")

    def make_batch(self, items: Sequence[Item], draws: Sequence[int]) -> CropBatch:
        """One crop per item, which must have masks; the random integer of its first phrase seeds the crop position."""
        spec = self.opened.card.spec
        pixels, masks = [], []
        asked = [(index, prompt) for index, item in enumerate(items) for prompt in item.prompts]
        first_rows = np.cumsum([0, *(len(item.prompts) for item in items)])
        for item, row in zip(items, first_rows[:-1], strict=True):
            assert item.masks is not None
            rng = np.random.default_rng(draws[row])
            corner = draw_corner(np.any(item.masks, axis=(0, 1)), spec.patch, rng)
            pixels.append(cut(standardize(item.frames[0]), corner, spec.patch))
            masks.append(cut(item.masks[:, 0], corner, spec.patch))
        return CropBatch(
            torch.from_numpy(np.stack(pixels)),
            torch.from_numpy(np.concatenate(masks)).float(),
            torch.tensor([index for index, _ in asked]),
            torch.tensor([spec.phrases.index(prompt) for _, prompt in asked]),
        )

    def losses(self, module: torch.nn.Module, batch: CropBatch) -> Mapping[str, torch.Tensor]:
        """Loss terms `mask` (cross-entropy), `dice` and optional ones, each a weighted mean over deep supervision levels."""
        maps = module(batch.pixels).float()
        level_weights = 0.5 ** torch.arange(maps.shape[1], device=maps.device)
        rows = maps[batch.image, :, batch.channel]
        levels = [self._terms(rows[:, level], batch) for level in range(maps.shape[1])]
        terms = {
            name: (level_weights * torch.stack([level[name] for level in levels])).sum() / level_weights.sum()
            for name in levels[0]
        }
        weights = {"mask": self.loss.bce, "dice": self.loss.dice}
        weights |= {"cldice": self.loss.cldice, "focal": self.loss.focal}
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return {"total": total, **terms}

    def _terms(self, logits: torch.Tensor, batch: CropBatch) -> dict[str, torch.Tensor]:
        """The loss terms of logits (rows, p, p) at one deep supervision level."""
        terms = {
            "mask": binary_cross_entropy(logits, batch.masks, self.loss.class_balanced).mean(),
            "dice": batch_dice_loss(logits, batch.masks, batch.channel),
        }
        if self.loss.cldice:
            terms["cldice"] = soft_cldice_loss(logits, batch.masks, self.loss.skeleton_steps).mean()
        if self.loss.focal:
            terms["focal"] = focal_loss(logits, batch.masks, self.loss.focal_gamma, self.loss.class_balanced).mean()
        return terms

    def segmenter(self, card: UNetCard, batch_size: int, forced: bool = True) -> UNetPredictor:
        """A predictor with the current weights; switches the network to eval mode."""
        return UNetPredictor(OpenedUNet(self.opened.model.eval(), card), batch_size=batch_size)

    def write(self, folder: Path, card: UNetCard, previous: Path | None) -> None:
        """Write a bundle; `previous` is ignored because no component is frozen."""
        write_unet(folder, self.opened, card)


def batch_dice_loss(logits: torch.Tensor, targets: torch.Tensor, channel: torch.Tensor) -> torch.Tensor:
    """1 - soft Dice of maps (rows, p, p), computed per phrase over the whole batch and averaged over phrases.

    Dice is (2 |p t| + 1) / (|p| + |t| + 1). Per-crop Dice would be nearly 0 or 1 for a crop without the object; over the
    batch, false positives in such a crop count in proportion to their area.
    """
    probabilities, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    _, index = channel.unique(return_inverse=True)
    sums = torch.stack([(probabilities * targets).sum(1), probabilities.sum(1) + targets.sum(1)], dim=1)
    intersection, total = sums.new_zeros(int(index.max()) + 1, 2).index_add(0, index, sums).unbind(dim=1)
    return (1 - (2 * intersection + 1) / (total + 1)).mean()


def draw_corner(objects: Bool[np.ndarray, "h w"], patch: int, rng: np.random.Generator) -> tuple[int, int]:
    """Position (top, left) of a random crop; one in three is centered on an object pixel. 0 along axes shorter than `patch`."""
    limits = [max(0, length - patch) for length in objects.shape]
    anywhere = tuple(int(rng.integers(0, most + 1)) for most in limits)
    pick, kind = rng.random(), rng.random()
    pixels = np.flatnonzero(objects) if kind < OBJECT_CROPS else np.empty(0, int)
    if not len(pixels):
        return anywhere[0], anywhere[1]
    center = np.unravel_index(pixels[int(pick * len(pixels))], objects.shape)
    top, left = (min(most, max(0, int(at) - patch // 2)) for at, most in zip(center, limits, strict=True))
    return top, left


def cut(planes: np.ndarray, corner: tuple[int, int], patch: int) -> np.ndarray:
    """Crop (n, patch, patch) of `planes` (n, h, w) at `corner` (top, left), zero-padded outside the image."""
    inside = planes[:, corner[0] : corner[0] + patch, corner[1] : corner[1] + patch]
    padding = [(0, patch - length) for length in inside.shape[1:]]
    return np.pad(inside, ((0, 0), *padding))


def open_unet_learner(
    settings: RunSettings, resume: bool, phrases: Sequence[str]
) -> tuple[UNetLearner, dict[str, Any], list[str]]:
    """The learner of the initial U-Net, provenance entries for the lineage, and notes for the user.

    The network has one output channel per phrase in `phrases`; a resumed run keeps its channels. Raises SettingError if
    the architecture in `unet` differs from the initial model's.
    """
    notes = [f"a U-Net has no text input: {UNUSED_SETTINGS} have no effect"]
    origin: dict[str, Any] = {"start": f"{RANDOM_START}, seed {settings.seed}"}
    if resume:
        opened = open_unet(RunFolder(settings.out).last())
    elif settings.model == NAME:
        opened = new_unet(settings.unet or UNetShape(), phrases, settings.seed)
    else:
        opened = open_unet(folder := resolve_model(settings.model).folder)
        _check_shape(settings, opened)
        if settings.init == "random":
            opened = new_unet(opened.card.spec, phrases, settings.seed)
        else:
            fingerprint, lineage = fingerprint_model(folder), opened.card.lineage
            origin = {"start": settings.model, "start_fingerprint": fingerprint, "start_lineage": lineage}
            opened, note = with_phrases(opened, phrases, settings.seed)
            notes += [note] if note else []
    return UNetLearner(opened, settings.loss), origin, notes


def trains_unet(settings: RunSettings, resume: bool) -> bool:
    """Whether the run trains a U-Net."""
    if resume:
        return resolve_model(RunFolder(settings.out).last()).kind == "unet"
    if settings.model == NAME:
        return True
    by_name = settings.init == "random" and not Path(settings.model).exists()
    return not by_name and resolve_model(settings.model).kind == "unet"


def _check_shape(settings: RunSettings, opened: OpenedUNet) -> None:
    spec, asked = opened.card.spec, settings.unet
    if asked is not None and (asked.widths, asked.patch) != (spec.widths, spec.patch):
        raise conflict(
            "unet",
            f"{settings.model} has widths {list(spec.widths)} and a patch of {spec.patch}, not {list(asked.widths)} and "
            f"{asked.patch}; remove the setting, or start a new U-Net with model=unet",
        )
