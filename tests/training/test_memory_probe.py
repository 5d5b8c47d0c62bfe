"""The memory probe: it takes real steps, changes nothing, finds the heaviest batch, and says what to lower."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from vesalius.config import make_settings
from vesalius.data.dataset import open_dataset
from vesalius.errors import TrainingError
from vesalius.synth import write_dataset
from vesalius.training.distributed import start_engine
from vesalius.training.learner import TextSegLearner
from vesalius.training.loop import Run
from vesalius.training.memory_probe import heaviest, take_steps
from vesalius.training.mixture import open_mixture
from vesalius.training.run import _open_learner, _prepare, _say_nothing
from vesalius.training.run_folder import RunFolder
from vesalius.training.settings import RunSettings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of five images, the last two of which are larger; one of these has more questions than any."""
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
        "data": {"train": folder},
        "trainable": "decoder",
        "batch_size": 1,
        "steps": 2,
        "optim": {"gradient_accumulation_steps": 2},
        "out": folder / "run",
    }
    settings = make_settings(RunSettings, values, "test")
    engine = start_engine("fp32")
    learner, card, _ = _open_learner(settings, False, None, _say_nothing)
    samples = open_dataset(folder / "annotations.json").samples
    mixture = open_mixture(samples, settings.tasks, None, False)
    ignored: tuple[Any, ...] = (RunFolder(settings.out), None, _say_nothing, _say_nothing)
    return _prepare(settings, engine, learner, card, mixture, None, *ignored)


def test_the_heaviest_batch_has_the_largest_image_with_the_most_questions(run: Run) -> None:
    (item,) = heaviest(run, 1)
    assert item.size == (160, 160)
    assert len(item.prompts) == max(len(sample.prompts) for sample in run.feed.samples)


def test_the_probe_changes_nothing(run: Run) -> None:
    module = run.learner.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    random, rates = torch.get_rng_state(), [group["lr"] for group in run.optimizer.param_groups]
    take_steps(run, heaviest(run, 1))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert rates == [group["lr"] for group in run.optimizer.param_groups]
    assert len(run.optimizer.state) == 0
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_probe_steps_as_a_real_step_does(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered: list[int] = []
    inner: Any = run.optimizer
    step = inner.step

    def watched(*given: Any) -> None:
        step(*given)
        remembered.append(sum(len(state) for state in run.optimizer.state.values()))

    monkeypatch.setattr(inner, "step", watched)
    take_steps(run, heaviest(run, 1))
    assert len(remembered) == 2
    assert remembered[0] == remembered[1] > 0, "what AdamW remembers is there from the first step on"


class Greedy(TextSegLearner):
    """Asks for more memory than any machine has."""

    def losses(self, module: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        return {"total": torch.empty(2**48).sum()}


def test_a_shortage_becomes_a_sentence_with_what_to_lower(run: Run) -> None:
    learner = run.learner
    assert isinstance(learner, TextSegLearner)
    greedy = replace(run, learner=Greedy(learner.opened, learner.groups, learner.loss))
    with pytest.raises(
        TrainingError, match=r"memory runs out with this batch: the plan counts .* GiB; what would help"
    ):
        take_steps(greedy, heaviest(run, 1))
