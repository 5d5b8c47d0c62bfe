"""The baseline score before training, and detection of an untrained projector."""

import pytest
import torch

from vesalius.models.checkpoint import open_model
from vesalius.models.textseg import Projector
from vesalius.training.sanity import BaselineScore, has_untrained_projector


def test_an_untrained_projector_is_recognized() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert has_untrained_projector(torch.nn.ModuleDict({"projector": Projector(256, 128)}))
    assert not has_untrained_projector(open_model("tiny").model)
    assert not has_untrained_projector(torch.nn.Linear(4, 4)), "a model without a projector"


@pytest.mark.parametrize(
    ("score", "conclusion"),
    [
        (BaselineScore(8, 0, 0.02, True), ": its projector is not trained to segment yet"),
        (BaselineScore(8, 8, 0.03, False), ": it cannot segment these images yet"),
        (BaselineScore(8, 3, 0.6, False), "keep loss.text above 0, and monitor seg_rate"),
        (BaselineScore(8, 8, 0.6, False), "mean Dice 0.600 with forced answers"),
    ],
)
def test_the_baseline_score_ends_with_its_conclusion(score: BaselineScore, conclusion: str) -> None:
    text = str(score)
    assert text.startswith(f"before training: answers {score.seg_answers} of 8 prompts with [SEG]; ")
    assert text.endswith(conclusion)
