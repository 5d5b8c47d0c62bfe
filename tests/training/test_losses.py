"""The total loss: term weights, batches without masks, precision, and reproducible point sampling."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vesalius.config import make_settings
from vesalius.errors import SettingError
from vesalius.models.checkpoint import OpenedModel, new_model
from vesalius.models.sam2 import MaskLogits
from vesalius.models.textseg import TextSegOutput
from vesalius.training.learner import TextSegLearner
from vesalius.training.losses import LossSettings, area_average, compute_losses
from vesalius.types import Item

VARIANTS: tuple[dict[str, Any], ...] = (
    {"cldice": 1.0, "focal": 3.0, "skeleton_steps": 2},
    {"resolution": "points", "points": 40, "focal": 3.0},
    {"resolution": "image", "cldice": 1.0, "skeleton_steps": 2},
    {"class_balanced": True, "focal": 1.0},
)


def output_of(logits: torch.Tensor, words: int = 5) -> TextSegOutput:
    scores = torch.full((len(logits), 3), 0.5)
    rng = torch.Generator().manual_seed(0)
    masks = MaskLogits(logits, scores[:, 0], logits[:, None].expand(-1, 3, -1, -1), scores)
    return TextSegOutput(torch.randn(words, 7, generator=rng).requires_grad_(), torch.arange(words), masks)


def random_logits(count: int) -> torch.Tensor:
    return torch.randn(count, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()


def random_masks(*shape: int) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(2)) > 0.5).to(torch.uint8)


def test_total_is_the_weighted_sum() -> None:
    output, masks = output_of(random_logits(2)), [random_masks(2, 16, 16)]
    weights: dict[str, Any] = {"text": 0.3, "bce": 5.0, "dice": 7.0, "iou": 11.0, "cldice": 13.0, "focal": 17.0}
    losses = compute_losses(output, masks, LossSettings(**weights))
    assert losses.cldice is not None
    assert losses.focal is not None
    parts = (losses.text, losses.mask, losses.dice, losses.iou, losses.cldice, losses.focal)
    expected = sum(weight * part for weight, part in zip(weights.values(), parts, strict=True))
    torch.testing.assert_close(losses.total, expected)
    logits, target = output.masks.logits.detach().numpy(), area_average(masks[0], (8, 8)).numpy()
    assert losses.mask.item() == pytest.approx(np.mean(np.log1p(np.exp(logits)) - logits * target), rel=1e-5)


def test_expensive_terms_without_a_weight_are_none() -> None:
    losses = compute_losses(output_of(random_logits(1)), [random_masks(1, 16, 16)], LossSettings())
    assert (losses.cldice, losses.focal) == (None, None)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_each_map_receives_a_gradient(variant: dict[str, Any]) -> None:
    logits = random_logits(3)
    masks = [random_masks(2, 33, 20), random_masks(1, 16, 40)]
    losses = compute_losses(output_of(logits), masks, LossSettings(**variant), draws=[4])
    losses.total.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad.abs().sum(dim=(1, 2)) > 0).all()


def test_masks_of_large_and_small_images_count_the_same() -> None:
    logits, masks = random_logits(2), [random_masks(1, 100, 100), random_masks(1, 12, 12)]
    settings = LossSettings(resolution="image")
    both = compute_losses(output_of(logits), masks, settings)
    single = [compute_losses(output_of(logits[i : i + 1]), masks[i : i + 1], settings) for i in (0, 1)]
    for name in ("mask", "dice"):
        mean = (getattr(single[0], name) + getattr(single[1], name)) / 2
        torch.testing.assert_close(getattr(both, name), mean)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_images_without_masks_do_not_change_the_losses(variant: dict[str, Any]) -> None:
    logits, masks = random_logits(2), [random_masks(1, 16, 16), random_masks(1, 20, 12)]
    empty = torch.zeros(0, 16, 16, dtype=torch.uint8)
    expected = compute_losses(output_of(logits), masks, LossSettings(**variant), draws=[1])
    more = compute_losses(output_of(logits), [empty, masks[0], empty, masks[1]], LossSettings(**variant), draws=[1])
    assert vars(more) == vars(expected)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("masks", [[], [torch.zeros(0, 16, 16, dtype=torch.uint8)]])
def test_without_seg_only_the_text_loss_remains(variant: dict[str, Any], masks: list[torch.Tensor]) -> None:
    logits = random_logits(0)
    output = output_of(logits)
    losses = compute_losses(output, masks, LossSettings(**{**variant, "text": 2.0}))
    assert (losses.mask.item(), losses.dice.item(), losses.iou.item()) == (0, 0, 0)
    torch.testing.assert_close(losses.total, 2 * losses.text)
    losses.total.backward()
    assert logits.grad is not None  # of shape (0, 8, 8)
    assert output.text_logits.grad is not None
    assert output.text_logits.grad.abs().sum() > 0


def test_unequal_numbers_of_masks_and_seg_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"1 .SEG. in the answers but 2 masks"):
        compute_losses(output_of(random_logits(1)), [random_masks(2, 8, 8)], LossSettings())
    with pytest.raises(ValueError, match=r"2 .SEG. in the answers but 0 masks"):
        compute_losses(output_of(random_logits(2)), [], LossSettings())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_autocast_does_not_change_the_losses(variant: dict[str, Any]) -> None:
    output, masks = output_of(random_logits(2)), [random_masks(2, 37, 53)]
    plain = compute_losses(output, masks, LossSettings(**variant))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = compute_losses(output, masks, LossSettings(**variant))
    assert vars(mixed) == vars(plain)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_have_float32_losses(variant: dict[str, Any], dtype: torch.dtype) -> None:
    output = output_of(1e4 * random_logits(1).detach())
    half = TextSegOutput(
        output.text_logits.to(dtype),
        output.text_labels,
        MaskLogits(*(part.to(dtype) for part in vars(output.masks).values())),
    )
    losses = compute_losses(half, [random_masks(1, 300, 300)], LossSettings(**variant))
    for value in vars(losses).values():
        assert value is None or (value.dtype == torch.float32 and torch.isfinite(value))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cldice": 1.0, "resolution": "points"}, "cldice needs whole maps"),
        ({"focal": -1.0}, "focal"),
        ({"focal_gamma": 0.5}, "focal_gamma"),
        ({"importance_sample_ratio": 1.5}, "importance_sample_ratio"),
        ({"oversample_ratio": 0.5}, "oversample_ratio"),
        ({"points": 0}, "points"),
        ({"resolution": "corners"}, "resolution"),
        ({"cl_dice": 1.0}, "did you mean cldice"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_settings(LossSettings, wrong, "test")


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    return new_model("tiny", seed=0)


Measured = Callable[[dict[str, Any], list[int]], dict[str, torch.Tensor]]


@pytest.fixture
def of_learner(opened: OpenedModel) -> Measured:
    """Function that returns the losses of one small image for given loss settings and draws."""
    rng = np.random.default_rng(0)
    pixels, masks = rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8), rng.random((1, 1, 64, 64)) > 0.5

    def measured(variant: dict[str, Any], draws: list[int]) -> dict[str, torch.Tensor]:
        learner = TextSegLearner(opened, {}, LossSettings(**variant))
        batch = learner.make_batch([Item("a", pixels, ("vessel",), masks)], draws)
        with torch.no_grad():
            return dict(learner.losses(opened.model, batch))

    return measured


def test_sampled_points_depend_only_on_the_draws(of_learner: Measured) -> None:
    variant = {"resolution": "points", "points": 300}
    torch.manual_seed(0)
    before = of_learner(variant, [7])
    torch.manual_seed(1)  # torch's generator differs in a resumed run
    assert of_learner(variant, [7]) == before
    same_words = 7 + 5040  # 5040 is a multiple of any number of templates up to 10
    after = of_learner(variant, [same_words])
    assert after["text"] == before["text"]
    assert after["mask"] != before["mask"]


def test_a_learner_returns_all_weighted_terms(of_learner: Measured) -> None:
    assert set(of_learner({}, [0])) == {"total", "text", "mask", "dice", "iou"}
    whole = of_learner({"cldice": 1.0, "focal": 1.0}, [0])
    assert set(whole) == {"total", "text", "mask", "dice", "iou", "cldice", "focal"}
