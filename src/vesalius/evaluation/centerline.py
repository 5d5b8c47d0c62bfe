"""Thin structures: are the center lines found, and do they hang together?

Pixels that touch by a corner are connected, pixels of background by an edge only. All functions take the two
masks as `Shape`, which keeps skeleton and pieces, so that each is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import label

from vesalius.evaluation.empty import Case, apply_rule, case_of
from vesalius.evaluation.shape import EIGHT, Shape, dilate

WIDTHS: Mapping[str, tuple[float, float]] = {
    "to_2px": (0.0, 2.0),
    "2_to_4px": (2.0, 4.0),
    "4_to_8px": (4.0, 8.0),
    "over_8px": (8.0, np.inf),
}
"""Strata of `skeleton_recall`: low < width <= high in pixels, width as `Shape.widths`."""


def topology_precision(target: Shape, prediction: Shape) -> float | None:
    """Share of the predicted skeleton that lies in the true mask, in [0, 1]; empty masks: `EMPTY`.

    Source: Shit et al. 2021, clDice, CVPR (arXiv:2003.07311), there Tprec.
    """
    return apply_rule("topology_precision", _case(target, prediction), lambda: _covered(prediction, target))


def topology_sensitivity(target: Shape, prediction: Shape) -> float | None:
    """Share of the true skeleton that lies in the predicted mask, in [0, 1]; empty masks: `EMPTY`.

    None for a false alarm, as recall. Source: as `topology_precision`, there Tsens.
    """
    return apply_rule("topology_sensitivity", _case(target, prediction), lambda: _covered(target, prediction))


def cldice(target: Shape, prediction: Shape) -> float | None:
    """Harmonic mean of topology precision and sensitivity, in [0, 1]; 0 where both are; empty masks: `EMPTY`.

    Source: Shit et al. 2021, clDice, CVPR (arXiv:2003.07311), on hard masks and hard skeletons.
    """

    def harmonic() -> float:
        precision, sensitivity = _covered(prediction, target), _covered(target, prediction)
        total = precision + sensitivity
        return 2 * precision * sensitivity / total if total else 0.0

    return apply_rule("cldice", _case(target, prediction), harmonic)


def betti0_error(target: Shape, prediction: Shape) -> float | None:
    """Difference between the numbers of connected pieces, 0 or more, over the whole image.

    An empty mask has none, so that a total miss counts the true pieces. Source: Hu et al. 2019,
    Topology-preserving deep image segmentation, NeurIPS, there as a mean over patches.
    """
    return apply_rule(
        "betti0_error", _case(target, prediction), lambda: float(abs(target.betti0 - prediction.betti0))
    )


def betti1_error(target: Shape, prediction: Shape) -> float | None:
    """Difference between the numbers of holes, 0 or more, over the whole image.

    At least 1 where one mask is empty and the other is not. Source: as `betti0_error`.
    """
    return apply_rule(
        "betti1_error", _case(target, prediction), lambda: float(abs(target.betti1 - prediction.betti1))
    )


def breaks(target: Shape, prediction: Shape) -> float | None:
    """Pieces too many that the prediction falls into along the true vessels; a vessel lost whole counts 1.

    Of the prediction only what lies in the true mask or at most 2 pixels from it (steps along rows and
    columns) is looked at. Each connected piece of the target should be met, on its skeleton, by one connected
    piece of that; met by k > 1 it counts k - 1, met by none it counts 1. A gap at the end of a vessel counts
    nothing, as does one gap in a loop, or a gap in the middle of a vessel whose sides are connected. None for
    a false alarm: there is nothing to break. This definition is the house's own.
    """

    def count() -> float:
        near = dilate(dilate(target.mask))
        labels, n = label(prediction.mask & near, structure=EIGHT)
        vessels, n_vessels = target.components
        meets = np.unique(vessels[target.skeleton].astype(np.int64) * (n + 1) + labels[target.skeleton])
        vessel, piece = np.divmod(meets, n + 1)
        met = np.bincount(vessel[piece > 0], minlength=n_vessels + 1)[1:]
        return float(np.abs(met - 1).sum())

    return apply_rule("breaks", _case(target, prediction), count)


def skeleton_recall(target: Shape, prediction: Shape) -> float | None:
    """Share of the true skeleton that was predicted, in [0, 1]: `topology_sensitivity` under the strata's name.

    Source: Kirchhoff et al. 2024, Skeleton recall loss, ECCV (arXiv:2404.03010), with the skeleton itself.
    """
    return apply_rule("skeleton_recall", _case(target, prediction), lambda: _covered(target, prediction))


def skeleton_recall_of_width(target: Shape, prediction: Shape, low: float, high: float) -> float | None:
    """Share of the true skeleton with low < width <= high pixels that was predicted; None where it has none.

    The width is the true vessel's, at that place: `Shape.widths`.
    """

    def share() -> float | None:
        chosen = (target.widths > low) & (target.widths <= high)
        found = prediction.mask[target.skeleton][chosen]
        return float(found.mean()) if len(found) else None

    return apply_rule("skeleton_recall_of_width", _case(target, prediction), share)


def _covered(line: Shape, mask: Shape) -> float:
    """Share of the first one's skeleton that lies in the second one."""
    return float(mask.mask[line.skeleton].mean())


def _case(target: Shape, prediction: Shape) -> Case:
    return case_of(target_empty=target.empty, prediction_empty=prediction.empty)
