"""A projector made anew, before which phrases that the model has not learned lie apart from the first step on.

The states of [SEG] after two unknown phrases are nearly the same: for 25 names of coronary segments and `tiny` as it is
shipped their mean cosine is 0.88, for random weights 0.99. A projector that was trained on other phrases sees only what
told *those* apart. Training then settles on one mask for all phrases, and stays there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn
from transformers.cache_utils import DynamicCache

from vesalius.data.dataset import load_item
from vesalius.errors import SettingError, TrainingError
from vesalius.models.checkpoint import OpenedModel
from vesalius.models.vlm import embed_batch, prefill, reset_rope
from vesalius.types import Item, Sample

MOST_PHRASES = 100
"""The first so many of the data are fitted to; what tells these apart serves for others, too."""
QUESTIONS = 400
"""So many are asked, or more: the fewer phrases, the more images, of whose differences nothing else tells."""
FEWEST_IMAGES = 12
"""However many phrases there are."""
HELD_OUT = 4
"""One in so many images is not fitted to: it shows what has been reached."""
AT_ONCE = 8
"""Questions in one pass of the language model."""
RIDGE = 1e-3
"""Added to the variance of each direction, as a share of the mean one: what is but rounding stays small."""
TOO_ALIKE = 0.7
"""Mean cosine between the prompts of two phrases from which on the fit has not set them apart."""
APART = 0.5
"""And below which the projector told them apart already. As shipped, `tiny` has -0.2 for the two phrases that it knows,
and 0.7 for 25 that it does not."""


def fit_projector(
    opened: OpenedModel,
    samples: Sequence[Sample],
    device: torch.device,
    seed: int,
    on_note: Callable[[str], None] = lambda note: None,
) -> None:
    """Draw the projector again and fit it to the phrases of the samples; notes what is done and what was reached.

    What tells phrases apart comes to count as much as anything, after Fisher's linear discriminant; then each unit of
    both layers gets mean 0 and variance 1, as in Krähenbühl et al. 2016 (arXiv 1511.06856). Single images are asked
    about, of clips their frames. Computes on `device`, where the model stays, in eval mode. SettingError for fewer than
    two phrases or a question that cannot be asked, TrainingError where the model does not tell them apart at all; errors
    as for `load_item`.
    """
    known = _phrases(samples)
    phrases = known[:MOST_PHRASES]
    places = _places(len(samples), len(phrases), len(opened.processor.spec.prompt.questions))
    distinct = np.unique(places)
    which = f"{len(phrases)}" if phrases == known else f"the first {len(phrases)} of {len(known)}"
    on_note(f"fitting a projector to {which} phrases, each asked about {len(distinct)} images")
    shown = torch.from_numpy(np.isin(places, distinct[HELD_OUT - 1 :: HELD_OUT]))
    model = opened.model.to(device).eval()
    with torch.no_grad():
        states = seg_states(opened, [samples[place] for place in places], phrases).float()
        fitted_to, others = states[~shown], states[shown] if shown.any() else states
        before = likeness(model.projector(others))
        first, second = model.projector.linear_1, model.projector.linear_2
        generator = torch.Generator().manual_seed(seed)
        for layer in (first, second):
            _redraw(layer, generator)
        first.weight.copy_(first.weight @ _set_apart(fitted_to))
        _standardize(first, fitted_to.flatten(0, 1))
        _standardize(second, torch.relu(first(fitted_to.flatten(0, 1))))
        after = likeness(model.projector(others))
    if not np.isfinite(after):
        raise TrainingError(
            "projector: fitted cannot set the phrases apart: the language model answers all of them from one state"
        )
    on_note(
        f"projector fitted: the mean cosine between the prompts of two phrases is {after:.2f}, and was {before:.2f}"
        + (", about images that it was not fitted to" if shown.any() else "")
        + (": THEY ARE STILL ALIKE" if after > TOO_ALIKE else "")
        + ("; IT TOLD THEM APART BEFORE, which is lost: leave projector at kept" if before < APART else "")
    )


def _phrases(samples: Sequence[Sample]) -> tuple[str, ...]:
    """Those of the samples in order of first appearance, without spaces around them, which no question has."""
    phrases = tuple(dict.fromkeys(phrase.strip() for sample in samples for phrase in sample.prompts))
    if len(phrases) < 2:
        raise SettingError(
            f"projector: fitted sets phrases apart, but the training images have only {', '.join(phrases) or 'none'}; "
            "leave it out"
        )
    return phrases


def _places(samples: int, phrases: int, questions: int) -> Int64[np.ndarray, " i"]:
    """Which samples are asked about, spread over all; where they are few, each several times, but no question twice."""
    count = min(max(FEWEST_IMAGES, QUESTIONS // phrases), samples * questions)
    return np.linspace(0, samples - 1, count).round().astype(np.int64)


def seg_states(opened: OpenedModel, samples: Sequence[Sample], phrases: Sequence[str]) -> torch.Tensor:
    """float (i, n, hidden): what the projector reads of i samples and n phrases, answered with [SEG].

    The template's questions take turns, so that what differs between them does not look like what differs between
    phrases.
    """
    found = []
    for which, sample in enumerate(samples):
        item = load_item(sample)
        parts = [tuple(phrases[first : first + AT_ONCE]) for first in range(0, len(phrases), AT_ONCE)]
        asked = [Item(item.id, item.frames, part) for part in parts]
        found.append(torch.cat([_states_of(opened, each, which) for each in asked]))
    return torch.stack(found)


def _states_of(opened: OpenedModel, item: Item, which: int) -> torch.Tensor:
    """float (n, hidden): of the prompts of an image, all asked by the template's question of that number."""
    model = opened.model
    reset_rope(model.vlm)
    batch = opened.processor.collate([item], [which] * len(item.prompts))
    batch = batch.to(model.projector.linear_1.weight.device)
    inputs = embed_batch(model.vlm, batch)
    states, _ = prefill(model.vlm, inputs, batch, model.seg_before_norm, DynamicCache())
    return states.seg[batch.input_ids[:, -states.seg.shape[1] :] == model.seg_id]


