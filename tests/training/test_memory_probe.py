"""The memory probe: steps that change no weight, the heaviest batch, and remedies."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.codes import raises_code

from vesalius.config import make_settings
from vesalius.errors import TrainingError
from vesalius.synth import write_dataset
from vesalius.training.context import Monitoring, TrainingContext
from vesalius.training.distributed import join_processes
from vesalius.training.learner import TextSegLearner
from vesalius.training.memory_probe import heaviest_items, run_steps
from vesalius.training.preparation import prepare
from vesalius.training.settings import RunSettings


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> TrainingContext:
    """Five images; the last two are larger, and one of these two has the most phrases."""
    folder = tmp_path_factory.mktemp("data")
    entries = []
    for name, count, size in (("small", 3, 64), ("large", 2, 160)):
        write_dataset(folder / name, count, seed=1, size=size)
        for entry in json.loads((folder / name / "annotations.json").read_text()):
            entries.append({**entry, "image": f"{name}/{entry['image']}"})
            for each in entries[-1]["mask"]:
                assert not isinstance(each, str), "masks are written into the file"
    entries[-2]["text"], entries[-2]["mask"] = entries[-2]["text"][:1], entries[-2]["mask"][:1]
    (folder / "annotations.json").write_text(json.dumps(entries))
    values = {
        "model": "tiny",
        "init": "random",
        "data": {"train": folder / "annotations.json"},
        "trainable": "decoder",
        "batch_size": 1,
        "steps": 2,
        "optim": {"gradient_accumulation_steps": 2},
        "out": folder / "run",
    }
    settings = make_settings(RunSettings, values, "test")
    return prepare(settings, join_processes("fp32"), Monitoring(), read_all=False)


def test_the_heaviest_batch_has_the_largest_image_with_the_most_phrases(context: TrainingContext) -> None:
    (item,) = heaviest_items(context, 1)
    assert item.size == (160, 160)
    assert len(item.prompts) == max(len(sample.prompts) for sample in context.loader.samples)


def test_the_probe_changes_nothing(context: TrainingContext) -> None:
    module = context.learner.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    random, rates = torch.get_rng_state(), [group["lr"] for group in context.optimizer.param_groups]
    run_steps(context, heaviest_items(context, 1))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert rates == [group["lr"] for group in context.optimizer.param_groups]
    assert len(context.optimizer.state) == 0
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_probe_allocates_the_optimizer_state(context: TrainingContext, monkeypatch: pytest.MonkeyPatch) -> None:
    state_sizes: list[int] = []
    inner: Any = context.optimizer
    step = inner.step

    def watched(*given: Any) -> None:
        step(*given)
        state_sizes.append(sum(len(state) for state in context.optimizer.state.values()))

    monkeypatch.setattr(inner, "step", watched)
    run_steps(context, heaviest_items(context, 1))
    assert len(state_sizes) == 2
    assert state_sizes[0] == state_sizes[1] > 0, "AdamW's state exists from the first step on"


class Greedy(TextSegLearner):
    """Learner whose losses allocate more memory than any machine has."""

    def losses(self, module: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        return {"total": torch.empty(2**48).sum()}


def test_out_of_memory_is_reported_with_remedies(context: TrainingContext) -> None:
    learner = context.learner
    assert isinstance(learner, TextSegLearner)
    greedy = replace(context, learner=Greedy(learner.opened, learner.groups, learner.loss))
    with raises_code(TrainingError, "out_of_memory", "the plan needs", "remedies: "):
        run_steps(greedy, heaviest_items(context, 1))
