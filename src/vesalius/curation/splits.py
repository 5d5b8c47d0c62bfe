"""Split a dataset into training, validation and test parts, or into folds, without a common patient, clip or image."""

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
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.grouping import group_of
from vesalius.data.perceptual_hash import ImageHashes, hash_image, near_pairs
from vesalius.data.writers import vesalius_json
from vesalius.errors import DataError, SettingError
from vesalius.files import check_outside, check_replaceable, replacing, write_json
from vesalius.types import Sample

PARTS = {2: ("train", "val"), 3: ("train", "val", "test")}
"""Number of fractions -> names of the parts."""

MARKER = "split.json"

AREA_BINS = 5
"""Number of quantile bins of the mask area, for stratification."""


@dataclass(frozen=True)
class ImageSummary:
    """Properties of an image that determine a split."""

    hashes: ImageHashes
    area: float | None
    """Fraction of the image covered by the union of its masks; None if it is not annotated."""
    phrases: tuple[str, ...]
    """Phrases with a non-empty mask."""


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
    """Write `images/`, an annotation file for each part and `split.json`; returns the record with counts per part.

    Give either `fractions` (two: train, val; three: train, val, test) or a number of `folds`, each with a train and a
    val part. `group` is only recorded: the samples already have their groups. Groups, clips, duplicates and near
    duplicates stay together. The same samples and seed give the same bytes. Raises SettingError for fractions that do
    not sum to 1 and for fewer independent groups than parts, OutputError if `out` contains anything but a split.
    """
    targets = _part_fractions(fractions, folds)
    _check_out(dataset, out)
    samples = dataset.samples
    summaries: list[ImageSummary] = []
    with FrameReader() as reader:
        for sample in samples:
            summaries.append(summarize_image(sample, reader))
            if on_progress is not None:
                on_progress(len(summaries))
    clusters, notes = merge_groups(samples, summaries)
    n_clusters = int(clusters.max()) + 1
    if n_clusters < len(targets):
        raise SettingError(
            f"{dataset.name}: only {n_clusters} independent groups for {len(targets)} parts; ask for fewer parts",
            code="too_few_groups",
        )
    chosen = _assign_parts(clusters, summaries, targets, seed)[clusters]
    names = [f"fold{i + 1}" for i in range(folds)] if folds else PARTS[len(fractions)]
    base = {name: np.flatnonzero(chosen == i).tolist() for i, name in enumerate(names)}
    check_leaks(base, samples, summaries)
    parts = _fold(base) if folds else base
    table = {name: _describe(members, samples, summaries) for name, members in parts.items()}
    record = {
        "data": dataset.name,
        "seed": seed,
        "fractions": list(fractions) or None,
        "folds": folds or None,
        "group": group,
        "notes": [*dataset.notes, *notes],
        "stratification": {"all": _describe(range(len(samples)), samples, summaries), **table},
    }
    rows = {name: [_row(samples[i], summaries[i]) for i in members] for name, members in parts.items()}
    with replacing(out) as folder:
        placed = copy_images(samples, folder)
        for name, members in parts.items():
            vesalius_json.write(folder / f"annotations.{name}.json", [placed[i] for i in members])
        write_json(folder / MARKER, {**record, "parts": rows})
    return {**record, "out": str(out), "parts": table}


def summarize(result: Mapping[str, Any]) -> Iterator[str]:
    """The result of `split_dataset` as text lines for the terminal: one per part, then the notes."""
    for name, part in result["parts"].items():
        area = "" if part["mean_area"] is None else f"  mean area {part['mean_area']:.4f}"
        phrases = "  ".join(f"{phrase} {n}" for phrase, n in part["phrases"].items())
        yield f"{name:<12}{part['images']} images  {part['groups']} groups{area}  {phrases}".rstrip()
    yield from result["notes"]


def summarize_image(sample: Sample, reader: FrameReader | None = None) -> ImageSummary:
    """Hashes, mask area and phrases of an image; errors as in `load_item`."""
    item = load_item(sample, reader)
    masks = np.zeros((0, *item.size), bool) if item.masks is None else item.masks[:, 0]
    phrases = tuple(phrase for phrase, mask in zip(item.prompts, masks, strict=item.masks is not None) if mask.any())
    area = None if item.masks is None else float(masks.any(axis=0).mean())
    return ImageSummary(hash_image(item.frames[0]), area, phrases)


def merge_groups(
    samples: Sequence[Sample], summaries: Sequence[ImageSummary]
) -> tuple[Int64[np.ndarray, " n"], list[str]]:
    """(cluster index of each sample, notes); all samples of a cluster must be in the same part.

    Samples with the same group, clip or pixels, and near-duplicate images are in the same cluster.
    """
    pairs = []
    for key in (group_of, lambda sample: sample.sequence or sample.id):
        pairs += _equal_pairs([key(sample) for sample in samples])
    n_stated, _ = _components(len(samples), pairs)
    same = _equal_pairs([each.hashes.pixel_hash for each in summaries])
    near = _near_pairs(summaries)
    n_clusters, clusters = _components(len(samples), [*pairs, *same, *near])
    notes = []
    if same or near:
        merged = (
            f", so {n_stated} groups are merged into {n_clusters}"
            if n_clusters < n_stated
            else "; no group has to be merged with another"
        )
        notes.append(
            f"duplicate images: {len(same)}; near-duplicate pairs: {len(near)}; each pair and its groups stay in one "
            f"part{merged}"
        )
    return clusters, notes


