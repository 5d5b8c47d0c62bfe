"""`Ensemble`: several models of one kind as one; their probabilities are averaged."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from vesalius.errors import CheckpointError
from vesalius.inference.loaded import LoadedSegmenter
from vesalius.mask_maps import NO_MAPS, Full, LowRes, Maps, Tile, Tiled, average
from vesalius.models.cards import ModelCard, ThresholdOrigin, near_fields
from vesalius.segmenter import Usage
from vesalius.types import Item, Prediction

KIND = "ensemble"
EMPTY_LOGIT = -100.0
"""Logit of a member that answers without [SEG]; its probability is 0."""
T = TypeVar("T")


class Ensemble(LoadedSegmenter):
    """Models whose probabilities are averaged, such as the runs of a cross-validation.

    The probability of a pixel is the mean over the members, each with the maximum over the objects of its answer; a
    member that answers without [SEG] counts with probability 0. The answer has [SEG] if at least half of the members
    say so. The threshold is by default the mean of the members' thresholds. Training and tuning images are those of all
    members, and so are the known phrases. All members are in memory at the same time.
    """

    def __init__(self, members: Sequence[LoadedSegmenter], **settings: Any) -> None:
        """`settings` as for `LoadedSegmenter`; ValueError without members."""
        if not members:
            raise ValueError("an ensemble needs at least one model")
        self.members = tuple(members)
        fingerprint = combine_fingerprints([member.fingerprint for member in members])
        super().__init__(combine_cards([m.model_card for m in members]), fingerprint=fingerprint, **settings)

    @property
    def _settings(self) -> dict[str, Any]:
        return {"members": [member.name for member in self.members], **self.members[0]._settings}

    @property
    def usage(self) -> Usage:
        """The sums of the counters of all members."""
        used = [member.usage for member in self.members]
        cache = sum((Counter(each.cache) for each in used), Counter[str]())
        return Usage(sum(each.batch_halved for each in used), dict(cache))

    def check_prompts(self, prompts: Iterable[str]) -> list[str]:
        """As for each member."""
        given = list(prompts)
        for member in self.members:
            member.check_prompts(given)
        return super().check_prompts(given)

    def _predict_items(self, items: Sequence[Item]) -> list[Prediction]:
        answers = zip(*(member._predict_items(items) for member in self.members), strict=True)
        return [self._combined(of_one) for of_one in answers]

    def _combined(self, answers: Sequence[Prediction]) -> Prediction:
        """The mean of the members' predictions for one prompt on one image."""
        given = [each for each in answers if len(each.maps)]
        first = given[0] if given else answers[0]
        says_seg = 2 * sum(each.says_seg for each in answers) >= len(answers)
        common = replace(
            first, says_seg=says_seg, threshold=self.threshold, cleaning=self.cleaning, answered=_same(answers)
        )
        if 2 * len(given) < len(answers) or not given:
            return replace(common, status="no_seg", maps=NO_MAPS, scores=())
        score = sum(max(each.scores, default=0.0) for each in given) / len(answers)
        maps = average_maps([each.maps for each in answers])
        return replace(common, status="ok", maps=maps, scores=(score,) if first.scores else ())


def _same(answers: Sequence[Prediction]) -> Any:
    """The origin of the answers, if it is one; else ""."""
    origins = {each.answered for each in answers}
    return origins.pop() if len(origins) == 1 else ""


def average_maps(maps: Sequence[Maps]) -> Maps:
    """One map (n = 1) of the mean probability over members; a member without objects counts with probability 0.

    At least one member has objects. ValueError for stored masks, which have no logits.
    """
    first = next(each for each in maps if len(each))
    if isinstance(first, LowRes | Full):
        given = [each.logits for each in maps if isinstance(each, LowRes | Full) and len(each)]
        logits = _mean(given, len(maps))
        return LowRes(logits, first.input_size) if isinstance(first, LowRes) else Full(logits)
    if not isinstance(first, Tiled):
        raise ValueError("stored masks cannot be averaged")
    rows = zip(*(each.tiles for each in maps if isinstance(each, Tiled) and len(each)), strict=True)
    tiles = (Tile(row[0].window, _mean([tile.logits for tile in row], len(maps))) for row in rows)
    return Tiled(tuple(tiles), first.input_size)


def _mean(given: Sequence[np.ndarray], members: int) -> np.ndarray:
    """Logits (1, g, g) of the mean probability of `members` maps; those that are not given have probability 0."""
    unions = [logits.max(axis=0, keepdims=True) for logits in given]
    return average([*unions, *[np.full_like(unions[0], EMPTY_LOGIT)] * (members - len(given))])


def combine_cards(cards: Sequence[ModelCard]) -> ModelCard:
    """The card of an ensemble: the mean threshold; training images, tuning images and phrases of all its models.

    CheckpointError if the models were trained under different windows, because one window shows an image to all of them.
    """

    def all_of(values: Callable[[ModelCard], Iterable[str] | None]) -> tuple[str, ...] | None:
        lists = [values(card) for card in cards]
        known = [each for each in lists if each is not None]
        return tuple(dict.fromkeys(x for each in known for x in each)) if len(known) == len(lists) else None

    windows = {card.window for card in cards}
    if len(windows) > 1:
        raise CheckpointError(
            f"the models of the ensemble were trained with different windows "
            f"({', '.join(sorted(str(window or 'auto') for window in windows))}); train all folds with one data.window",
            code="conflicting_settings",
            field="window",
        )
    return ModelCard(
        kind=KIND,
        threshold=float(np.mean([card.threshold for card in cards])),
        threshold_origin=ThresholdOrigin(how="mean of the members"),
        phrases=all_of(lambda card: card.phrases),
        window=cards[0].window,
        training_images=all_of(lambda card: card.training_images),
        trained_on_unknown=any(card.saw_unknown_images for card in cards),
        tuning_images=all_of(lambda card: card.tuning_images) or (),
        **near_fields(pair for card in cards for pair in card.near_hashes),
    )


def combine_fingerprints(fingerprints: Sequence[str | None]) -> str | None:
    """SHA-256 over the fingerprints of the models, in order; None if one is unknown."""
    if None in fingerprints:
        return None
    return hashlib.sha256("\n".join(map(str, fingerprints)).encode()).hexdigest()
