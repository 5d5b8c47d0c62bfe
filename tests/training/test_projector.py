"""A projector that is made anew for the phrases of the data."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vesalius.config import make_settings
from vesalius.data.dataset import load_samples
from vesalius.data.synth import write_data_set
from vesalius.errors import SettingError
from vesalius.models.checkpoint import OpenedModel, find_model, open_bundle
from vesalius.training import projector
from vesalius.training.projector import fit_projector, seg_states
from vesalius.training.run import train
from vesalius.training.settings import RunSettings
from vesalius.types import Absent, Sample

PHRASES = tuple(
    f"{order} {side} branch" for order in ("first", "second", "third") for side in ("left", "right")
)
"""None of them was learned by the tiny model."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("phrases") / "set"
    write_data_set(folder, 2, seed=7, size=64, workers=0)
    read = load_samples(folder / "annotations.json")
    return [replace(each, prompts=PHRASES, masks=((Absent(),),) * len(PHRASES)) for each in read]


@pytest.fixture
def opened() -> OpenedModel:
    return open_bundle(find_model("tiny"))


def cosines(opened: OpenedModel, samples: list[Sample]) -> torch.Tensor:
    """Between the prompts of all pairs of phrases about each image."""
    with torch.no_grad():
        unit = torch.nn.functional.normalize(
            opened.model.projector(seg_states(opened, samples, PHRASES)), dim=-1
        )
    return (unit @ unit.transpose(1, 2))[:, ~torch.eye(len(PHRASES), dtype=torch.bool)]


def test_phrases_lie_apart(opened: OpenedModel, samples: list[Sample]) -> None:
    before = cosines(opened, samples)
    note = fit_projector(opened, samples, CPU, seed=0)
    after = cosines(opened, samples)
    assert note == (
        f"projector fitted to 6 phrases: the mean cosine between the prompts of two is {after.mean():.2f}, and was "
        f"{before.mean():.2f}"
    )
    assert after.max() < 0.9 < 0.99 < before.max()
    assert abs(after.mean()) < 0.2


def test_each_unit_of_both_layers_has_mean_0_and_variance_1(
    opened: OpenedModel, samples: list[Sample]
) -> None:
    fit_projector(opened, samples, CPU, seed=0)
    with torch.no_grad():
        states = seg_states(opened, samples, PHRASES).flatten(0, 1)
        first = opened.model.projector.linear_1(states)
        for outputs in (first, opened.model.projector.linear_2(torch.relu(first))):
            torch.testing.assert_close(outputs.mean(dim=0), torch.zeros(outputs.shape[1]), rtol=0, atol=1e-3)
            torch.testing.assert_close(outputs.std(dim=0), torch.ones(outputs.shape[1]), rtol=0, atol=1e-3)


def test_states_do_not_depend_on_how_many_phrases_are_read_at_once(
    opened: OpenedModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.model.eval()
    with torch.no_grad():
        whole = seg_states(opened, samples, PHRASES)
        monkeypatch.setattr(projector, "AT_ONCE", 4)
        torch.testing.assert_close(seg_states(opened, samples, PHRASES), whole, rtol=0, atol=1e-5)
        alone = seg_states(opened, samples[:1], PHRASES[-1:])
    torch.testing.assert_close(alone[0, 0], whole[0, -1], rtol=0, atol=1e-5)


def test_other_words_of_the_question_move_a_prompt_less_than_another_phrase(
    opened: OpenedModel, samples: list[Sample]
) -> None:
    questions = len(opened.processor.spec.prompt.questions)
    fit_projector(opened, samples, CPU, seed=0)
    with torch.no_grad():
        states = seg_states(opened, samples[:1], PHRASES)[:questions]
        prompts = opened.model.projector(states)
    by_words = prompts.std(dim=0).norm(dim=-1).mean()
    by_phrase = prompts.mean(dim=0).std(dim=0).norm()
    assert by_words < 0.5 * by_phrase


def test_the_same_seed_gives_the_same_projector(opened: OpenedModel, samples: list[Sample]) -> None:
    def fitted(seed: int) -> torch.Tensor:
        again = open_bundle(find_model("tiny"))
        fit_projector(again, samples, CPU, seed)
        return again.model.projector.linear_2.weight.detach()

    assert torch.equal(fitted(3), fitted(3))
    assert not torch.equal(fitted(3), fitted(4))


def test_one_phrase_cannot_be_set_apart(opened: OpenedModel, samples: list[Sample]) -> None:
    alone = [replace(each, prompts=PHRASES[:1], masks=((Absent(),),)) for each in samples]
    with pytest.raises(SettingError, match="the training data have only 'first left branch'; leave it out"):
        fit_projector(opened, alone, CPU, seed=0)


def test_a_run_begins_with_it_and_a_resumed_one_does_not(tmp_path: Path) -> None:
    write_data_set(tmp_path / "set", 2, seed=7, size=64, workers=0)

    def settings(**changes: Any) -> RunSettings:
        values = {
            "model": "tiny",
            "projector": "fitted",
            "data": {"train": tmp_path / "set"},
            "steps": 1,
            "batch": 2,
            "trackers": [],
            "out": tmp_path / "run",
        }
        return make_settings(RunSettings, {**values, **changes}, "test")

    notes: list[str] = []
    train(settings(), on_note=notes.append)
    assert len([note for note in notes if note.startswith("projector fitted to 2 phrases")]) == 1
    lineage = json.loads((tmp_path / "run/last/vesalius.json").read_text())["lineage"]
    assert lineage["settings"]["projector"] == "fitted"
    notes.clear()
    train(settings(steps=2), resume=True, on_note=notes.append)
    assert not [note for note in notes if "projector fitted" in note]
    whole = train(settings(steps=2, out=tmp_path / "whole"))
    ours, theirs = (open_bundle(run / "last").model.projector for run in (tmp_path / "run", whole))
    # the rate depends on the length of the run, and the first run's was half: the two are near, not equal
    torch.testing.assert_close(ours.linear_1.weight, theirs.linear_1.weight, rtol=0, atol=1e-3)
