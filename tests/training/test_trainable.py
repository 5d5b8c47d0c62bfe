"""What trains moves, and nothing else does."""

import numpy as np
import pytest
import torch

from vesalius.errors import TrainingError
from vesalius.models.checkpoint import OpenedModel, new_model
from vesalius.models.specs import find_spec
from vesalius.models.stored import empty_model
from vesalius.training.losses import LossSettings, measure
from vesalius.training.trainable import GROUPS, WHAT_TRAINS, MovementCheck, set_trainable
from vesalius.types import Item


def take_step(
    opened: OpenedModel, groups: dict[str, list[torch.nn.Parameter]], lr: float = 1e-3
) -> MovementCheck:
    check = MovementCheck(groups)
    rng = np.random.default_rng(0)
    pixels, masks = rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8), rng.random((1, 1, 64, 64)) > 0.5
    batch = opened.processor([Item("a", pixels, ("vessel",), masks)], answered=True)
    optimiser = torch.optim.AdamW([p for group in groups.values() for p in group], lr=lr, weight_decay=0)
    measure(opened.model(batch), batch.masks, LossSettings(iou=1.0)).total.backward()
    check.note_gradients()
    optimiser.step()
    return check


@pytest.mark.parametrize("what", WHAT_TRAINS)
def test_every_trainable_parameter_gets_a_gradient_and_all_others_stay(what: str) -> None:
    opened = new_model("tiny", seed=0)
    groups = set_trainable(opened.model, what)
    assert tuple(sorted(groups)) == tuple(sorted(WHAT_TRAINS[what]))
    before = {name: parameter.detach().clone() for name, parameter in opened.model.named_parameters()}
    take_step(opened, groups).verify()
    idle = [name for name, p in opened.model.named_parameters() if p.requires_grad and p.grad is None]
    moved = [
        name
        for name, p in opened.model.named_parameters()
        if not p.requires_grad and not torch.equal(p, before[name])
    ]
    assert (idle, moved) == ([], [])


def test_groups_are_disjoint_and_name_parameters() -> None:
    names = {
        name
        for known in ("tiny", "Sa2VA-Qwen3-VL-4B")  # InternVL and Qwen-VL name their image encoders otherwise
        for name, _ in empty_model(find_spec(known)).named_parameters()
    }
    for starts in GROUPS.values():
        for start in starts:
            assert any(name.startswith(start) for name in names), start
    assert all(sum(name.startswith(starts) for starts in GROUPS.values()) <= 1 for name in names)


def test_group_without_gradient_is_named() -> None:
    opened = new_model("tiny", seed=0)
    check = MovementCheck(set_trainable(opened.model, "projector"))
    with pytest.raises(TrainingError, match="projector is set to train but had no gradient"):
        check.verify()


def test_group_that_does_not_move_is_named() -> None:
    opened = new_model("tiny", seed=0)
    check = take_step(opened, set_trainable(opened.model, "projector"), lr=0.0)
    with pytest.raises(TrainingError, match="projector is set to train but did not move"):
        check.verify()
