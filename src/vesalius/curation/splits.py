"""A dataset cut into training, validation and test parts, or folds, none of which knows a patient of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vesalius.curation.stratification import improve, stratify
from vesalius.data.copying import copy_images
from vesalius.data.dataset import Dataset, load_item
from vesalius.data.grouping import group_of
from vesalius.data.perceptual_hash import ImageHashes, hash_image, near_pairs
from vesalius.data.writers import vesalius_json
from vesalius.errors import DataError, SettingError
from vesalius.files import check_outside, check_replaceable, replacing, write_json
from vesalius.types import Sample

PARTS = {2: ("train", "val"), 3: ("train", "val", "test")}
"""How the parts are called, by how many fractions are given."""

MARKER = "split.json"

AREA_BINS = 5
"""Images are sorted by the share that their masks cover into as many classes of equal size."""


@dataclass(frozen=True)
class Seen:
    """What a split has to know of an image."""

    hashes: ImageHashes
    area: float | None
    """Share of the image that its masks cover together; None where it is not annotated."""
    phrases: tuple[str, ...]
    """Those of which the mask is not empty."""


def split_dataset(
    dataset: Dataset,
    out: Path,
    *,
    fractions: Sequence[float] = (),
    folds: int = 0,
    seed: int = 0,
    group: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Write `images/`, an annotation file for each part and `split.json`; returns that, with numbers for rows.

    Either `fractions` (two: train, val; three: train, val, test) or a number of `folds`, each with a train and a val
    part. `group` is only written down: the samples have their groups already. Groups, clips, and images that are the
    same or nearly so stay together. The same samples and seed give the same bytes. Raises SettingError for fractions
    that are no whole and for fewer groups than parts, OutputError where `out` holds something else than a split.
    """
    shares = _check_shares(fractions, folds)
    _check_out(dataset, out)
    samples, seen = dataset.samples, []
    for sample in samples:
        seen.append(look_at(sample))
        if on_progress is not None:
            on_progress(len(seen))
    units, notes = unite(samples, seen)
    n_units = int(units.max()) + 1
    if n_units < len(shares):
        raise SettingError(
            f"{dataset.name}: groups that share no image: {n_units}; they cannot fill {len(shares)} parts, so ask for "
            "fewer"
        )
    chosen = _share_out(units, seen, shares, seed)[units]
    base = {name: np.flatnonzero(chosen == i).tolist() for i, name in enumerate(_names(fractions, folds))}
    check_leaks(base, samples, seen)
    parts = _fold(base) if folds else base
    table = {name: _describe(members, samples, seen) for name, members in parts.items()}
    record = {
        "data": dataset.name,
        "seed": seed,
        "fractions": list(fractions) or None,
        "folds": folds or None,
        "group": group,
        "notes": [*dataset.notes, *notes],
        "stratification": {"all": _describe(range(len(samples)), samples, seen), **table},
    }
    rows = {name: [_row(samples[i], seen[i]) for i in members] for name, members in parts.items()}
    with replacing(out) as folder:
        placed = copy_images(samples, folder)
        for name, members in parts.items():
            vesalius_json.write(folder / f"annotations.{name}.json", [placed[i] for i in members])
        write_json(folder / MARKER, {**record, "parts": rows})
    return {**record, "out": str(out), "parts": table}


def summarize(result: Mapping[str, Any]) -> Iterator[str]:
    """Lines for a terminal of what `split_dataset` gave: a line a part, then its notes."""
    for name, part in result["parts"].items():
        area = "" if part["mean_area"] is None else f"  mean area {part['mean_area']:.4f}"
        phrases = "  ".join(f"{phrase} {n}" for phrase, n in part["phrases"].items())
        yield f"{name:<12}{part['images']} images  {part['groups']} groups{area}  {phrases}".rstrip()
    yield from result["notes"]


def look_at(sample: Sample) -> Seen:
    """What a split has to know of an image; errors as `load_item` raises them."""
    item = load_item(sample)
    masks = np.zeros((0, *item.size), bool) if item.masks is None else item.masks[:, 0]
    phrases = tuple(
        phrase for phrase, mask in zip(item.prompts, masks, strict=item.masks is not None) if mask.any()
    )
    area = None if item.masks is None else float(masks.any(axis=0).mean())
    return Seen(hash_image(item.frames[0]), area, phrases)


def unite(samples: Sequence[Sample], seen: Sequence[Seen]) -> tuple[Int64[np.ndarray, " n"], list[str]]:
    """The unit of each sample, counted from 0, and notes: what must not be torn apart has the same unit.

    That is a group, a clip, the same pixels, and images that nearly look the same.
    """
    pairs = []
    for key in (group_of, lambda sample: sample.sequence or sample.id):
        pairs += _equal_pairs([key(sample) for sample in samples])
    n_stated, _ = _components(len(samples), pairs)
    same = _equal_pairs([each.hashes.pixel_hash for each in seen])
    near = _near_pairs(seen)
    n_units, units = _components(len(samples), [*pairs, *same, *near])
    notes = []
    if same or near:
        notes.append(
            f"images that are there twice: {len(same)}; pairs that nearly look the same: {len(near)}; they stay in one "
            f"part, with all of their groups: {n_stated} groups are divided as {n_units}"
        )
    return units, notes


