"""Reinitialization of the projector to separate the embeddings of phrases that are new to the model.

The language model's hidden states at [SEG] are nearly equal for unknown phrases: for 25 names of coronary segments their
mean cosine is 0.88 with the shipped `tiny`, and 0.99 with random weights. A projector trained on other phrases ignores
these small differences, and training ends in prompt collapse: one mask for all phrases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn
from transformers.cache_utils import DynamicCache

from vesalius.data.dataset import load_items
from vesalius.errors import TrainingError
from vesalius.models.checkpoint import OpenedModel
from vesalius.models.vlm import embed_batch, prefill, reset_rope
from vesalius.training.settings import conflict
from vesalius.types import Item, Sample

MOST_PHRASES = 100
"""Maximum number of phrases used for the fit; directions that separate these also separate further phrases."""
QUESTIONS = 400
"""Minimum number of (image, phrase) pairs: with few phrases, more images are used to estimate the variance over images."""
FEWEST_IMAGES = 12
"""Minimum number of images."""
HELD_OUT = 4
"""One of 4 images is held out for evaluation of the fit."""
PHRASES_AT_ONCE = 8
"""Phrases per forward pass of the language model."""
RIDGE = 1e-3
"""Ridge added to each variance, as a fraction of the mean variance, for numerical stability."""
INSEPARABLE = 0.7
"""Mean cosine between prompt embeddings of different phrases above which the fit has failed."""
SEPARATED = 0.5
"""Mean cosine below which the old projector already separates the phrases. The shipped `tiny` has -0.2 for its two
training phrases, and 0.7 for 25 new phrases."""


def fit_projector(
    opened: OpenedModel,
    samples: Sequence[Sample],
    device: torch.device,
    seed: int,
    on_note: Callable[[str], None] = lambda note: None,
) -> None:
    """Reinitialize the projector randomly and fit it to the phrases of the samples; `on_note` receives the result.

    The first layer is multiplied by a whitening matrix and a projection onto the between-phrase directions (Fisher's
    linear discriminant). Then each unit of both layers is normalized to mean 0 and variance 1 (Krähenbühl et al. 2016,
    arXiv 1511.06856). Each prompt uses a single image or frame. The model moves to `device` and stays there in eval mode.
    Raises SettingError for fewer than two phrases, TrainingError if the hidden states of all phrases are equal, and
    DataError as `load_item` does.
    """
    known = _phrases(samples)
    phrases = known[:MOST_PHRASES]
    indices = _image_indices(len(samples), len(phrases), len(opened.processor.spec.prompt.questions))
    distinct = np.unique(indices)
    count = f"{len(phrases)}" if phrases == known else f"the first {len(phrases)} of {len(known)}"
    on_note(f"fitting a projector to {count} phrases on {len(distinct)} images")
    held_out = torch.from_numpy(np.isin(indices, distinct[HELD_OUT - 1 :: HELD_OUT]))
    model = opened.model.to(device).eval()
    with torch.no_grad():
        states = seg_states(opened, [samples[index] for index in indices], phrases).float()
        fitted, tested = states[~held_out], states[held_out] if held_out.any() else states
        before = mean_cosine(model.projector(tested))
        first, second = model.projector.linear_1, model.projector.linear_2
        generator = torch.Generator().manual_seed(seed)
        for layer in (first, second):
            _reinitialize(layer, generator)
        first.weight.copy_(first.weight @ _separation(fitted))
        _standardize(first, fitted.flatten(0, 1))
        _standardize(second, torch.relu(first(fitted.flatten(0, 1))))
        after = mean_cosine(model.projector(tested))
    if not np.isfinite(after):
        raise TrainingError(
            "projector: fitted cannot separate the phrases: the language model has the same hidden state for all of them",
            code="inseparable_phrases",
            field="projector",
        )
    on_note(
        f"projector fitted: mean cosine between the embeddings of two phrases {after:.2f}, before {before:.2f}"
        + (", on held-out images" if held_out.any() else "")
        + (": THE PHRASES ARE STILL NOT SEPARATED" if after > INSEPARABLE else "")
        + ("; THE OLD PROJECTOR SEPARATED THEM: use projector: kept" if before < SEPARATED else "")
    )


def _phrases(samples: Sequence[Sample]) -> tuple[str, ...]:
    """Phrases of the samples in order of first appearance, stripped of surrounding spaces."""
    phrases = tuple(dict.fromkeys(phrase.strip() for sample in samples for phrase in sample.prompts))
    if len(phrases) < 2:
        found = ", ".join(phrases) or "none"
        raise conflict(
            "projector", f"fitted needs two or more phrases, but the data have only {found}; use projector: kept"
        )
    return phrases


def _image_indices(samples: int, phrases: int, questions: int) -> Int64[np.ndarray, " i"]:
    """Evenly spaced sample indices; an index repeats at most once per question of the prompt template."""
    count = min(max(FEWEST_IMAGES, QUESTIONS // phrases), samples * questions)
    return np.linspace(0, samples - 1, count).round().astype(np.int64)


def seg_states(opened: OpenedModel, samples: Sequence[Sample], phrases: Sequence[str]) -> torch.Tensor:
    """Hidden states of the language model at [SEG], float (i, n, hidden), for i samples and n phrases.

    The questions of the prompt template alternate, so that their differences count as within-phrase variance.
    """
    found = []
    for index, item in enumerate(load_items(samples)):
        starts = range(0, len(phrases), PHRASES_AT_ONCE)
        asked = [Item(item.id, item.frames, tuple(phrases[i : i + PHRASES_AT_ONCE])) for i in starts]
        found.append(torch.cat([_states_of(opened, each, index) for each in asked]))
    return torch.stack(found)


def _states_of(opened: OpenedModel, item: Item, question: int) -> torch.Tensor:
    """Hidden states at [SEG], float (n, hidden), for the phrases of one image, with question `question` of the template."""
    model = opened.model
    reset_rope(model.vlm)
    batch = opened.processor.collate([item], [question] * len(item.prompts))
    batch = batch.to(model.projector.linear_1.weight.device)
    inputs = embed_batch(model.vlm, batch)
    states, _ = prefill(model.vlm, inputs, batch, model.seg_before_norm, DynamicCache())
    return states.seg[batch.input_ids[:, -states.seg.shape[1] :] == model.seg_id]


def _separation(states: torch.Tensor) -> torch.Tensor:
    """Matrix (hidden, hidden) that keeps between-phrase variance of states (i, n, hidden) and suppresses other variance.

    All directions are whitened and then weighted by their fraction of between-phrase variance, which suppresses variance
    over images and questions.
    """
    centered = (states - states.mean(dim=(0, 1))).double().cpu()
    means = centered.mean(dim=0)
    covariance = torch.einsum("ind,ine->de", centered, centered) / (centered.shape[0] * centered.shape[1])
    variances, directions = torch.linalg.eigh(covariance)
    scales = (variances.clamp(min=0) + RIDGE * variances.mean()).rsqrt()
    whitening = directions * scales @ directions.T
    between = whitening @ (means.T @ means / len(means)) @ whitening
    return (between @ whitening).to(states)


def _reinitialize(layer: nn.Linear, generator: torch.Generator) -> None:
    """Apply He initialization for ReLU, and set the bias to 0."""
    weight = torch.empty(layer.weight.shape)  # on the CPU, so that every device gets the same numbers
    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    layer.weight.copy_(weight)
    nn.init.zeros_(layer.bias)


def _standardize(layer: nn.Linear, inputs: torch.Tensor) -> None:
    """Rescale the layer so that each unit's output on `inputs` (m, d) has mean 0 and variance 1.

    A unit with constant output becomes NaN or infinite.
    """
    outputs = layer(inputs)
    spread = outputs.std(dim=0)
    layer.weight.div_(spread[:, None])
    layer.bias.sub_(outputs.mean(dim=0)).div_(spread)


def mean_cosine(prompts: torch.Tensor) -> float:
    """Mean cosine between embeddings `prompts` (i, n, c) over all pairs of different phrases on one image."""
    unit = nn.functional.normalize(prompts.float(), dim=-1)
    cosines = unit @ unit.transpose(-1, -2)
    different = ~torch.eye(cosines.shape[-1], dtype=torch.bool, device=cosines.device)
    return cosines[:, different].mean().item()
