"""A U-Net that trains: crops of the same images, the same augmentation, its own losses.

After nnU-Net (Isensee et al. 2021): crops of which a third lies about an object, Dice over the whole batch, and deep
supervision with half the weight at each level further down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from vesalius.errors import SettingError
from vesalius.inference.baselines import UNetPredictor, check_channel
from vesalius.masks import Size
from vesalius.models.cards import UNetCard
from vesalius.models.reference import resolve_model
from vesalius.models.specs import UNetShape
from vesalius.models.stored_model import fingerprint_model
from vesalius.models.unet import (
    NAME,
    OpenedUNet,
    new_unet,
    open_unet,
    standardize,
    with_phrases,
    write_unet,
)
from vesalius.training.losses import LossSettings
from vesalius.training.mask_losses import binary_cross_entropy, focal_loss, soft_cldice_loss
from vesalius.training.run_folder import RunFolder
from vesalius.training.settings import RunSettings
from vesalius.types import Item, Turn

ABOUT_OBJECTS = 1 / 3
"""Share of the crops that have a pixel of an object in their middle, as far as the border allows."""
NO_PART = "projector, trainable, optim.lr_multipliers, loss.text, loss.iou and loss.resolution"


@dataclass(frozen=True)
class CropBatch:
    """Crops and the masks of the phrases that were annotated; a row for each mask."""

    pixels: torch.Tensor
    """float32 (b, 3, p, p), standardized over the whole image; 0 beyond its border."""
    masks: torch.Tensor
    """float32 (rows, p, p), 0 or 1."""
    image: torch.Tensor
    """int64 (rows,): which crop."""
    channel: torch.Tensor
    """int64 (rows,): which phrase."""

    def to(self, device: torch.device) -> CropBatch:
        """The batch on a device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class UNetLearner:
    """A U-Net that trains, whole."""

    opened: OpenedUNet
    loss: LossSettings

    @property
    def module(self) -> torch.nn.Module:
        """The unwrapped network."""
        return self.opened.model

    @property
    def groups(self) -> Mapping[str, list[torch.nn.Parameter]]:
        """One part, all of it."""
        return {"U-Net": list(self.opened.model.parameters())}

    def check_phrase(self, phrase: str) -> None:
        """Raise SettingError for a phrase without a channel."""
        check_channel(self.opened.card.spec, phrase)

    def check_turns(self, turns: Sequence[Turn], size: Size) -> None:
        """A U-Net reads no text: SettingError for every conversation."""
        raise SettingError("a U-Net does not learn conversations; leave out data.questions")

    def make_batch(self, items: Sequence[Item], draws: Sequence[int]) -> CropBatch:
        """One crop of each item with masks; the first draw of its phrases picks the place."""
        spec = self.opened.card.spec
        pixels, masks = [], []
        asked = [(index, prompt) for index, item in enumerate(items) for prompt in item.prompts]
        first_rows = np.cumsum([0, *(len(item.prompts) for item in items)])
        for item, row in zip(items, first_rows[:-1], strict=True):
            assert item.masks is not None
            rng = np.random.default_rng(draws[row])
            place = draw_place(np.any(item.masks, axis=(0, 1)), spec.patch, rng)
            pixels.append(cut(standardize(item.frames[0]), place, spec.patch))
            masks.append(cut(item.masks[:, 0], place, spec.patch))
        return CropBatch(
            torch.from_numpy(np.stack(pixels)),
            torch.from_numpy(np.concatenate(masks)).float(),
            torch.tensor([index for index, _ in asked]),
            torch.tensor([spec.phrases.index(prompt) for _, prompt in asked]),
        )

    def losses(self, module: torch.nn.Module, batch: CropBatch) -> Mapping[str, torch.Tensor]:
        """`mask` (cross-entropy), `dice` and what else has a weight, each the mean over levels of the network."""
        maps = module(batch.pixels).float()
        shares = 0.5 ** torch.arange(maps.shape[1], device=maps.device)
        rows = maps[batch.image, :, batch.channel]
        levels = [self._measure(rows[:, level], batch) for level in range(maps.shape[1])]
        parts = {
            name: (shares * torch.stack([level[name] for level in levels])).sum() / shares.sum()
            for name in levels[0]
        }
        weights = {"mask": self.loss.bce, "dice": self.loss.dice}
        weights |= {"cldice": self.loss.cldice, "focal": self.loss.focal}
        total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        return {"total": total, **parts}

    def _measure(self, logits: torch.Tensor, batch: CropBatch) -> dict[str, torch.Tensor]:
        """The parts of the loss for maps (rows, p, p) of one level."""
        parts = {
            "mask": binary_cross_entropy(logits, batch.masks, self.loss.class_balanced).mean(),
            "dice": batch_dice_loss(logits, batch.masks, batch.channel),
        }
        if self.loss.cldice:
            parts["cldice"] = soft_cldice_loss(logits, batch.masks, self.loss.skeleton_steps).mean()
        if self.loss.focal:
            parts["focal"] = focal_loss(
                logits, batch.masks, self.loss.focal_gamma, self.loss.class_balanced
            ).mean()
        return parts

    def segmenter(self, card: UNetCard, batch: int) -> UNetPredictor:
        """A predictor of the network as it is now."""
        return UNetPredictor(OpenedUNet(self.opened.model.eval(), card), batch_size=batch)

    def write(self, folder: Path, card: UNetCard, before: Path | None) -> None:
        """Write a bundle; nothing of an earlier one is taken over, as everything trains."""
        write_unet(folder, self.opened, card)


