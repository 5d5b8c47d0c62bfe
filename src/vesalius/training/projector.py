"""A projector made anew, before which phrases that the model has not learned yet lie apart from the first step on.

The states of [SEG] after two unknown phrases are nearly the same (mean cosine 0.99 for the 25 coronary segments and random
weights), and a projector that was trained on other phrases sees only what told *those* apart. Training then settles on one
mask for all phrases, and stays there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from vesalius.data.dataset import load_item
from vesalius.errors import SettingError
from vesalius.models.checkpoint import OpenedModel
from vesalius.models.language import read_batch, run_questions
from vesalius.types import Item, Sample

IMAGES = 12
"""Training images, spread over all, each asked about every phrase, and each in other words."""
AT_ONCE = 16
"""Phrases in one pass of the language model."""
RIDGE = 1e-3
"""Added to the variance of each direction, as a share of the mean one: what is but rounding stays small."""


def fit_projector(opened: OpenedModel, samples: Sequence[Sample], device: torch.device, seed: int) -> str:
    """Draw the projector again and fit it to the phrases of the samples; returns a sentence about what was found.

    What little tells two phrases apart comes to count as much as anything; then each unit of both layers gets mean 0
    and variance 1 over the states, as in Krähenbühl et al. 2016 (arXiv 1511.06856). Computes on `device`, where the
    model stays. SettingError for fewer than two phrases; errors as for `load_item`.
    """
    phrases = tuple(dict.fromkeys(phrase for sample in samples for phrase in sample.prompts))
    if len(phrases) < 2:
        raise SettingError(
            f"projector: fitted sets phrases apart, but the training data have only {phrases[0]!r}; leave it out"
        )
    model = opened.model.to(device).eval()
    with torch.no_grad():
        before = seg_states(opened, samples, phrases)
        alike = _likeness(model.projector(before))
        draw = torch.Generator().manual_seed(seed)
        first, second = model.projector.linear_1, model.projector.linear_2
        _draw(first, draw)
        first.weight.copy_(first.weight @ _set_apart(before.float()))
        states = before.flatten(0, 1).float()
        _standardise(first, states)
        _draw(second, draw)
        _standardise(second, torch.relu(first(states)))
        fitted = _likeness(model.projector(before))
    return (
        f"projector fitted to {len(phrases)} phrases: the mean cosine between the prompts of two is "
        f"{fitted:.2f}, and was {alike:.2f}"
    )


def seg_states(opened: OpenedModel, samples: Sequence[Sample], phrases: Sequence[str]) -> torch.Tensor:
    """float (i, n, hidden): what the projector reads of `IMAGES` of the samples and all phrases, answered with [SEG].

    The questions take turns: what differs between them must not look like what differs between phrases.
    """
    places = np.linspace(0, len(samples) - 1, IMAGES).round().astype(int)
    found = []
    for draw, place in enumerate(places.tolist()):
        item = load_item(samples[place])
        parts = [tuple(phrases[first : first + AT_ONCE]) for first in range(0, len(phrases), AT_ONCE)]
        found.append(torch.cat([_states_of(opened, item, part, draw) for part in parts]))
    return torch.stack(found)


def _states_of(opened: OpenedModel, item: Item, phrases: tuple[str, ...], draw: int) -> torch.Tensor:
    """float (n, hidden): of phrases about an image, all asked in the words that the draw picks."""
    masks = np.zeros((len(phrases), 1, *item.size), dtype=np.bool_)
    asked = Item(item.id, item.frames, phrases, masks)
    model = opened.model
    batch = opened.processor.teach([asked], [draw] * len(phrases))
    batch = batch.to(model.projector.linear_1.weight.device)
    inputs = read_batch(model.vlm, batch)
    states, _ = run_questions(model.vlm, inputs, batch, model.seg_before_norm, DynamicCache())
    return states.seg[batch.input_ids[:, -states.seg.shape[1] :] == model.seg_id]


def _set_apart(states: torch.Tensor) -> torch.Tensor:
    """(hidden, hidden): what takes states (i, n, hidden) of n phrases to where phrases, and nothing else, lie apart.

    All directions are whitened and then weighed by the share of their variance that is between phrases: that within
    one, from image to image and from question to question, goes (as in Fisher's linear discriminant).
    """
    centred = (states - states.mean(dim=(0, 1))).double().cpu()
    means = centred.mean(dim=0)
    covariance = torch.einsum("ind,ine->de", centred, centred) / (centred.shape[0] * centred.shape[1])
    variances, directions = torch.linalg.eigh(covariance)
    scales = (variances.clamp(min=0) + RIDGE * variances.mean()).rsqrt()
    whitening = directions * scales @ directions.T
    between = whitening @ (means.T @ means / len(means)) @ whitening
    return (between @ whitening).to(states)


def _draw(layer: nn.Linear, draw: torch.Generator) -> None:
    weight = torch.empty(layer.weight.shape)  # on the CPU, for the same numbers on any device
    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=draw)
    layer.weight.copy_(weight)
    nn.init.zeros_(layer.bias)


def _standardise(layer: nn.Linear, inputs: torch.Tensor) -> None:
    outputs = layer(inputs)
    spread = outputs.std(dim=0).clamp(min=torch.finfo(outputs.dtype).tiny)
    layer.weight.div_(spread[:, None])
    layer.bias.sub_(outputs.mean(dim=0)).div_(spread)


def _likeness(prompts: torch.Tensor) -> float:
    """Mean cosine between the prompts (i, n, c) of two phrases about one image."""
    unit = nn.functional.normalize(prompts.float(), dim=-1)
    cosines = unit @ unit.transpose(-1, -2)
    apart = ~torch.eye(cosines.shape[-1], dtype=torch.bool, device=cosines.device)
    return cosines[:, apart].mean().item()
