"""J, F and J&F of one object in a clip, as in the DAVIS challenge: region and contour, frame by frame.

Source: Perazzi et al. 2016, A benchmark dataset and evaluation methodology for video object segmentation, CVPR;
Pont-Tuset et al. 2017, The 2017 DAVIS challenge (arXiv:1704.00675). The contours are those of its code,
davis2017-evaluation, `db_eval_boundary`: https://github.com/davisvideochallenge/davis2017-evaluation
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from vesalius.evaluation.empty import apply_rule, case_of
from vesalius.evaluation.overlap import confusion, iou
from vesalius.evaluation.shape import distances_to, points_of

TOLERANCE = 0.008
"""Share of the image diagonal by which contours may lie apart; the pixels are rounded up."""


def score(target: Bool[np.ndarray, "f h w"], prediction: Bool[np.ndarray, "f h w"]) -> dict[str, float]:
    """`j` and `f`, means over all frames, and `j_and_f`, the mean of both; in [0, 1].

    Empty masks in a frame: `EMPTY`. The challenge leaves out the first frame, which is given there, and the
    last; cut the clip for its numbers. Raises ValueError unless both are bool (f, h, w) of one size with at
    least one frame, and as `confusion`.
    """
    if target.shape != prediction.shape or target.ndim != 3 or not len(target):
        raise ValueError(
            f"target and prediction must be (f, h, w) of one size, f >= 1; got {target.shape} and {prediction.shape}"
        )
    j, f = (_mean([of(*frame) for frame in zip(target, prediction, strict=True)]) for of in (region, contour))
    return {"j": j, "f": f, "j_and_f": (j + f) / 2}


def region(target: Bool[np.ndarray, "h w"], prediction: Bool[np.ndarray, "h w"]) -> float | None:
    """J of one frame: IoU, 1 where both masks are empty."""
    return iou(confusion(target, prediction))


def contour(target: Bool[np.ndarray, "h w"], prediction: Bool[np.ndarray, "h w"]) -> float | None:
    """F of one frame: harmonic mean of the shares of either contour that lie near the other.

    Near is at most 0.8 % of the image diagonal, rounded up to whole pixels: 6 for 512 x 512. 1 where both masks
    are empty, 0 where one is. A mask that fills the frame has no contour: 1 if both do, 0 if one does.
    """
    true, guessed = points_of(_contour(target)), points_of(_contour(prediction))
    near = np.ceil(TOLERANCE * np.hypot(*target.shape))

    def harmonic() -> float:
        if not len(true) or not len(guessed):
            return float(len(true) == len(guessed))
        precision = float(np.mean(distances_to(true, guessed) <= near))
        recall = float(np.mean(distances_to(guessed, true) <= near))
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    return apply_rule(
        "f", case_of(target_empty=not target.any(), prediction_empty=not prediction.any()), harmonic
    )


def _contour(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels that differ from the next one to the right, below or across; half a pixel up and left."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    own = padded[:-1, :-1]
    return (own ^ padded[:-1, 1:]) | (own ^ padded[1:, :-1]) | (own ^ padded[1:, 1:])


def _mean(values: Sequence[float | None]) -> float:
    """Of values that are all defined, as J and F are."""
    return float(np.mean([value for value in values if value is not None]))