def _set_apart(states: torch.Tensor) -> torch.Tensor:
    """(hidden, hidden): what takes states (i, n, hidden) of n phrases to where phrases, and nothing else, lie apart.

    All directions are whitened and then weighed by the share of their variance that is between phrases: that within
    one, from image to image and from question to question, goes.
    """
    centerd = (states - states.mean(dim=(0, 1))).double().cpu()
    means = centerd.mean(dim=0)
    covariance = torch.einsum("ind,ine->de", centerd, centerd) / (centerd.shape[0] * centerd.shape[1])
    variances, directions = torch.linalg.eigh(covariance)
    scales = (variances.clamp(min=0) + RIDGE * variances.mean()).rsqrt()
    whitening = directions * scales @ directions.T
    between = whitening @ (means.T @ means / len(means)) @ whitening
    return (between @ whitening).to(states)


def _redraw(layer: nn.Linear, generator: torch.Generator) -> None:
    """Random weights that keep the variance of what a ReLU gives, and biases of 0."""
    weight = torch.empty(layer.weight.shape)  # on the CPU, for the same numbers on any device
    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    layer.weight.copy_(weight)
    nn.init.zeros_(layer.bias)


def _standardize(layer: nn.Linear, inputs: torch.Tensor) -> None:
    """Give each output of `inputs` (m, d) mean 0 and variance 1; an output that never differs is then not finite."""
    outputs = layer(inputs)
    spread = outputs.std(dim=0)
    layer.weight.div_(spread[:, None])
    layer.bias.sub_(outputs.mean(dim=0)).div_(spread)


def likeness(prompts: torch.Tensor) -> float:
    """Mean cosine between the prompts (i, n, c) of two phrases about one image."""
    unit = nn.functional.normalize(prompts.float(), dim=-1)
    cosines = unit @ unit.transpose(-1, -2)
    apart = ~torch.eye(cosines.shape[-1], dtype=torch.bool, device=cosines.device)
    return cosines[:, apart].mean().item()
