"""Losses by hand, and targets that keep thin lines."""

import numpy as np
import pytest
import torch

from vesalius.models.textseg import MaskLogits, Output
from vesalius.training.losses import LossSettings, area_average, iou_error, measure, soft_dice_loss


def masks_of(logits: torch.Tensor, scores: torch.Tensor | None = None) -> MaskLogits:
    candidates = logits[:, None].expand(-1, 3, -1, -1)
    all_scores = torch.full((len(logits), 3), 0.5) if scores is None else scores
    return MaskLogits(logits, all_scores[:, 0], candidates, all_scores)


def test_area_average_equals_torch_where_sizes_divide() -> None:
    masks = (torch.rand(2, 64, 96, generator=torch.Generator().manual_seed(0)) > 0.9).to(torch.uint8)
    expected = torch.nn.functional.avg_pool2d(masks.float(), (4, 6))
    torch.testing.assert_close(area_average(masks, (16, 16)), expected)


@pytest.mark.parametrize("size", [(999, 960), (37, 800), (100, 100)])
def test_area_average_keeps_the_area_at_any_ratio(size: tuple[int, int]) -> None:
    mask = (torch.rand(1, *size, generator=torch.Generator().manual_seed(1)) > 0.7).to(torch.uint8)
    assert area_average(mask, (128, 128)).mean().item() == pytest.approx(mask.float().mean().item(), abs=1e-5)


def test_a_one_pixel_line_stays_whole_in_the_target() -> None:
    mask = torch.zeros(1, 512, 512, dtype=torch.uint8)
    mask[0, :, 301] = 1
    target = area_average(mask, (128, 128))[0]
    assert (target[:, 75] == 0.25).all()
    assert target.sum() == pytest.approx(32)


def test_soft_dice_of_certain_masks() -> None:
    target = torch.zeros(1, 4, 4)
    target[0, :2] = 1
    right, wrong = (2 * target - 1) * 1e3, (1 - 2 * target) * 1e3
    assert soft_dice_loss(right, target).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_loss(wrong, target).item() == pytest.approx(1 - 1 / 17)
    assert soft_dice_loss(torch.full((1, 4, 4), -1e3), torch.zeros(1, 4, 4)).item() == pytest.approx(0)


def test_iou_error_by_hand() -> None:
    target = torch.zeros(1, 4, 4)
    target[0, :2] = 1
    guess = torch.full((1, 4, 4), -9.0)
    guess[0, 1:3] = 9  # 4 cells in common, 12 in all
    assert iou_error(masks_of(guess), target).item() == pytest.approx(0.5 - 1 / 3)
    nothing = torch.full((1, 4, 4), -9.0)
    assert iou_error(masks_of(nothing), torch.zeros(1, 4, 4)).item() == pytest.approx(0.5)


def test_total_is_the_weighted_sum() -> None:
    rng = torch.Generator().manual_seed(0)
    output = Output(
        torch.randn(5, 7, generator=rng), torch.arange(5), masks_of(torch.randn(2, 8, 8, generator=rng))
    )
    truth = [(torch.rand(2, 16, 16, generator=rng) > 0.5).to(torch.uint8)]
    losses = measure(output, truth, LossSettings(text=0.3, bce=5, dice=7, iou=11))
    expected = 0.3 * losses.text + 5 * losses.mask + 7 * losses.dice + 11 * losses.iou
    torch.testing.assert_close(losses.total, expected)
    logits, target = output.masks.logits.numpy(), area_average(truth[0], (8, 8)).numpy()
    assert losses.mask.item() == pytest.approx(np.mean(np.log1p(np.exp(logits)) - logits * target), rel=1e-5)


def test_a_mask_for_no_seg_is_an_error() -> None:
    output = Output(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), masks_of(torch.zeros(1, 8, 8)))
    with pytest.raises(ValueError, match=r"1 .SEG. in the answers but 2 masks"):
        measure(output, [torch.zeros(2, 8, 8, dtype=torch.uint8)], LossSettings())
