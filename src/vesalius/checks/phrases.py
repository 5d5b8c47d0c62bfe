"""Findings about a whole split: phrases, polygon notation, groups and sizes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from vesalius.checks.findings import finding
from vesalius.checks.masks import compare_sizes, size_remedy
from vesalius.data.dataset import Dataset
from vesalius.masks import Size
from vesalius.names import count_of, list_names
from vesalius.types import Absent, Finding, Polygons, Sample


def counts(samples: Sequence[Sample]) -> dict[str, Any]:
    """Counts of a dataset for JSON; an image in several splits or folds counts once.

    Keys: `images`, `pairs` (image x phrase), `objects`, `absent` (pairs whose object is not in the image), `groups`,
    `phrases` (phrase -> number of images, in descending order).
    """
    samples = list({(sample.image, sample.frame): sample for sample in reversed(samples)}.values())[::-1]
    targets = [objects for sample in samples for objects in sample.masks or ()]
    drawn = [sum(not isinstance(each, Absent) for each in objects) for objects in targets]
    stated = {sample.group for sample in samples if sample.group is not None}
    alone = sum(sample.group is None for sample in samples)
    phrases = Counter(prompt for sample in samples for prompt in sample.prompts)
    return {
        "images": len(samples),
        "pairs": sum(phrases.values()),
        "objects": sum(drawn),
        "absent": sum(n == 0 for n in drawn),
        "groups": len(stated) + alone,
        "phrases": dict(phrases.most_common()),
    }


def check_phrases(dataset: Dataset, file: str) -> list[Finding]:
    """At most one finding `repeated_phrase` and one `mixed_nesting`."""
    findings = []
    if dataset.merged:
        n = len(dataset.merged)
        message = f"{count_of(n, 'image')} {'has' if n == 1 else 'have'} several objects under one phrase"
        location = list_names(dataset.merged)
        findings.append(finding("repeated_phrase", file, location, message, samples=dataset.merged))
    flat, nested = (_with_polygons(dataset.samples, flat) for flat in (True, False))
    if flat and nested:
        message = (
            f"{count_of(sum(flat.values()), 'object')} in {count_of(len(flat), 'image')} are written as one flat list, "
            f"{count_of(sum(nested.values()), 'object')} in {count_of(len(nested), 'image')} as lists of lists"
        )
        rare = min(flat, nested, key=len)
        findings.append(finding("mixed_nesting", file, list_names(rare), message, samples=rare))
    return findings


def check_groups(dataset: Dataset, file: str) -> list[Finding]:
    """At most one finding `no_groups`."""
    alone = [sample.id for sample in dataset.samples if sample.group is None]
    if not alone:
        return []
    message = (
        f"{len(alone)} of {count_of(len(dataset.samples), 'image')} "
        f"{'has' if len(alone) == 1 else 'have'} no patient or sequence: each is its own "
        "group, and splits cannot keep frames of one patient together"
    )
    return [finding("no_groups", file, "", message)]


def check_group_leaks(parts: dict[str, Dataset]) -> list[Finding]:
    """Findings `group_leak`: one for each patient or sequence in several splits."""
    members: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for split, dataset in parts.items():
        for sample in dataset.samples:
            if sample.group is not None:
                members[sample.group].setdefault(split, []).append(sample.id)
    findings = []
    for group, splits in members.items():
        if len(splits) > 1:
            counted = ", ".join(f"{count_of(len(names), 'image')} in {split}" for split, names in splits.items())
            root = next(iter(parts.values())).root
            samples = [name for names in splits.values() for name in names]
            message = f"is in {len(splits)} splits: {counted}"
            findings.append(finding("group_leak", root, f"group {group}", message, samples=samples))
    return findings


def check_sizes(drawn: Iterable[tuple[str, Size, Size]], n: int, file: str) -> list[Finding]:
    """Summary findings `size_mismatch`: one for each pair of sizes that several samples of a split have.

    `drawn` lists (id, size of the annotation, size of the image); the split has `n` samples.
    """
    alike = defaultdict(list)
    for name, stated, real in drawn:
        alike[stated, real].append(name)
    findings = []
    for (stated, real), names in alike.items():
        if len(names) > 1:
            message = f"{len(names)} of {n} entries were drawn at {compare_sizes(stated, real)}"
            remedy = size_remedy(stated, real)
            findings.append(finding("size_mismatch", file, "", message, remedy=remedy, samples=names))
    return findings


def check_reach(reach: Sequence[tuple[str, float]], n: int, file: str) -> list[Finding]:
    """Summary finding `outside_image` of a split of `n` samples; `reach` lists (id, largest coordinate / side)."""
    if len(reach) < 2:
        return []
    farthest = max(ratio for _, ratio in reach)
    message = (
        f"{len(reach)} of {n} entries have coordinates outside their image, up to {farthest:.4g} times its side; "
        "if they were drawn on copies of another size, entries inside their image are also wrong"
    )
    return [finding("outside_image", file, "", message, samples=[name for name, _ in reach])]


def _with_polygons(samples: Iterable[Sample], flat: bool) -> dict[str, int]:
    """Id -> number of polygon objects in flat or nested notation; samples without are omitted."""
    found = {
        sample.id: sum(
            isinstance(each, Polygons) and each.flat == flat for objects in sample.masks or () for each in objects
        )
        for sample in samples
    }
    return {name: n for name, n in found.items() if n}
