"""All metrics of one image and phrase: the ordered table `METRICS`, and `score`, which computes them together.

Boundaries, distances, skeletons and components are computed once and shared. Masks are cropped to their common bounding
box first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Bool

from vesalius.evaluation import centerline, overlap, surface
from vesalius.evaluation.centerline import WIDTHS, skeleton_recall_of_width
from vesalius.evaluation.overlap import Confusion, confusion
from vesalius.evaluation.shape import Shape
from vesalius.evaluation.surface import Spacing, SurfaceDistances, surface_distances
from vesalius.masks import Size

OVERLAP: Mapping[str, Callable[[Confusion], float | None]] = {
    **overlap.BASIC_METRICS,
    "specificity": overlap.specificity,
    "balanced_accuracy": overlap.balanced_accuracy,
}
TOPOLOGY: Mapping[str, Callable[[Shape, Shape], float | None]] = {
    "cldice": centerline.cldice,
    "topology_precision": centerline.topology_precision,
    "topology_sensitivity": centerline.topology_sensitivity,
    "betti0_error": centerline.betti0_error,
    "betti1_error": centerline.betti1_error,
    "breaks": centerline.breaks,
    "skeleton_recall": centerline.skeleton_recall,
}
DISTANCES: Mapping[str, Callable[[SurfaceDistances], float | None]] = {
    "hd_": surface.hd,
    "hd95_": surface.hd95,
    "assd_": surface.assd,
    "nsd_1": partial(surface.nsd, tolerance=1),
    "nsd_2": partial(surface.nsd, tolerance=2),
}
"""By name without the unit, which `score` appends."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Ground truth and prediction of one image, cropped to their bounding box, with the results that metrics share."""

    counts: Confusion
    """Counts over the whole image, or over the region of interest."""
    target: Shape
    prediction: Shape
    size: Size
    """(h, w) of the image, or of the bounding box of the region of interest."""
    spacing_mm: Spacing | None = None

    @classmethod
    def of(
        cls,
        target: Bool[np.ndarray, "h w"],
        prediction: Bool[np.ndarray, "h w"],
        *,
        spacing_mm: Spacing | None = None,
        within: Bool[np.ndarray, "h w"] | None = None,
    ) -> Pair:
        """The pair; pixels outside the region `within` count as outside the image. Raises ValueError as `score`."""
        counts = confusion(target, prediction, within)
        if spacing_mm is not None and not (
            len(spacing_mm) == 2 and all(np.isfinite(step) and step > 0 for step in spacing_mm)
        ):
            raise ValueError(f"spacing_mm must be two positive numbers (row, column); got {spacing_mm}")
        if within is not None:
            region = _box(within)
            within = within[region]
            target, prediction = target[region] & within, prediction[region] & within
        size = target.shape
        box = _box(target | prediction, margin=1)
        known = None if within is None else within[box]
        return cls(counts, Shape(target[box], known), Shape(prediction[box], known), size, spacing_mm)

    @cached_property
    def distances_px(self) -> SurfaceDistances:
        """Distances between the two boundaries in pixels."""
        return surface_distances(self.target, self.prediction, size=self.size)

    @cached_property
    def distances_mm(self) -> SurfaceDistances | None:
        """Distances between the two boundaries in mm; None without spacing."""
        if self.spacing_mm is None:
            return None
        row, column = self.spacing_mm
        if row == column:
            return self.distances_px.scaled(row)
        return surface_distances(self.target, self.prediction, spacing=self.spacing_mm, size=self.size)


def _box(mask: Bool[np.ndarray, "h w"], margin: int = 0) -> tuple[slice, slice]:
    """Bounding box of the mask, enlarged by `margin` pixels as far as the image reaches."""
    sides = []
    for axis in (1, 0):
        used = np.flatnonzero(mask.any(axis=axis))
        low, high = (used[0], used[-1] + 1) if len(used) else (0, 0)
        sides.append(slice(max(0, low - margin), high + margin))
    return sides[0], sides[1]