def check_leaks(parts: Mapping[str, Sequence[int]], samples: Sequence[Sample], seen: Sequence[Seen]) -> None:
    """Raise DataError (`leak`) where two parts have a group, a clip, an image or nearly an image in common."""
    part_of = {index: name for name, members in parts.items() for index in members}
    found = {
        "group": _equal_pairs([group_of(sample) for sample in samples]),
        "sequence": _equal_pairs([sample.sequence or sample.id for sample in samples]),
        "image": _equal_pairs([each.hashes.pixel_hash for each in seen]),
        "perceptual hash": _near_pairs(seen),
    }
    for what, pairs in found.items():
        for i, j in pairs:
            if part_of[i] != part_of[j]:
                raise DataError(
                    f"{samples[i].id} in {part_of[i]} and {samples[j].id} in {part_of[j]} have the same {what}; "
                    "nothing was written",
                    code="image_leak",
                )


def _equal_pairs(keys: Sequence[str]) -> list[tuple[int, int]]:
    """Each index with the first of the same key."""
    first: dict[str, int] = {}
    return [(first[key], i) for i, key in enumerate(keys) if first.setdefault(key, i) != i]


def _near_pairs(seen: Sequence[Seen]) -> list[tuple[int, int]]:
    """Pairs that nearly look the same, and are not."""
    found = [pair for some in near_pairs([each.hashes for each in seen]) for pair in some.T.tolist()]
    return [(i, j) for i, j in found if seen[i].hashes.pixel_hash != seen[j].hashes.pixel_hash]


def _components(n: int, pairs: Sequence[tuple[int, int]]) -> tuple[int, np.ndarray]:
    """How many sets the pairs leave of `n`, and which each belongs to, in order of first appearance."""
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    n_sets, names = connected_components(coo_array((np.ones(len(rows)), (rows, columns)), (n, n)), False)
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    return n_sets, np.argsort(np.argsort(first))[inverse].astype(np.int64)


def _share_out(units: np.ndarray, seen: Sequence[Seen], shares: Sequence[float], seed: int) -> np.ndarray:
    """The part of each unit."""
    phrases = sorted({phrase for each in seen for phrase in each.phrases})
    area = np.array([each.area or 0.0 for each in seen])
    annotated = np.array([each.area is not None for each in seen])
    edges = np.quantile(area[annotated], np.arange(1, AREA_BINS) / AREA_BINS) if annotated.any() else []
    bins = np.where(annotated, np.searchsorted(edges, area), AREA_BINS)
    flags = np.column_stack(
        [np.eye(AREA_BINS + 1)[bins], [[phrase in each.phrases for phrase in phrases] for each in seen]]
    )
    labels = np.zeros((int(units.max()) + 1, flags.shape[1]), dtype=np.int64)
    np.add.at(labels, units, flags.astype(np.int64))
    sizes = np.bincount(units).astype(np.int64)
    parts = stratify(sizes, labels, shares, seed)
    amounts = np.bincount(units, area) / max(float(area.mean()), 1e-9)
    return improve(parts, sizes, np.column_stack([labels, amounts, sizes]), shares, seed)


def _check_shares(fractions: Sequence[float], folds: int) -> list[float]:
    if bool(fractions) == bool(folds):
        raise SettingError("give either fractions or a number of folds")
    if folds:
        if folds < 2:
            raise SettingError(f"{folds} folds cannot be made; give at least 2")
        return [1 / folds] * folds
    if len(fractions) not in PARTS:
        raise SettingError(f"give 2 fractions (train, val) or 3 (train, val, test), not {len(fractions)}")
    if not all(fraction > 0 for fraction in fractions) or abs(sum(fractions) - 1) > 1e-6:
        shown = " + ".join(f"{fraction:g}" for fraction in fractions)
        raise SettingError(f"the fractions must be above 0 and sum to 1: {shown} is {sum(fractions):g}")
    return list(fractions)


def _check_out(dataset: Dataset, out: Path) -> None:
    check_outside(out, dataset.root)
    names = {file.name for file in out.glob("annotations.*.json")} if out.is_dir() else set()
    check_replaceable(out, "split", {MARKER, "images", *names}, MARKER)


def _names(fractions: Sequence[float], folds: int) -> Sequence[str]:
    return [f"fold{i + 1}" for i in range(folds)] if folds else PARTS[len(fractions)]


def _fold(base: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Each fold once as `foldN.val`, with all others as `foldN.train`."""
    every = sorted(index for members in base.values() for index in members)
    parts: dict[str, list[int]] = {}
    for name, members in base.items():
        parts[f"{name}.train"] = sorted(set(every) - set(members))
        parts[f"{name}.val"] = members
    return parts


def _row(sample: Sample, seen: Seen) -> dict[str, str]:
    return {
        "id": sample.id,
        "group": group_of(sample),
        "image_sha256": seen.hashes.pixel_hash,
        "perceptual_hash": seen.hashes.perceptual_hash,
    }


def _describe(members: Sequence[int], samples: Sequence[Sample], seen: Sequence[Seen]) -> dict[str, Any]:
    areas = [area for i in members if (area := seen[i].area) is not None]
    phrases = Counter(phrase for i in members for phrase in seen[i].phrases)
    return {
        "images": len(members),
        "groups": len({group_of(samples[i]) for i in members}),
        "mean_area": round(float(np.mean(areas)), 6) if areas else None,
        "phrases": dict(sorted(phrases.items())),
    }
