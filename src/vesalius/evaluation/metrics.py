"""All metrics of one image and phrase: the ordered table `METRICS`, and `score`, which computes them together.

Masks are cropped to their common bounding box. Boundaries, distances, skeletons and components are computed once.
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

Direction = Literal["higher", "lower"]
Kind = Literal["overlap", "topology", "distance"]


@dataclass(frozen=True, eq=False)
class Pair:
    """Ground truth and prediction of one image, cropped to their common bounding box; shared results are cached."""

    counts: Confusion
    """Confusion counts over the whole image, or over the region of interest."""
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
        """A pair of masks; pixels outside the region `within` are ignored. Raises the errors of `score`."""
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
    """Bounding box of the mask, enlarged by `margin` pixels and clipped to the image."""
    sides = []
    for axis in (1, 0):
        used = np.flatnonzero(mask.any(axis=axis))
        low, high = (used[0], used[-1] + 1) if len(used) else (0, 0)
        sides.append(slice(max(0, low - margin), high + margin))
    return sides[0], sides[1]


@dataclass(frozen=True)
class Metric:
    """Definition and presentation of one metric."""

    title: str
    better: Direction
    rule: str
    """Row of the metric in `EMPTY`, the table of empty masks."""
    compute: Callable[[Pair], float | None]
    kind: Kind
    unit: Literal["", "px", "mm"] = ""
    """Unit of a distance; "" for ratios and counts."""


def _overlap(title: str, rule: str, metric: Callable[[Confusion], float | None]) -> Metric:
    return Metric(title, "higher", rule, lambda pair: metric(pair.counts), "overlap")


def _topology(title: str, better: Direction, rule: str, metric: Callable[[Shape, Shape], float | None]) -> Metric:
    return Metric(title, better, rule, lambda pair: metric(pair.target, pair.prediction), "topology")


def _distances(unit: Literal["px", "mm"]) -> dict[str, Metric]:
    """Rows of `METRICS` in one unit; NSD is a ratio, and only its tolerance has the unit."""

    def of(metric: Callable[[SurfaceDistances], float | None]) -> Callable[[Pair], float | None]:
        def compute(pair: Pair) -> float | None:
            distances = pair.distances_px if unit == "px" else pair.distances_mm
            return None if distances is None else metric(distances)

        return compute

    nsd_1, nsd_2 = (of(partial(surface.nsd, tolerance=tolerance)) for tolerance in (1, 2))
    return {
        f"hd_{unit}": Metric("Hausdorff distance", "lower", "hd", of(surface.hd), "distance", unit),
        f"hd95_{unit}": Metric("HD95", "lower", "hd95", of(surface.hd95), "distance", unit),
        f"assd_{unit}": Metric("ASSD", "lower", "assd", of(surface.assd), "distance", unit),
        f"nsd_1{unit}": Metric(f"NSD at 1 {unit}", "higher", "nsd", nsd_1, "distance"),
        f"nsd_2{unit}": Metric(f"NSD at 2 {unit}", "higher", "nsd", nsd_2, "distance"),
    }


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "dice": _overlap("Dice", "dice", overlap.dice),
        "iou": _overlap("IoU", "iou", overlap.iou),
        "precision": _overlap("Precision", "precision", overlap.precision),
        "recall": _overlap("Recall", "recall", overlap.recall),
        "specificity": _overlap("Specificity", "specificity", overlap.specificity),
        "accuracy": _overlap("Accuracy", "accuracy", overlap.accuracy),
        "balanced_accuracy": _overlap("Balanced accuracy", "balanced_accuracy", overlap.balanced_accuracy),
        "cldice": _topology("clDice", "higher", "cldice", centerline.cldice),
        "topology_precision": _topology(
            "Topology precision", "higher", "topology_precision", centerline.topology_precision
        ),
        "topology_sensitivity": _topology(
            "Topology sensitivity", "higher", "topology_sensitivity", centerline.topology_sensitivity
        ),
        "betti0_error": _topology("Betti-0 error", "lower", "betti0_error", centerline.betti0_error),
        "betti1_error": _topology("Betti-1 error", "lower", "betti1_error", centerline.betti1_error),
        "breaks": _topology("Breaks", "lower", "breaks", centerline.breaks),
        "skeleton_recall": _topology("Skeleton recall", "higher", "skeleton_recall", centerline.skeleton_recall),
        **{
            f"skeleton_recall_{name}": _topology(
                f"Skeleton recall {title}",
                "higher",
                "skeleton_recall_of_width",
                partial(skeleton_recall_of_width, low=low, high=high),
            )
            for (name, (low, high)), title in zip(
                WIDTHS.items(), ("to 2 px", "2 to 4 px", "4 to 8 px", "over 8 px"), strict=True
            )
        },
        **_distances("px"),
        **_distances("mm"),
    }
)
"""All metrics of `score`, with their functions, in the order of tables and files; a new metric is a row here and in
`EMPTY`."""


def score(
    target: Bool[np.ndarray, "h w"],
    prediction: Bool[np.ndarray, "h w"],
    *,
    spacing_mm: Spacing | None = None,
    within: Bool[np.ndarray, "h w"] | None = None,
) -> dict[str, float | None]:
    """Every metric of `METRICS`, in its order. An undefined metric is None, never NaN or infinite (see `EMPTY`).

    `spacing_mm` is (row, column); without it all metrics in mm are None. Pixels outside the region of interest `within`
    are ignored; the distance to an empty mask is the diagonal of the image, or of the region's bounding box.

    Raises ValueError unless the masks are bool (h, w) of one size, with at least one pixel to count, and the spacing
    is two positive numbers.
    """
    pair = Pair.of(target, prediction, spacing_mm=spacing_mm, within=within)
    return {name: metric.compute(pair) for name, metric in METRICS.items()}