def check_leaks(
    parts: Mapping[str, Sequence[int]], samples: Sequence[Sample], summaries: Sequence[ImageSummary]
) -> None:
    """Raise DataError (`group_leak`, `image_leak`) if two parts share a group, a clip, an image or a near duplicate."""
    part_of = {index: name for name, members in parts.items() for index in members}
    found = {
        "group": _equal_pairs([group_of(sample) for sample in samples]),
        "sequence": _equal_pairs([sample.sequence or sample.id for sample in samples]),
        "image": _equal_pairs([each.hashes.pixel_hash for each in summaries]),
        "perceptual hash": _near_pairs(summaries),
    }
    for what, pairs in found.items():
        for i, j in pairs:
            if part_of[i] != part_of[j]:
                raise DataError(
                    f"{samples[i].id} in {part_of[i]} and {samples[j].id} in {part_of[j]} have the same {what}; "
                    "nothing was written",
                    code="group_leak" if what in ("group", "sequence") else "image_leak",
                )


def _equal_pairs(keys: Sequence[str]) -> list[tuple[int, int]]:
    """(first index with the key, index) for each repeated key."""
    first: dict[str, int] = {}
    return [(first[key], i) for i, key in enumerate(keys) if first.setdefault(key, i) != i]


def _near_pairs(summaries: Sequence[ImageSummary]) -> list[tuple[int, int]]:
    """Index pairs of near duplicates with different pixels."""
    found = [pair for some in near_pairs([each.hashes for each in summaries]) for pair in some.T.tolist()]
    return [(i, j) for i, j in found if summaries[i].hashes.pixel_hash != summaries[j].hashes.pixel_hash]


def _components(n: int, pairs: Sequence[tuple[int, int]]) -> tuple[int, np.ndarray]:
    """(number of connected components of `n` nodes, component of each node), numbered by first appearance."""
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    n_sets, names = connected_components(coo_array((np.ones(len(rows)), (rows, columns)), (n, n)), False)
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    return n_sets, np.argsort(np.argsort(first))[inverse].astype(np.int64)


def _assign_parts(
    clusters: np.ndarray, summaries: Sequence[ImageSummary], fractions: Sequence[float], seed: int
) -> np.ndarray:
    """Index of the part assigned to each cluster."""
    phrases = sorted({phrase for each in summaries for phrase in each.phrases})
    area = np.array([each.area or 0.0 for each in summaries])
    annotated = np.array([each.area is not None for each in summaries])
    edges = np.quantile(area[annotated], np.arange(1, AREA_BINS) / AREA_BINS) if annotated.any() else []
    bins = np.where(annotated, np.searchsorted(edges, area), AREA_BINS)
    flags = np.column_stack(
        [np.eye(AREA_BINS + 1)[bins], [[phrase in each.phrases for phrase in phrases] for each in summaries]]
    )
    labels = np.zeros((int(clusters.max()) + 1, flags.shape[1]), dtype=np.int64)
    np.add.at(labels, clusters, flags.astype(np.int64))
    sizes = np.bincount(clusters).astype(np.int64)
    parts = stratify(sizes, labels, fractions, seed)
    amounts = np.bincount(clusters, area) / max(float(area.mean()), 1e-9)
    return improve(parts, sizes, np.column_stack([labels, amounts, sizes]), fractions, seed)


def _part_fractions(fractions: Sequence[float], folds: int) -> list[float]:
    if bool(fractions) == bool(folds):
        raise SettingError("give either --fractions or --folds", code="conflicting_settings", field="fractions")
    if folds:
        if folds < 2:
            raise SettingError(
                f"{folds} is not a possible number of folds; give at least 2", code="bad_value", field="folds"
            )
        return [1 / folds] * folds
    if len(fractions) not in PARTS:
        raise SettingError(
            f"give 2 fractions (train, val) or 3 (train, val, test), not {len(fractions)}",
            code="bad_value",
            field="fractions",
        )
    if not all(fraction > 0 for fraction in fractions) or abs(sum(fractions) - 1) > 1e-6:
        shown = " + ".join(f"{fraction:g}" for fraction in fractions)
        raise SettingError(
            f"the fractions must be above 0 and sum to 1: {shown} is {sum(fractions):g}",
            code="bad_value",
            field="fractions",
        )
    return list(fractions)


def _check_out(dataset: Dataset, out: Path) -> None:
    check_outside(out, dataset.root)
    names = {file.name for file in out.glob("annotations.*.json")} if out.is_dir() else set()
    check_replaceable(out, "split", {MARKER, "images", *names}, MARKER)


def _fold(base: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Parts `foldN.val` (the fold itself) and `foldN.train` (all other folds)."""
    every = sorted(index for members in base.values() for index in members)
    parts: dict[str, list[int]] = {}
    for name, members in base.items():
        parts[f"{name}.train"] = sorted(set(every) - set(members))
        parts[f"{name}.val"] = members
    return parts


def _row(sample: Sample, summary: ImageSummary) -> dict[str, str]:
    return {
        "id": sample.id,
        "group": group_of(sample),
        "image_sha256": summary.hashes.pixel_hash,
        "perceptual_hash": summary.hashes.perceptual_hash,
    }


def _describe(members: Sequence[int], samples: Sequence[Sample], summaries: Sequence[ImageSummary]) -> dict[str, Any]:
    areas = [area for i in members if (area := summaries[i].area) is not None]
    phrases = Counter(phrase for i in members for phrase in summaries[i].phrases)
    return {
        "images": len(members),
        "groups": len({group_of(samples[i]) for i in members}),
        "mean_area": round(float(np.mean(areas)), 6) if areas else None,
        "phrases": dict(sorted(phrases.items())),
    }
