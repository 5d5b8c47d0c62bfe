"""Mask losses against hand calculations, torch and MONAI, and their general properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import FocalLoss, SoftclDiceLoss

from vesalius.training.losses import (
    binary_cross_entropy,
    focal_loss,
    iou_error,
    soft_cldice_loss,
    soft_dice_loss,
    soft_skeleton,
)

CERTAIN = 100.0


def random_pair(seed: int, gray: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    coverage = torch.rand(3, 24, 32, generator=rng)
    return 4 * torch.randn(3, 24, 32, generator=rng), coverage if gray else (coverage > 0.8).float()


def certain(masks: torch.Tensor) -> torch.Tensor:
    return CERTAIN * (2 * masks - 1)


def lines(*columns: int, rows: slice = slice(None)) -> torch.Tensor:
    """One mask of 64 x 64 with vertical lines."""
    mask = torch.zeros(1, 64, 64)
    mask[0, rows, list(columns)] = 1
    return mask


def test_soft_dice_of_certain_masks() -> None:
    target = torch.zeros(1, 4, 4)
    target[0, :2] = 1
    assert soft_dice_loss(certain(target), target).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_loss(certain(1 - target), target).item() == pytest.approx(1 - 1 / 17)
    assert soft_dice_loss(torch.full((1, 4, 4), -CERTAIN), torch.zeros(1, 4, 4)).item() == pytest.approx(0)


def test_iou_error_by_hand() -> None:
    target = torch.zeros(1, 4, 4)
    target[0, :2] = 1
    prediction = torch.full((1, 4, 4), -9.0)
    prediction[0, 1:3] = 9  # 4 cells in common, 12 in all
    scores = torch.full((1, 3), 0.5)
    assert iou_error(scores, prediction[:, None], target).item() == pytest.approx(0.5 - 1 / 3)
    nothing = torch.full((1, 3, 4, 4), -9.0)
    assert iou_error(scores, nothing, torch.zeros(1, 4, 4)).item() == pytest.approx(0.5)


@pytest.mark.parametrize("gray", [False, True])
def test_cross_entropy_equals_torch(gray: bool) -> None:
    logits, targets = random_pair(0, gray)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(
        binary_cross_entropy(logits, targets, False), expected.mean(dim=(1, 2)), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("gamma", [1.0, 2.0, 5.0])
def test_focal_loss_equals_monai_for_binary_masks(gamma: float) -> None:
    logits, targets = random_pair(1)
    expected = FocalLoss(gamma=gamma, reduction="none")(logits[:, None], targets[:, None]).mean(dim=(1, 2, 3))
    torch.testing.assert_close(focal_loss(logits, targets, gamma, False), expected, rtol=1e-5, atol=1e-6)


def test_focal_loss_of_a_partly_covered_cell_is_minimal_at_its_coverage() -> None:
    logits = torch.linspace(-4, 4, 161)[:, None]
    for coverage in (0.2, 0.5, 0.9):
        loss = focal_loss(logits, torch.full_like(logits, coverage), 2.0, False)
        assert logits[loss.argmin(), 0].sigmoid().item() == pytest.approx(coverage, abs=0.01)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_class_balanced_loss_by_hand(gamma: float) -> None:
    logits, targets = torch.tensor([[1.0, -2.0, 0.5, 3.0]]), torch.tensor([[1.0, 0.0, 0.25, 0.0]])
    p = logits.sigmoid()
    easy = (targets - p).abs() ** gamma
    inside = (-(targets * easy) * p.log()).sum() / 1.25
    outside = (-((1 - targets) * easy) * (1 - p).log()).sum() / 2.75
    expected = (inside + outside) / 2
    torch.testing.assert_close(focal_loss(logits, targets, gamma, True)[0], expected)


def test_class_balancing_removes_the_influence_of_the_area() -> None:
    small, large = torch.zeros(1, 32, 32), torch.zeros(1, 32, 32)
    small[0, :2, :2], large[0, :16] = 1, 1
    one, other = (binary_cross_entropy(3 * each - 1, each, True) for each in (small, large))
    torch.testing.assert_close(one, other)
    one, other = (binary_cross_entropy(3 * each - 1, each, False) for each in (small, large))
    assert (one - other).abs() > 0.05


def test_with_class_balancing_a_missed_speck_costs_as_much_as_a_missed_vessel() -> None:
    speck, vessel = torch.zeros(1, 32, 32), lines(10, 11)[:, :32, :32]
    speck[0, 4, 4] = 1
    nothing = torch.full((1, 32, 32), -5.0)
    missed = {
        balance: [binary_cross_entropy(nothing, each, balance).item() for each in (speck, vessel)]
        for balance in (False, True)
    }
    assert missed[True][0] == pytest.approx(missed[True][1])
    assert missed[False][1] > 20 * missed[False][0]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_class_balancing_of_a_uniform_mask_is_the_plain_mean(value: float) -> None:
    logits, _ = random_pair(2)
    targets = torch.full_like(logits, value)
    targets = targets + 1e-7 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        binary_cross_entropy(logits, targets, True), binary_cross_entropy(logits, targets, False)
    )


@pytest.mark.parametrize(("steps", "gray"), [(0, False), (3, False), (3, True), (10, True)])
def test_soft_cldice_and_its_gradient_equal_monai(steps: int, gray: bool) -> None:
    logits, targets = random_pair(3, gray)
    # smooth: MONAI adds a smoothing term to the harmonic mean, which is not in the paper
    reference = SoftclDiceLoss(iter_=steps, smooth=1e-12, sigmoid=True, reduction="none")
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected = reference(theirs[:, None], targets[:, None])
    loss = soft_cldice_loss(ours, targets, steps)
    torch.testing.assert_close(loss, expected.reshape(3), rtol=0, atol=1e-6)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_the_soft_skeleton_of_a_bar_is_its_centerline() -> None:
    bar = torch.zeros(1, 33, 33)
    bar[0, 12:21, 4:29] = 1  # height 9
    middle = soft_skeleton(bar, 5)[0, :, 12:21]  # away from both ends
    assert (middle[16] == 1).all()
    assert middle.sum() == 9
    assert soft_skeleton(bar, 3)[0, :, 12:21].sum() == 0  # too few iterations to reach the centerline
    assert torch.equal(soft_skeleton(bar, 5), soft_skeleton(bar, 12))


def test_the_cldice_loss_of_equal_lines_is_zero() -> None:
    mask = lines(10, 40)
    assert soft_cldice_loss(certain(mask), mask, 3).item() == pytest.approx(0, abs=1e-6)
    empty = torch.zeros(1, 64, 64)
    assert soft_cldice_loss(certain(empty), empty, 3).item() == pytest.approx(0, abs=1e-6)


def test_a_missed_thin_line_beside_a_wide_one_costs_more_in_cldice_than_in_dice() -> None:
    whole, without = lines(10, *range(30, 41)), lines(*range(30, 41))
    dice, cldice = soft_dice_loss(certain(without), whole), soft_cldice_loss(certain(without), whole, 8)
    assert dice.item() == pytest.approx(1 - (2 * 704 + 1) / (704 + 768 + 1), abs=1e-5)  # 0.04
    assert cldice > 0.2


def test_a_line_that_is_too_wide_costs_less_in_cldice_than_in_dice() -> None:
    line, wide = lines(30), lines(28, 29, 30, 31, 32)
    assert soft_dice_loss(certain(wide), line) > 0.6
    assert soft_cldice_loss(certain(wide), line, 4) < 0.1


@pytest.mark.parametrize("balance", [False, True])
def test_half_precision_of_large_logits_on_large_maps_stays_finite_in_float32(balance: bool) -> None:
    logits = (6e4 * torch.ones(1, 512, 512)).half()
    logits[0, ::2] *= -1
    targets = torch.zeros(1, 512, 512)
    targets[0, :300] = 1
    assert torch.isinf(logits.sigmoid().sum())  # in float16 the sum over a map overflows
    full = logits.float().requires_grad_()
    loss = (
        binary_cross_entropy(full, targets, balance)
        + focal_loss(full, targets, 2.0, balance)
        + soft_dice_loss(full, targets)
        + soft_cldice_loss(full, targets, 2)
    )
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert full.grad is not None
    assert torch.isfinite(full.grad).all()


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(0, 50),
    shift=st.floats(-50, 50),
    cover=st.floats(0, 1),
    gray=st.booleans(),
)
def test_losses_are_in_range_and_independent_per_mask(
    seed: int, scale: float, shift: float, cover: float, gray: bool
) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, 9, 11, generator=rng) + shift
    targets = torch.rand(2, 9, 11, generator=rng)
    targets = targets * cover if gray else (targets < cover).float()
    for loss in (
        soft_dice_loss,
        lambda x, t: soft_cldice_loss(x, t, 3),
        lambda x, t: focal_loss(x, t, 2.0, True),
        lambda x, t: binary_cross_entropy(x, t, True),
    ):
        both = loss(logits, targets)
        assert (both >= -1e-6).all()
        torch.testing.assert_close(both, torch.cat([loss(logits[i : i + 1], targets[i : i + 1]) for i in (0, 1)]))
        mirrored = loss(logits.flip(2), targets.flip(2))
        torch.testing.assert_close(both, mirrored, rtol=1e-4, atol=1e-5)
    for bounded in (soft_dice_loss(logits, targets), soft_cldice_loss(logits, targets, 3)):
        assert (bounded <= 1).all()


def test_losses_of_no_masks_are_empty() -> None:
    nothing = torch.zeros(0, 8, 8)
    for loss in (soft_dice_loss(nothing, nothing), soft_cldice_loss(nothing, nothing, 2)):
        assert loss.shape == (0,)
    assert focal_loss(nothing, nothing, 2.0, True).shape == (0,)
