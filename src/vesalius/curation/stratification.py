"""Stratified assignment of whole groups to the parts of a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

CANDIDATES, MAX_ROUNDS = 200, 10


def stratify(
    sizes: Int64[np.ndarray, " groups"],
    labels: Int64[np.ndarray, "groups labels"],
    fractions: Sequence[float],
    seed: int,
) -> Int64[np.ndarray, " groups"]:
    """Part index of each group; images, and images with each label, follow `fractions` as closely as possible.

    `sizes` holds the number of images of each group, `labels` the number of its images with each label. No part is
    empty, and the number of images of a part differs from its fraction by at most the size of the largest group,
    unless a part would otherwise be empty. `seed` only breaks ties. Raises ValueError for fewer groups than parts.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, On the stratification of multi-label data) with
    groups instead of examples: the rarest label is distributed first, starting with its largest group, and each group
    goes to the part that needs this label most.
    """
    if len(sizes) < len(fractions):
        raise ValueError(f"{len(sizes)} groups cannot fill {len(fractions)} parts")
    lacking = np.outer(fractions, labels.sum(axis=0)).astype(float)
    room = np.asarray(fractions) * sizes.sum()
    left = labels.sum(axis=0)
    tie_break = np.random.default_rng(seed).permutation(len(sizes))
    parts = np.full(len(sizes), -1, dtype=np.int64)
    for n_open in range(len(sizes), 0, -1):
        unassigned = np.flatnonzero(parts < 0)
        label = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin()) if left.any() else None
        wanted = sizes[unassigned] if label is None else labels[unassigned, label]
        group = int(unassigned[np.lexsort((tie_break[unassigned], -sizes[unassigned], -wanted))[0]])
        allowed = _allowed(room, parts, int(sizes[group]), int(sizes.max()), n_open)
        need = np.zeros(len(fractions)) if label is None else lacking[:, label]
        part = int(allowed[np.lexsort((-room[allowed], -need[allowed].round(9)))[0]])
        parts[group] = part
        lacking[part] -= labels[group]
        room[part] -= sizes[group]
        left = left - labels[group]
    return parts


def _allowed(room: np.ndarray, parts: np.ndarray, size: int, largest: int, n_open: int) -> np.ndarray:
    """Indices of the parts that a group of `size` may join; `n_open` groups, including this one, are unassigned.

    The surplus of some parts is missing in others, so the total surplus is limited to the size of the largest group.
    The part with the most room may always take the group: a part with a larger final deficit would have had more room.
    """
    empty = np.flatnonzero([part not in parts for part in range(len(room))])
    if n_open <= len(empty):
        return empty
    excess = np.clip(-room, 0, None)
    after = excess.sum() - excess + np.clip(size - room, 0, None)
    allowed = np.flatnonzero((room > 0) & (after <= largest))
    return allowed if len(allowed) else np.array([int(room.argmax())])


def improve(
    parts: Int64[np.ndarray, " groups"],
    sizes: Int64[np.ndarray, " groups"],
    measures: Float[np.ndarray, "groups measures"],
    fractions: Sequence[float],
    seed: int,
) -> Int64[np.ndarray, " groups"]:
    """The parts after a local search that swaps pairs of groups to bring the sums of `measures` closer to `fractions`.

    The distance is chi-squared, summed over parts and measures. In at most `MAX_ROUNDS` rounds, each group is
    compared with `CANDIDATES` others, sampled by `seed`. A swap must not make a part deviate from its fraction of images
    by more than the size of the largest group or its previous deviation. Measures with a sum of 0 are ignored.
    """
    rng = np.random.default_rng([seed, 1])
    measures = measures[:, measures.sum(axis=0) > 0]
    parts = parts.copy()
    targets = np.outer(fractions, measures.sum(axis=0))
    off = np.stack([measures[parts == part].sum(axis=0) for part in range(len(fractions))]) - targets
    room = np.asarray(fractions) * sizes.sum() - np.bincount(parts, sizes, len(fractions))
    for _ in range(MAX_ROUNDS):
        before = parts.copy()
        for one in rng.permutation(len(parts)):
            others = rng.choice(len(parts), min(CANDIDATES, len(parts)), replace=False)
            others = others[parts[others] != parts[one]]
            here, there = parts[one], parts[others]
            moved, n_moved = measures[others] - measures[one], sizes[others] - sizes[one]
            gain = _chi(off[here], targets[here]) + _chi(off[there], targets[there])
            gain = gain - _chi(off[here] + moved, targets[here]) - _chi(off[there] - moved, targets[there])
            furthest = np.maximum(abs(room[here] - n_moved), abs(room[there] + n_moved))
            gain[furthest > np.maximum(sizes.max(), np.maximum(abs(room[here]), abs(room[there])))] = 0
            if not len(gain) or gain.max() <= 1e-9:
                continue
            best = int(gain.argmax())
            other = others[best]
            off[here] += moved[best]
            off[parts[other]] -= moved[best]
            room[here] -= n_moved[best]
            room[parts[other]] += n_moved[best]
            parts[one], parts[other] = parts[other], parts[one]
        if (parts == before).all():
            break
    return parts


def _chi(off: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.asarray((off**2 / target).sum(axis=-1))
