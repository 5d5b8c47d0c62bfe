"""Loss targets at decoder resolution, at sampled points and at image resolution."""

import numpy as np
import pytest
import torch

from vesalius.masks import resize_bilinear
from vesalius.training.losses import area_average, on_cells, on_pixels, on_points, point_sample, sample_uncertain_points


def random_masks(seed: int, *shape: int) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) > 0.7).to(torch.uint8)


def random_logits(seed: int, *shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_area_average_equals_torch_where_sizes_divide() -> None:
    masks = random_masks(0, 2, 64, 96)
    expected = torch.nn.functional.avg_pool2d(masks.float(), (4, 6))
    torch.testing.assert_close(area_average(masks, (16, 16)), expected)


@pytest.mark.parametrize("size", [(999, 960), (37, 800), (100, 100)])
def test_area_average_keeps_the_area_at_any_ratio(size: tuple[int, int]) -> None:
    mask = random_masks(1, 1, *size)
    assert area_average(mask, (128, 128)).mean().item() == pytest.approx(mask.float().mean().item(), abs=1e-5)


def test_a_one_pixel_line_stays_connected_in_the_target() -> None:
    mask = torch.zeros(1, 512, 512, dtype=torch.uint8)
    mask[0, :, 301] = 1
    target = on_cells([mask], (128, 128))[0]
    assert (target[:, 75] == 0.25).all()
    assert target.sum() == pytest.approx(32)


def test_images_without_masks_have_no_targets() -> None:
    masks = [random_masks(0, 0, 30, 40), random_masks(1, 2, 50, 20), random_masks(2, 0, 9, 9)]
    torch.testing.assert_close(on_cells(masks, (8, 8)), area_average(masks[1], (8, 8)))


def test_values_between_cells_are_interpolated() -> None:
    maps = torch.tensor([[[0.0, 4.0], [8.0, 12.0]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5], [0.5, 0.25]]])
    torch.testing.assert_close(point_sample(maps, points), torch.tensor([[0.0, 4.0, 8.0, 6.0, 2.0]]))
    # beyond the outermost cell centers values fade to 0, as in the official code
    torch.testing.assert_close(point_sample(maps, torch.tensor([[[1.0, 1.0]]])), torch.tensor([[3.0]]))


def test_points_are_the_most_uncertain_candidates_and_random_others() -> None:
    logits = torch.linspace(-8, 8, 64).expand(1, 64, 64)  # logits are near 0 in the middle columns
    points = sample_uncertain_points(logits, 400, 3.0, 0.75, torch.Generator().manual_seed(0))
    assert points.shape == (1, 400, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    uncertain, others = points[0, :300, 0], points[0, 300:, 0]
    # the 300 most uncertain of 1200: the middle quarter, and a few at the upper and lower edges, where maps fade to 0
    inner = (points[0, :300, 1] - 0.5).abs() < 0.49
    assert inner.sum() > 290
    assert (uncertain[inner] - 0.5).abs().max() == pytest.approx(0.125, abs=0.02)
    assert (others - 0.5).abs().max() > 0.45


def test_uncertainty_is_interpolated_between_cells() -> None:
    logits = torch.tensor([[-9.0, 9.0]]).expand(
        1, 2, 2
    )  # no cell is near 0, but the interpolated values between them are
    points = sample_uncertain_points(logits, 40, 50.0, 1.0, torch.Generator().manual_seed(0))
    assert (points[..., 0] - 0.5).abs().max() < 0.02


def test_equal_draws_give_equal_points_and_other_draws_do_not() -> None:
    logits, masks = random_logits(0, 3, 32, 32), [random_masks(0, 2, 90, 70), random_masks(1, 1, 40, 64)]
    torch.manual_seed(1)
    first = on_points(logits, masks, 50, 3.0, 0.75, [5, 2**31 - 1, 0])
    torch.rand(7)
    second = on_points(logits, masks, 50, 3.0, 0.75, [5, 2**31 - 1, 0])
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    for others in ([5, 2**31 - 1, 1], [], [0]):
        assert not torch.equal(on_points(logits, masks, 50, 3.0, 0.75, others)[0], first[0])


def test_point_targets_are_downsampled_by_nearest_neighbor_as_in_the_official_code() -> None:
    mask = torch.zeros(1, 100, 100, dtype=torch.uint8)
    mask[0, :, 50:] = 1  # covers half of column 12 of 25, but nearest neighbor reads pixel 48
    columns = torch.arange(25.0).expand(1, 25, 25)
    at, targets = on_points(columns, [mask], 1000, 3.0, 0.0, [3])
    as_expected = (targets - (at - 12).clamp(0, 1)).abs() < 1e-5
    assert as_expected.float().mean() > 0.9  # all points except those at the edges, where maps fade to 0
    assert (targets > 0).float().mean() == pytest.approx(0.5, abs=0.05)


def test_image_logits_equal_those_of_a_prediction() -> None:
    logits = random_logits(0, 3, 16, 16)
    masks = [random_masks(0, 2, 37, 50), random_masks(1, 1, 100, 20)]
    pairs = on_pixels(logits, masks)
    enlarged = torch.cat([maps.flatten() for maps, _ in pairs])
    expected = [
        resize_bilinear(resize_bilinear(low, (64, 64)), size)
        for low, size in zip(logits.numpy(), [(37, 50), (37, 50), (100, 20)], strict=True)
    ]
    np.testing.assert_allclose(enlarged.numpy(), np.concatenate([each.ravel() for each in expected]), atol=1e-5)
    for (_, targets), of_image in zip(pairs, masks, strict=True):
        assert torch.equal(targets, of_image.float())
