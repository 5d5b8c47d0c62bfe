"""Clicks correct the mask of one prompt: by SAM 2's point prompts where they are trained, and by changes of the logits."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import interpolate

from vesalius.calls import describe
from vesalius.clicks import MARGIN, Click, check_clicks, correct, logit_of
from vesalius.errors import SettingError
from vesalius.mask_maps import Full, LowRes, Refined
from vesalius.models.sam2 import decode_with_points, take_best
from vesalius.notebook import check_picture
from vesalius.types import Item, Prediction

if TYPE_CHECKING:
    from vesalius.inference.predictor import Predictor


def refine(predictor: Predictor, prediction: Prediction, points: Sequence[Click]) -> Prediction:
    """The prediction corrected by clicks, as `Predictor.refine` describes."""
    image, clicks = _check(prediction, points)
    before = prediction.maps.before if isinstance(prediction.maps, Refined) else prediction.maps
    scores: tuple[float, ...] = ()
    item = Item(prediction.id, image[None], (prediction.phrase or prediction.prompt,))
    # points prompt SAM 2 on the whole image; maps of tiles and of averaged views are corrected directly
    whole = isinstance(before, LowRes) and predictor.tiles is None and not predictor.views
    if whole and not predictor.model_card.has_random_points:
        before, scores = _decode_points(predictor, item, clicks, before)
    elif not len(before):
        before = _empty_mask(predictor, item, prediction.threshold)
    plain = replace(
        prediction,
        status="ok",
        maps=before,
        scores=scores if len(scores) == len(before) else (),
        cleaning=predictor.cleaning,
        points=clicks,
    )
    logits = correct(_cleaned_logits(plain), image, clicks, prediction.threshold)
    # cleaning could remove a clicked pixel, so it is not repeated
    return replace(plain, maps=Refined(logits[None], before), scores=scores, cleaning=None)


def _check(prediction: Prediction, points: Sequence[Click]) -> tuple[np.ndarray, tuple[Click, ...]]:
    """The image and all clicks; SettingError as for `Predictor.refine`."""
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


@torch.inference_mode()
def _decode_points(
    predictor: Predictor, item: Item, clicks: Sequence[Click], before: LowRes
) -> tuple[LowRes, tuple[float, ...]]:
    """The mask of SAM 2 for the [SEG] of the answer, the clicks and the mask before them, and its predicted IoU."""
    processor, sam = predictor.processor, predictor.model.sam
    parameter = next(predictor.model.parameters())
    batch = processor([item], answered=predictor.answer == "force").to(parameter.device, parameter.dtype)
    seg = predictor.answer_batch(batch).seg
    side, (height, width) = processor.spec.sam_size, item.size
    scaled = [(x * side / width, y * side / height) for (x, y), _ in clicks]
    earlier = None
    if len(before):
        union = torch.from_numpy(before.logits.max(axis=0)).to(parameter.device)
        cells = (side // 4, side // 4)
        earlier = interpolate(union[None, None], cells, mode="bilinear", antialias=True, align_corners=False)[0, 0]
    decoded = decode_with_points(
        sam,
        predictor.encode(sam, torch.stack(list(batch.g_pixel_values))),
        seg.embedding,
        torch.tensor(scaled, device=parameter.device),
        torch.tensor([positive for _, positive in clicks], device=parameter.device),
        earlier,
    )
    best = take_best(decoded.candidates, decoded.scores)[0]
    return LowRes(best.float().cpu().numpy(), side), (float(decoded.scores.max()),)


def _empty_mask(predictor: Predictor, item: Item, threshold: float) -> Full:
    """Logits of the forced answer, all below the threshold: an empty mask that grows where the model expects one."""
    forced = copy(predictor)
    forced.answer = "force"
    (answer,) = forced._predict_batch([item])
    return Full(
        np.minimum(answer.maps.full_logits(item.size).max(axis=0), np.float32(logit_of(threshold) - MARGIN))[None]
    )


def _cleaned_logits(prediction: Prediction) -> np.ndarray:
    """Logits of the union of the objects, float32 (h, w), changed where post-processing changed the mask."""
    logits = prediction.maps.full_logits(prediction.size).max(axis=0)
    if prediction.cleaning is None:
        return logits
    level, mask = np.float32(logit_of(prediction.threshold)), prediction.mask
    changed = mask != (logits > level)
    return np.where(changed, np.where(mask, level + MARGIN, level - MARGIN), logits).astype(np.float32)
