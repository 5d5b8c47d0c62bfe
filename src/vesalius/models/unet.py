"""A U-Net, the baseline without text prompts: each output channel segments one phrase.

Its shape follows nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z): 3 x 3 convolutions, instance norm,
leaky ReLU, strided convolutions for downsampling, transposed ones for upsampling, deep supervision. The layers are MONAI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from vesalius.errors import CheckpointError
from vesalius.extras import require
from vesalius.files import write_json
from vesalius.lineage import versions
from vesalius.models.cards import CARD, UNetCard, read_any_card
from vesalius.models.specs import UNetShape, UNetSpec
from vesalius.models.tensor_differences import list_differences
from vesalius.models.weights import read_tensors, write_tensors

WEIGHTS = "unet.safetensors"
NAME = "unet"
"""The value of `model` in a recipe for a new U-Net."""
HEADS = ("output_block.", "deep_supervision_heads.")
"""Name prefixes of parameters with one row per phrase."""
SUPERVISED = 2
"""Number of levels below the first with deep supervision; the two lowest have none."""


@dataclass(frozen=True)
class OpenedUNet:
    """A U-Net in memory and its card."""

    model: torch.nn.Module
    card: UNetCard


def build_unet(spec: UNetSpec) -> torch.nn.Module:
    """The network with random weights: float (b, 3, h, w) to logits (b, n, h, w) for n phrases.

    h and w must be multiples of 2^(levels - 1). In training mode the output is (b, k, n, h, w): the upsampled maps of the
    first k levels. MissingExtraError without MONAI.
    """
    levels = len(spec.widths)
    model: torch.nn.Module = require("monai.networks.nets", "baselines", "U-Nets").DynUNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=len(spec.phrases),
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=spec.widths,
        deep_supervision=True,
        deep_supr_num=min(SUPERVISED, levels - 2),
    )
    return model


def new_unet(shape: UNetShape, phrases: Sequence[str], seed: int) -> OpenedUNet:
    """A U-Net with random weights for these phrases, in training mode."""
    spec = UNetSpec(**shape.model_dump(include=set(UNetShape.model_fields)), phrases=tuple(phrases))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OpenedUNet(build_unet(spec), UNetCard(spec=spec))


def with_phrases(opened: OpenedUNet, phrases: Sequence[str], seed: int) -> tuple[OpenedUNet, str]:
    """The U-Net with one channel for each of these phrases, and a note on new and removed phrases.

    Known phrases keep their weights; new phrases get random ones. The note is "" if the phrases are unchanged.
    """
    before = opened.card.spec.phrases
    if before == tuple(phrases):
        return opened, ""
    made = new_unet(opened.card.spec, phrases, seed)
    row_before = {phrase: row for row, phrase in enumerate(before)}
    old = dict(opened.model.named_parameters())
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if not name.startswith(HEADS):
                parameter.copy_(old[name])
                continue
            for row, phrase in enumerate(phrases):
                if phrase in row_before:
                    parameter[row] = old[name][row_before[phrase]]
    new = [phrase for phrase in phrases if phrase not in row_before]
    gone = [phrase for phrase in before if phrase not in phrases]
    said = [f"{what}: {', '.join(some)}" for what, some in (("new", new), ("removed", gone)) if some]
    note = f"channels of the U-Net: {len(phrases) - len(new)} kept; {'; '.join(said) or 'in another order'}"
    return OpenedUNet(made.model, opened.card.changed(spec=made.card.spec.model_dump())), note


def open_unet(folder: Path, device: str | torch.device = "cpu") -> OpenedUNet:
    """Open the bundle of a U-Net strictly, in eval mode and float32.

    Raises CheckpointError, naming the folder, for anything missing, unknown, misshapen or unreadable.
    """
    card = read_any_card(folder)
    if not isinstance(card, UNetCard):
        raise CheckpointError.at(folder, "is a text-prompted model, not a U-Net", code="wrong_model_kind")
    path = folder / WEIGHTS
    stored = read_tensors(path)
    model = build_unet(card.spec)
    expected = dict(model.named_parameters())
    if wrong := list_differences(stored, expected):
        raise CheckpointError.at(path, f"the weights do not fit {CARD}: {wrong}", code="weights_mismatch")
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(stored[name])
    return OpenedUNet(model.to(device).eval(), card)


def write_unet(folder: Path, opened: OpenedUNet, card: UNetCard) -> None:
    """Write a U-Net bundle with `card` into the new folder `folder`."""
    folder.mkdir(parents=True)
    # MONAI's network has two names for some layers; each parameter is written once
    write_tensors(dict(opened.model.named_parameters()), folder / WEIGHTS)
    card = card.changed(versions=versions())
    write_json(folder / CARD, card.model_dump(mode="json"))


def standardize(frame: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "3 h w"]:
    """The image with mean 0 and standard deviation 1 in each channel, as in nnU-Net; a constant channel becomes 0."""
    planes = np.moveaxis(frame, 2, 0).astype(np.float32)
    mean = planes.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    deviation = planes.std(axis=(1, 2), keepdims=True, dtype=np.float64)
    scaled = (planes - mean) / np.where(deviation > 0, deviation, 1)
    return scaled.astype(np.float32)
