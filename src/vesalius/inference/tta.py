"""Test-time augmentation: masks are decoded in several views of an image, and the probabilities are averaged.

A view transforms SAM 2's input square, and the decoded map is transformed back. The language model sees only the plain
image: on `tiny` its answer to the flipped image gave the same Dice (docs/prediction.md). Probabilities are averaged,
not logits, so that one confident but wrong view does not dominate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from vesalius.errors import SettingError
from vesalius.inference.tiles import TileSettings
from vesalius.mask_maps import PLAIN, LowRes, average
from vesalius.models.cards import Card, TtaGain
from vesalius.models.cpu_parallel import Decode
from vesalius.models.sam2 import MaskLogits, SegPrompts

VIEWS = {
    "flip": "left to right",
    "scale_0.75": "3/4 of the size, padded with gray",
    "scale_1.33": "4/3 of the size, in four overlapping windows",
}
"""Augmented views. 3/4 of the input side is a whole number of cells in every map."""
UPSAMPLING = 2
"""Resolution of the maps of scaled views, relative to the plain map. With 1 the mean of plain and `scale_1.33` had a
Dice of 0.781 on 20 synthetic angiograms, with 2 0.795, with 4 0.800 (fine-tuned on ARCADE: 0.700, 0.701, 0.700)."""

CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Word boundaries in camel case."""
SIDE_WORDS = re.compile(
    r"(?<![a-zà-ɏ])(?:(?:left|right)(?:most|wards?|sided|hand(?:ed)?)?"
    r"|(?:link|recht)(?:e[mnrs]?|s\w*)|gauches?|droit(?:es?|s)?|(?:izquierd|derech|esquerd|direit)[ao]s?"
    r"|(?:sinistr|destr|dextr)(?:[aeio]|ae|um))(?![a-zà-ɏ])"
    r"|(?<![а-яё])(?:с|на)?(?:лев|прав)[аоуы]|왼|오른|[좌우]측|[左右]",
    re.IGNORECASE,
)
"""Words for left and right in English, German, Dutch, French, Spanish, Portuguese, Italian, Latin, Russian, Korean,
Chinese and Japanese. Other languages, and abbreviations such as LAD, are not recognized: leave flip out for them."""


def choose_views(names: Collection[str]) -> tuple[str, ...]:
    """The named views in the order of `VIEWS`; SettingError for an empty list or an unknown name."""
    if not names or (unknown := [name for name in names if name not in VIEWS]):
        wrong = f"unknown view {unknown[0]!r}" if names else "no view"
        raise SettingError(
            f"test-time augmentation: {wrong}; choose from {', '.join(VIEWS)}", code="bad_value", field="tta"
        )
    return tuple(name for name in VIEWS if name in names)


def check_whole_images(tiles: TileSettings | None) -> None:
    """Raise SettingError if test-time augmentation is combined with tiles."""
    if tiles is not None:
        raise SettingError(
            "test-time augmentation works on whole images; give --tta or --tiles, not both",
            code="conflicting_settings",
            field="tta",
        )


def find_gain(card: Card, tiles: TileSettings | None, name: str) -> TtaGain:
    """Measured gain of test-time augmentation, from the card; SettingError if none was measured, and with tiles."""
    check_whole_images(tiles)
    if card.tta is None:
        raise SettingError(
            f"{name or card.spec.name}: no gain of test-time augmentation was measured for it; run `vesalius tune "
            f"{name or 'MODEL'} DATA --tta {','.join(VIEWS)}` on validation data, or predict without --tta",
            code="no_tta_gain",
            field="tta",
        )
    return card.tta


def check_phrases(prompts: Iterable[str], views: Collection[str]) -> None:
    """Raise SettingError if flip is among the views and a phrase names a side (`SIDE_WORDS`)."""
    sided = [repr(each) for each in prompts if SIDE_WORDS.search(CAMEL_CASE.sub(" ", each))]
    if sided and "flip" in views:
        raise SettingError(
            f"a phrase names a side, which is the other side in a flipped image: {', '.join(dict.fromkeys(sided))}; "
            "leave out the view flip, or test-time augmentation",
            code="side_in_phrase",
            field="prompt",
        )