def batch_dice_loss(logits: torch.Tensor, targets: torch.Tensor, channel: torch.Tensor) -> torch.Tensor:
    """1 - soft Dice of each phrase over all its rows (rows, p, p) together, mean over the phrases that are there.

    A crop without the object then costs what was invented in it beside the objects of the others, and not all or
    nothing. (2 |p t| + 1) / (|p| + |t| + 1), so that empty against empty is 0.
    """
    probabilities, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    _, place = channel.unique(return_inverse=True)
    sums = torch.stack([(probabilities * targets).sum(1), probabilities.sum(1) + targets.sum(1)], dim=1)
    shared, both = sums.new_zeros(int(place.max()) + 1, 2).index_add(0, place, sums).unbind(dim=1)
    return (1 - (2 * shared + 1) / (both + 1)).mean()


def draw_place(objects: Bool[np.ndarray, "h w"], patch: int, rng: np.random.Generator) -> tuple[int, int]:
    """(top, left) of a crop in an image: anywhere, or about a pixel of an object; 0 along an axis that is too short."""
    room = [max(0, length - patch) for length in objects.shape]
    anywhere = tuple(int(rng.integers(0, most + 1)) for most in room)
    pick, about = rng.random(), rng.random()
    pixels = np.flatnonzero(objects) if about < ABOUT_OBJECTS else np.empty(0, int)
    if not len(pixels):
        return anywhere[0], anywhere[1]
    middle = np.unravel_index(pixels[int(pick * len(pixels))], objects.shape)
    top, left = (min(most, max(0, int(at) - patch // 2)) for at, most in zip(middle, room, strict=True))
    return top, left


def cut(planes: np.ndarray, place: tuple[int, int], patch: int) -> np.ndarray:
    """A square of planes (n, h, w) from (top, left) on, with 0 beyond their border: (n, patch, patch)."""
    part = planes[:, place[0] : place[0] + patch, place[1] : place[1] + patch]
    short = [(0, patch - length) for length in part.shape[1:]]
    return np.pad(part, ((0, 0), *short))


def open_unet_learner(
    settings: RunSettings, resume: bool, phrases: Sequence[str]
) -> tuple[UNetLearner, dict[str, Any], list[str]]:
    """The U-Net to start from, where it comes from, and notes on what is taken over and what is not.

    `phrases` are those of the training data, which are its channels; a resumed run has its own. SettingError where
    `unet` asks for another shape than that of the model to start from.
    """
    notes = [f"a U-Net has no text: {NO_PART} take no part"]
    origin: dict[str, Any] = {"start": f"random weights, seed {settings.seed}"}
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
    """Whether the run is of a U-Net."""
    if resume:
        return resolve_model(RunFolder(settings.out).last()).kind == "unet"
    if settings.model == NAME:
        return True
    by_name = settings.init == "random" and not Path(settings.model).exists()
    return not by_name and resolve_model(settings.model).kind == "unet"


def _check_shape(settings: RunSettings, opened: OpenedUNet) -> None:
    spec, asked = opened.card.spec, settings.unet
    if asked is not None and (asked.widths, asked.patch) != (spec.widths, spec.patch):
        raise SettingError(
            f"unet: {settings.model} has the widths {list(spec.widths)} and a patch of {spec.patch}, not "
            f"{list(asked.widths)} and {asked.patch}; leave unet out, or begin a new one with model=unet"
        )
