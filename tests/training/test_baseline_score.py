"""What is said of the model before the first step."""

import torch

from vesalius.models.checkpoint import open_model
from vesalius.models.textseg import Projector
from vesalius.training.baseline_score import Start, looks_fresh


def test_a_projector_of_random_numbers_is_told_from_a_trained_one() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert looks_fresh(torch.nn.ModuleDict({"projector": Projector(256, 128)}))
    assert not looks_fresh(open_model("tiny").model)
    assert not looks_fresh(torch.nn.Linear(4, 4)), "a model without a projector"


def test_what_is_said_of_a_start() -> None:
    assert str(Start(8, 0, 0.02, fresh=True)) == (
        "before training: says [SEG] to 0 of 8 questions; mean Dice 0.020 when made to: its projector holds random numbers "
        "and was never trained to segment"
    )
    assert str(Start(8, 8, 0.03, fresh=False)).endswith("it cannot segment these images yet")
    assert "must learn when to say so: keep loss.text above 0" in str(Start(8, 3, 0.6, fresh=False))
    assert str(Start(8, 8, 0.6, fresh=False)).endswith("mean Dice 0.600 when made to")
