"""Metrics of thin structures: clDice, topology precision and sensitivity, Betti errors, breaks, skeleton recall.

Masks are 8-connected, the background is 4-connected. All functions take the two masks as `Shape`, which computes skeleton
and components once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import label

from vesalius.evaluation.empty import Case, apply_rule, case_of
from vesalius.evaluation.shape import Shape
from vesalius.masks import EIGHT_CONNECTED, dilate

WIDTHS: Mapping[str, tuple[float, float]] = {
    "to_2px": (0.0, 2.0),
    "2_to_4px": (2.0, 4.0),
    "4_to_8px": (4.0, 8.0),
    "over_8px": (8.0, np.inf),
}
"""Strata of skeleton recall: low < width <= high in pixels, with the width of `Shape.widths`."""


def topology_precision(target: Shape, prediction: Shape) -> float | None:
    """Share of the predicted skeleton that lies in the ground truth mask, in [0, 1]; empty masks: `EMPTY`.

    Source: Shit et al. 2021, clDice, CVPR (arXiv:2003.07311), called Tprec there.
    """
    return apply_rule("topology_precision", _case(target, prediction), lambda: _covered(prediction, target))


def topology_sensitivity(target: Shape, prediction: Shape) -> float | None:
    """Share of the ground truth skeleton that lies in the predicted mask, in [0, 1]; empty masks: `EMPTY`.

    None for a false alarm, as in recall. Source: as `topology_precision`, called Tsens there.
    """
    return apply_rule("topology_sensitivity", _case(target, prediction), lambda: _covered(target, prediction))


def cldice(target: Shape, prediction: Shape) -> float | None:
    """Harmonic mean of topology precision and sensitivity, in [0, 1]; 0 if both are 0; empty masks: `EMPTY`.

    Source: Shit et al. 2021, clDice, CVPR (arXiv:2003.07311), for binary masks and skeletons.
    """

    def harmonic() -> float:
        precision, sensitivity = _covered(prediction, target), _covered(target, prediction)
        total = precision + sensitivity
        return 2 * precision * sensitivity / total if total else 0.0

    return apply_rule("cldice", _case(target, prediction), harmonic)


def betti0_error(target: Shape, prediction: Shape) -> float | None:
    """Absolute difference between the numbers of connected components, over the whole image.

    A total miss has the number of components of the ground truth. Source: Hu et al. 2019, Topology-preserving deep image
    segmentation, NeurIPS, where it is a mean over patches.
    """
    return apply_rule(
        "betti0_error", _case(target, prediction), lambda: float(abs(target.betti0 - prediction.betti0))
    )


def betti1_error(target: Shape, prediction: Shape) -> float | None:
    """Absolute difference between the numbers of holes, over the whole image.

    At least 1 if exactly one mask is empty. Source: as `betti0_error`.
    """
    return apply_rule(
        "betti1_error", _case(target, prediction), lambda: float(abs(target.betti1 - prediction.betti1))
    )


def breaks(target: Shape, prediction: Shape) -> float | None:
    """Number of breaks of the predicted vessels; a vessel missed completely counts 1.

    Only predicted pixels in the ground truth mask or at most 2 pixels from it (city-block distance) are considered. The
    skeleton of each component of the ground truth should be covered by one predicted component: k > 1 components count
    k - 1 breaks, and no component counts 1. Not counted are a gap at the end of a vessel, one gap in a loop, and a gap
    in the middle of a vessel with connected sides. None for a false alarm. This definition is Vesalius' own.
    """

    def count() -> float:
        near = dilate(dilate(target.mask))
        labels, n = label(prediction.mask & near, structure=EIGHT_CONNECTED)
        vessels, n_vessels = target.components
        pairs = np.unique(vessels[target.skeleton].astype(np.int64) * (n + 1) + labels[target.skeleton])
        vessel, component = np.divmod(pairs, n + 1)
        covering = np.bincount(vessel[component > 0], minlength=n_vessels + 1)[1:]
        return float(np.abs(covering - 1).sum())

    return apply_rule("breaks", _case(target, prediction), count)


def skeleton_recall(target: Shape, prediction: Shape) -> float | None:
    """Share of the ground truth skeleton that was predicted, in [0, 1]; equal to `topology_sensitivity`.

    The total of the width strata. Source: Kirchhoff et al. 2024, Skeleton recall loss, ECCV (arXiv:2404.03010), here with
    the skeleton not dilated.
    """
    return apply_rule("skeleton_recall", _case(target, prediction), lambda: _covered(target, prediction))


def skeleton_recall_of_width(target: Shape, prediction: Shape, low: float, high: float) -> float | None:
    """Share of the ground truth skeleton with low < width <= high that was predicted; None if no pixel has that width.

    The width is the local width of the ground truth in pixels, `Shape.widths`.
    """

    def share() -> float | None:
        chosen = (target.widths > low) & (target.widths <= high)
        found = prediction.mask[target.skeleton][chosen]
        return float(found.mean()) if len(found) else None

    return apply_rule("skeleton_recall_of_width", _case(target, prediction), share)


def _covered(line: Shape, mask: Shape) -> float:
    """Share of the skeleton of `line` that lies in `mask`."""
    return float(mask.mask[line.skeleton].mean())


def _case(target: Shape, prediction: Shape) -> Case:
    return case_of(target_empty=target.empty, prediction_empty=prediction.empty)