@dataclass(frozen=True)
class Metric:
    """Title, direction, rule for empty masks and unit of one metric."""

    title: str
    better: Literal["higher", "lower"]
    rule: str
    """Row of the metric in `EMPTY`, the table of empty masks."""
    unit: Literal["", "px", "mm"] = ""
    """"" for ratios and counts."""


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "dice": Metric("Dice", "higher", "dice"),
        "iou": Metric("IoU", "higher", "iou"),
        "precision": Metric("Precision", "higher", "precision"),
        "recall": Metric("Recall", "higher", "recall"),
        "specificity": Metric("Specificity", "higher", "specificity"),
        "accuracy": Metric("Accuracy", "higher", "accuracy"),
        "balanced_accuracy": Metric("Balanced accuracy", "higher", "balanced_accuracy"),
        "cldice": Metric("clDice", "higher", "cldice"),
        "topology_precision": Metric("Topology precision", "higher", "topology_precision"),
        "topology_sensitivity": Metric("Topology sensitivity", "higher", "topology_sensitivity"),
        "betti0_error": Metric("Betti-0 error", "lower", "betti0_error"),
        "betti1_error": Metric("Betti-1 error", "lower", "betti1_error"),
        "breaks": Metric("Breaks", "lower", "breaks"),
        "skeleton_recall": Metric("Skeleton recall", "higher", "skeleton_recall"),
        **{
            f"skeleton_recall_{name}": Metric(
                f"Skeleton recall {title}", "higher", "skeleton_recall_of_width"
            )
            for name, title in zip(WIDTHS, ("to 2 px", "2 to 4 px", "4 to 8 px", "over 8 px"), strict=True)
        },
        "hd_px": Metric("Hausdorff distance", "lower", "hd", "px"),
        "hd95_px": Metric("HD95", "lower", "hd95", "px"),
        "assd_px": Metric("ASSD", "lower", "assd", "px"),
        "nsd_1px": Metric("NSD at 1 px", "higher", "nsd"),
        "nsd_2px": Metric("NSD at 2 px", "higher", "nsd"),
        "hd_mm": Metric("Hausdorff distance", "lower", "hd", "mm"),
        "hd95_mm": Metric("HD95", "lower", "hd95", "mm"),
        "assd_mm": Metric("ASSD", "lower", "assd", "mm"),
        "nsd_1mm": Metric("NSD at 1 mm", "higher", "nsd"),
        "nsd_2mm": Metric("NSD at 2 mm", "higher", "nsd"),
    }
)
"""All metrics of `score`, in the order of tables and files; the only table of metrics in the package."""


def score(
    target: Bool[np.ndarray, "h w"],
    prediction: Bool[np.ndarray, "h w"],
    *,
    spacing_mm: Spacing | None = None,
    within: Bool[np.ndarray, "h w"] | None = None,
) -> dict[str, float | None]:
    """Every metric of `METRICS`, in that order. An undefined metric is None, never NaN or infinite; empty masks: `EMPTY`.

    `spacing_mm` is (row, column); without it all metrics in mm are None. Pixels outside the region of interest `within`
    count as outside the image, and the diagonal is that of the region's bounding box.

    Raises ValueError unless the masks are bool (h, w) of one size, with at least one pixel to count, and the spacing
    is two positive numbers.
    """
    pair = Pair.of(target, prediction, spacing_mm=spacing_mm, within=within)
    values: dict[str, float | None] = {name: metric(pair.counts) for name, metric in OVERLAP.items()}
    values |= {name: metric(pair.target, pair.prediction) for name, metric in TOPOLOGY.items()}
    for name, (low, high) in WIDTHS.items():
        values[f"skeleton_recall_{name}"] = skeleton_recall_of_width(pair.target, pair.prediction, low, high)
    for unit, distances in (("px", pair.distances_px), ("mm", pair.distances_mm)):
        for name, metric in DISTANCES.items():
            values[name + unit] = None if distances is None else metric(distances)
    return {name: values[name] for name in METRICS}
