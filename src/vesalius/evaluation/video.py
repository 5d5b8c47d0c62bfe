"""J (region accuracy), F (contour accuracy) and J&F of one object in a video, as in the DAVIS challenge.

Source: Perazzi et al. 2016, A benchmark dataset and evaluation methodology for video object segmentation, CVPR;
Pont-Tuset et al. 2017, The 2017 DAVIS challenge (arXiv:1704.00675). Contours follow `db_eval_boundary` in
https://github.com/davisvideochallenge/davis2017-evaluation
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from vesalius.evaluation.empty import apply_rule, case_of
from vesalius.evaluation.overlap import confusion, iou
from vesalius.evaluation.shape import distances_to, points_of

TOLERANCE = 0.008
"""Maximum distance of matching contour pixels as a fraction of the image diagonal, rounded up to whole pixels."""


def score(target: Bool[np.ndarray, "f h w"], prediction: Bool[np.ndarray, "f h w"]) -> dict[str, float]:
    """`j` and `f`, means over all frames, and `j_and_f`, the mean of both, in [0, 1]; empty masks: see `EMPTY`.

    The challenge does not score the first frame, which it provides, and the last; leave both out to compare with it.
    Raises ValueError unless both masks are bool (f, h, w) of one size with at least one frame and one pixel.
    """
    if target.shape != prediction.shape or target.ndim != 3 or not len(target):
        raise ValueError(
            f"target and prediction must be (f, h, w) of the same size, f >= 1; got {target.shape} and {prediction.shape}"
        )
    j, f = (_mean([of(*frame) for frame in zip(target, prediction, strict=True)]) for of in (region, contour))
    return {"j": j, "f": f, "j_and_f": (j + f) / 2}


def region(target: Bool[np.ndarray, "h w"], prediction: Bool[np.ndarray, "h w"]) -> float | None:
    """J of one frame: IoU; 1 if both masks are empty."""
    return iou(confusion(target, prediction))


def contour(target: Bool[np.ndarray, "h w"], prediction: Bool[np.ndarray, "h w"]) -> float | None:
    """F of one frame: harmonic mean of contour precision and recall.

    Contour pixels match within 0.8 % of the image diagonal, rounded up to whole pixels: 6 for 512 x 512. F is 1 if both
    masks are empty and 0 if one is. A mask that fills the frame has no contour: F is 1 if both fill it, 0 if one does.
    """
    one, other = points_of(_contour(target)), points_of(_contour(prediction))
    near = np.ceil(TOLERANCE * np.hypot(*target.shape))

    def harmonic() -> float:
        if not len(one) or not len(other):
            return float(len(one) == len(other))
        precision = float(np.mean(distances_to(one, other) <= near))
        recall = float(np.mean(distances_to(other, one) <= near))
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    return apply_rule("f", case_of(target_empty=not target.any(), prediction_empty=not prediction.any()), harmonic)


def _contour(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels that differ from their right, lower or lower right neighbor; the contour lies half a pixel off."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    own = padded[:-1, :-1]
    return (own ^ padded[:-1, 1:]) | (own ^ padded[1:, :-1]) | (own ^ padded[1:, 1:])


def _mean(values: Sequence[float | None]) -> float:
    # J and F are always defined
    return float(np.mean([value for value in values if value is not None]))