@dataclass(frozen=True)
class AveragedViews:
    """Logits of each [SEG] in each view, and their average."""

    views: dict[str, np.ndarray]
    """View -> logits in plain-image coordinates, float32 (m, g, g); in scaled views g is `UPSAMPLING` times the plain
    map's side."""
    logits: np.ndarray
    """Logits of the mean probability, float32 (m, g, g)."""
    scores: torch.Tensor
    """Predicted IoU, averaged over the views, float (m,)."""

    def of(self, mine: np.ndarray, input_size: int) -> LowRes:
        """Maps of the [SEG] selected by the boolean index `mine` (m,)."""
        views = {name: maps[mine] for name, maps in self.views.items()}
        return LowRes(self.logits[mine], input_size, views)


def decode_views(
    decode: Decode, squares: Sequence[torch.Tensor], seg: SegPrompts, views: Sequence[str]
) -> AveragedViews:
    """Decode each [SEG] in the plain view and in `views`, one view at a time to limit memory."""
    decoded = {PLAIN: decode(squares, seg)}
    for name in views:
        decoded[name] = DECODE_VIEW[name](decode, squares, seg) if len(seg.row) else decoded[PLAIN]
    maps = {name: each.logits.float().cpu().numpy() for name, each in decoded.items()}
    scores = torch.stack([each.scores for each in decoded.values()]).mean(dim=0)
    return AveragedViews(maps, average(list(maps.values())), scores)


def _flip(decode: Decode, squares: Sequence[torch.Tensor], seg: SegPrompts) -> MaskLogits:
    decoded = decode([square.flip(-1) for square in squares], seg)
    return _with_logits(decoded, decoded.logits.flip(-1))


def _scale_down(decode: Decode, squares: Sequence[torch.Tensor], seg: SegPrompts) -> MaskLogits:
    side = squares[0].shape[-1]
    edge = side // 8
    # padded with 0, the mean color of SAM 2's training images
    decoded = decode([pad(_resize(square, side * 3 // 4), [edge] * 4) for square in squares], seg)
    cells = decoded.logits.shape[-1]
    cut = slice(cells // 8, cells - cells // 8)
    return _with_logits(decoded, _resize(decoded.logits[:, cut, cut].float(), UPSAMPLING * cells))


def _scale_up(decode: Decode, squares: Sequence[torch.Tensor], seg: SegPrompts) -> MaskLogits:
    side = squares[0].shape[-1]
    windows = []
    for down in (0, 1):
        for right in (0, 1):
            rows, columns = _corner(side, down), _corner(side, right)
            decoded = decode([_resize(square[:, rows, columns], side) for square in squares], seg)
            windows.append((down, right, decoded))
    cells = UPSAMPLING * decoded.logits.shape[-1]
    whole = decoded.logits.new_zeros(len(seg.row), cells, cells, dtype=torch.float32)
    weights = torch.zeros_like(whole[0])
    steps = torch.arange(cells * 3 // 4, device=weights.device) + 0.5
    near = torch.minimum(steps, len(steps) - steps)
    # blended like tiles: the weight of a window falls linearly towards its edge
    weight = torch.minimum(near[:, None], near)
    for down, right, decoded in windows:
        rows, columns = _corner(cells, down), _corner(cells, right)
        whole[:, rows, columns] += weight * _resize(decoded.logits.float(), len(steps))
        weights[rows, columns] += weight
    scores = torch.stack([decoded.scores for _, _, decoded in windows]).mean(dim=0)
    return MaskLogits(whole / weights, scores, decoded.candidates[:0], decoded.candidate_scores[:0])


def _corner(length: int, last: int) -> slice:
    return slice(length // 4, length) if last else slice(0, length * 3 // 4)


def _resize(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Maps float (n, s, s) resized to (n, side, side)."""
    return interpolate(maps[None], (side, side), mode="bilinear", antialias=True, align_corners=False)[0]


def _with_logits(decoded: MaskLogits, logits: torch.Tensor) -> MaskLogits:
    # the candidates are dropped, because they lie in the view's coordinates
    return MaskLogits(logits, decoded.scores, decoded.candidates[:0], decoded.candidate_scores[:0])


DECODE_VIEW: dict[str, Callable[[Decode, Sequence[torch.Tensor], SegPrompts], MaskLogits]] = {
    "flip": _flip,
    "scale_0.75": _scale_down,
    "scale_1.33": _scale_up,
}
