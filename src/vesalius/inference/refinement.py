"""Clicks correct the mask of one prompt: by SAM 2's point prompts where they are trained, and by changes of the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import interpolate

from vesalius.calls import describe
from vesalius.clicks import MARGIN, Click, check_clicks, correct, logit_of
from vesalius.errors import SettingError
from vesalius.mask_maps import Full, LowRes, Maps, Refined
from vesalius.masks import Size
from vesalius.models.sam2 import decode_with_points, take_best
from vesalius.models.textseg import Encode, TextSegModel
from vesalius.notebook import check_picture
from vesalius.types import Prediction

Decoded = tuple[Maps, tuple[float, ...]]
"""The maps before the logits are changed near the clicks, and the predicted IoU if SAM 2 decoded them."""


def check_refinement(prediction: Prediction, points: Sequence[Click]) -> tuple[np.ndarray, tuple[Click, ...]]:
    """The image uint8 (h, w, 3) and all clicks, earlier ones first; SettingError as for `Predictor.refine`."""
    if not isinstance(prediction, Prediction):
        raise SettingError(
            f"refine corrects one prediction of predictor(image, prompt); got {describe(prediction)}",
            code="bad_value",
            field="prediction",
        )
    if prediction.status == "failed":
        raise SettingError(f"{prediction.id}: has no mask ({prediction.error})", code="prediction_failed")
    clicks = check_clicks(points, prediction.size, prediction.points)
    if prediction.read_image is None:
        raise SettingError(
            f"{prediction.id}: this prediction keeps no image; predict with predictor(image, prompt), then refine that",
            code="no_image",
            field="prediction",
        )
    if prediction.status == "no_seg" and not any(positive for _, positive in clicks):
        raise SettingError(
            f"{prediction.id}: the answer has no mask, so there is nothing to remove; give a positive point",
            code="bad_value",
            field="points",
        )
    return check_picture(prediction.read_image(), prediction.size), clicks


def maps_before(prediction: Prediction) -> Maps:
    """The model's maps of a prediction, without the changes near earlier clicks."""
    return prediction.maps.before if isinstance(prediction.maps, Refined) else prediction.maps


def decode_clicks(
    model: TextSegModel,
    encode: Encode,
    square: torch.Tensor,
    embeddings: torch.Tensor,
    clicks: Sequence[Click],
    before: LowRes,
    size: Size,
) -> Decoded:
    """The mask of SAM 2 for [SEG] embeddings (k, c), clicks, and the mask before them, and its predicted IoU.

    `square` float (3, S, S) is the image of `size` (h, w), resized; `before` may be empty.
    """
    side, (height, width) = square.shape[-1], size
    scaled = [(x * side / width, y * side / height) for (x, y), _ in clicks]
    earlier = None
    if len(before):
        union = torch.from_numpy(before.logits.max(axis=0)).to(square.device)
        cells = (side // 4, side // 4)
        earlier = interpolate(union[None, None], cells, mode="bilinear", antialias=True, align_corners=False)[0, 0]
    decoded = decode_with_points(
        model.sam,
        encode(model.sam, square[None]),
        embeddings,
        torch.tensor(scaled, device=square.device),
        torch.tensor([positive for _, positive in clicks], device=square.device),
        earlier,
    )
    best = take_best(decoded.candidates, decoded.scores)[0]
    return LowRes(best.float().cpu().numpy(), side), (float(decoded.scores.max()),)


def empty_mask(forced: Prediction, threshold: float) -> Full:
    """Logits of a forced answer, all below the threshold: an empty mask that grows where the model expects one."""
    most = np.float32(logit_of(threshold) - MARGIN)
    return Full(np.minimum(forced.maps.full_logits(forced.size).max(axis=0), most)[None])


def apply_clicks(prediction: Prediction, image: np.ndarray, clicks: tuple[Click, ...], decoded: Decoded) -> Prediction:
    """The prediction of `decoded` with its union of objects cleaned, then changed near the clicks that it contradicts."""
    before, scores = decoded
    plain = replace(prediction, status="ok", maps=before, scores=(), points=clicks)
    logits = correct(_cleaned_logits(plain), image, clicks, prediction.threshold)
    # cleaning could remove a clicked pixel, so it is not repeated
    return replace(plain, maps=Refined(logits[None], before), scores=scores, cleaning=None)


def _cleaned_logits(prediction: Prediction) -> np.ndarray:
    """Logits of the union of the objects, float32 (h, w), changed where post-processing changed the mask."""
    logits = prediction.maps.full_logits(prediction.size).max(axis=0)
    if prediction.cleaning is None:
        return logits
    level, mask = np.float32(logit_of(prediction.threshold)), prediction.mask
    changed = mask != (logits > level)
    return np.where(changed, np.where(mask, level + MARGIN, level - MARGIN), logits).astype(np.float32)
