"""Metrics of thin structures: clDice, topology precision and sensitivity, Betti errors, breaks, skeleton recall.

Masks are 8-connected, the background is 4-connected. All functions take the two masks as `Shape`, which computes
skeleton and components once.
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
"""Width strata of skeleton recall: low < `Shape.widths` <= high, in pixels."""


def topology_precision(target: Shape, prediction: Shape) -> float | None:
    """Fraction of the predicted skeleton that lies in the ground truth mask, in [0, 1]; empty masks: see `EMPTY`.

    Source: Shit et al. 2021, clDice, CVPR (arXiv:2003.07311), where it is called Tprec.
    """
    return apply_rule("topology_precision", _case(target, prediction), lambda: _covered(prediction, target))


def topology_sensitivity(target: Shape, prediction: Shape) -> float | None:
    """Fraction of the ground truth skeleton that lies in the predicted mask, in [0, 1]; empty masks: see `EMPTY`.

    None for a false alarm, like recall. Source: as for `topology_precision`; called Tsens.
    """
    return apply_rule("topology_sensitivity", _case(target, prediction), lambda: _covered(target, prediction))


def cldice(target: Shape, prediction: Shape) -> float | None:
    """Harmonic mean of topology precision and sensitivity, in [0, 1]; 0 if both are 0; empty masks: see `EMPTY`.

    Source: Shit et al. 2021, clDice, CVPR (arXiv:2003.07311), for binary masks and skeletons.
    """

    def harmonic() -> float:
        precision, sensitivity = _covered(prediction, target), _covered(target, prediction)
        total = precision + sensitivity
        return 2 * precision * sensitivity / total if total else 0.0

    return apply_rule("cldice", _case(target, prediction), harmonic)


def betti0_error(target: Shape, prediction: Shape) -> float | None:
    """Absolute difference between the numbers of connected components, over the whole image.

    For a total miss it is the number of components of the ground truth. Source: Hu et al. 2019, Topology-preserving
    deep image segmentation, NeurIPS, where it is a mean over patches.
    """
    return apply_rule("betti0_error", _case(target, prediction), lambda: float(abs(target.betti0 - prediction.betti0)))


def betti1_error(target: Shape, prediction: Shape) -> float | None:
    """Absolute difference between the numbers of holes, over the whole image.

    It is at least 1 if exactly one mask is empty. Source: as for `betti0_error`.
    """
    return apply_rule("betti1_error", _case(target, prediction), lambda: float(abs(target.betti1 - prediction.betti1)))


def breaks(target: Shape, prediction: Shape) -> float | None:
    """Number of breaks of the predicted vessels; a vessel missed completely counts 1.

    Only predicted pixels in the ground truth mask or at most 2 pixels from it (city-block distance) are considered. The
    skeleton of each component of the ground truth should be covered by one predicted component: k > 1 components count
    k - 1 breaks, and no component counts 1. A missing vessel end, a single gap in a loop, and a hole inside a vessel
    with connected sides are not breaks. None for a false alarm. The definition is specific to Vesalius.
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
    """Fraction of the ground truth skeleton that was predicted, in [0, 1]; equal to `topology_sensitivity`.

    `skeleton_recall_of_width` is the same metric by vessel width. Source: Kirchhoff et al. 2024, Skeleton recall loss,
    ECCV (arXiv:2404.03010), but without dilation of the skeleton.
    """
    return apply_rule("skeleton_recall", _case(target, prediction), lambda: _covered(target, prediction))


def skeleton_recall_of_width(target: Shape, prediction: Shape, low: float, high: float) -> float | None:
    """Fraction of the ground truth skeleton with low < width <= high that was predicted; None without such pixels.

    The width is the local width of the ground truth in pixels, `Shape.widths`.
    """

    def fraction() -> float | None:
        chosen = (target.widths > low) & (target.widths <= high)
        found = prediction.mask[target.skeleton][chosen]
        return float(found.mean()) if len(found) else None

    return apply_rule("skeleton_recall_of_width", _case(target, prediction), fraction)


def _covered(line: Shape, mask: Shape) -> float:
    """Fraction of the skeleton of `line` that lies in `mask`."""
    return float(mask.mask[line.skeleton].mean())


def _case(target: Shape, prediction: Shape) -> Case:
    return case_of(target_empty=target.empty, prediction_empty=prediction.empty)
