"""Findings about exact and near duplicates of images, within and across splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from vesalius.checks.findings import finding
from vesalius.checks.measurements import Measurement
from vesalius.data.perceptual_hash import ImageHashes, near_pairs
from vesalius.names import list_names
from vesalius.types import Finding


def check_duplicates(measurements: Sequence[Measurement]) -> list[Finding]:
    """Findings `duplicate_image`, `near_duplicate` and `image_leak`: one for each cluster of similar images.

    Frames of one clip are naturally similar and are not compared. Images of the same split and group are compared for
    equal pixels only.
    """
    same = defaultdict(list)
    for measurement in measurements:
        if measurement.hashes is not None:
            same[measurement.hashes].append(measurement)
    findings = [
        _duplicates("duplicate_image", group, "have the same pixels") for group in same.values() if not _one_clip(group)
    ]
    clips = [f"{_similarity_key(each)}\n{each.split}" for each, *_ in same.values()]
    hashes = list(same)
    for cluster in near_clusters(hashes, clips):
        cluster_images = [each for index in cluster for each in same[hashes[index]]]
        findings.append(_duplicates("near_duplicate", cluster_images, "look almost the same"))
    return findings


def near_clusters(hashes: Sequence[ImageHashes], clips: Sequence[str]) -> list[list[int]]:
    """Clusters of near duplicates (single linkage), as lists of indices; images with equal `clips` are not linked."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(hashes)
    label, clip = np.arange(n), np.unique(clips, return_inverse=True)[1]

    def unlinked(pairs: np.ndarray) -> np.ndarray:
        return (label[pairs[0]] != label[pairs[1]]) & (clip[pairs[0]] != clip[pairs[1]])

    for first, second in near_pairs(hashes, unlinked):
        if len(first):
            links = (np.ones(len(first)), (label[first], label[second]))
            label = connected_components(coo_array(links, shape=(n, n)), directed=False)[1][label]
    clusters = defaultdict(list)
    for index, name in enumerate(label.tolist()):
        clusters[name].append(index)
    return [cluster for cluster in clusters.values() if len(cluster) > 1]


def _similarity_key(measurement: Measurement) -> str:
    """A key that is equal for naturally similar images: those of one group or one clip."""
    if measurement.group is not None:
        return f"group {measurement.group}"
    return f"clip {measurement.sequence}" if measurement.sequence is not None else f"image {measurement.id}"


def _one_clip(group: Sequence[Measurement]) -> bool:
    """Whether the group is a single image, or all its images are frames of one clip."""
    clips = {(each.split, each.sequence) for each in group}
    return len(group) == 1 or (len(clips) == 1 and group[0].sequence is not None)


def _duplicates(code: str, group: Sequence[Measurement], alike: str) -> Finding:
    """The finding for similar images; its code is `image_leak` if they are in several splits."""
    splits = dict.fromkeys(each.split for each in group)
    names = [f"{each.split}: {each.id}" if len(splits) > 1 else each.id for each in group]
    where = f" and are in {len(splits)} splits" if len(splits) > 1 else ""
    return finding(
        "image_leak" if len(splits) > 1 else code,
        group[1].file,
        list_names(names),
        f"{len(group)} images {alike}{where}",
        samples=[each.id for each in group],
    )
