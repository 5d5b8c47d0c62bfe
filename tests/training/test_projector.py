"""Fitting of a new projector to the phrases of the data."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.codes import raises_code

from vesalius.config import make_settings
from vesalius.data.dataset import load_samples
from vesalius.errors import SettingError, TrainingError
from vesalius.models.checkpoint import OpenedModel, open_model
from vesalius.synth import write_dataset
from vesalius.training import projector
from vesalius.training.projector import fit_projector, mean_cosine, seg_states
from vesalius.training.run import resume, train
from vesalius.training.settings import RunSettings
from vesalius.types import Absent, Sample

PHRASES = tuple(f"{order} {side} branch" for order in ("first", "second", "third") for side in ("left", "right"))
"""Phrases unknown to the tiny model."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("phrases") / "set"
    write_dataset(folder, 4, seed=7, size=64, num_workers=0)
    read = load_samples(folder / "annotations.json")
    return [replace(each, prompts=PHRASES, masks=((Absent(),),) * len(PHRASES)) for each in read]


@pytest.fixture
def opened() -> OpenedModel:
    return open_model("tiny")


def fraction_between(prompts: torch.Tensor) -> float:
    """Between-phrase fraction of the variance of prompt embeddings (i, n, c)."""
    centered = prompts - prompts.mean(dim=(0, 1))
    return (centered.mean(dim=0).square().mean() / centered.square().mean()).item()


def prompts_of(opened: OpenedModel, samples: list[Sample]) -> torch.Tensor:
    """Prompt embeddings, float (6, n, c), for two images with three questions each."""
    with torch.no_grad():
        return opened.model.projector(seg_states(opened, [*samples] * 3, PHRASES))


def test_phrases_are_separated_on_held_out_images(opened: OpenedModel, samples: list[Sample]) -> None:
    before = prompts_of(opened, samples[2:])
    fit_projector(opened, samples[:2], CPU, seed=0)
    after = prompts_of(opened, samples[2:])
    assert fraction_between(after) > 0.8
    assert mean_cosine(after) < 0.1 < 0.5 < mean_cosine(before)


def test_notes_report_the_result_on_held_out_images_if_there_are_enough(
    opened: OpenedModel, samples: list[Sample]
) -> None:
    def notes(some: list[Sample]) -> list[str]:
        found: list[str] = []
        fit_projector(opened, some, CPU, seed=0, on_note=found.append)
        return found

    begun, reached = notes(samples)
    assert begun == "fitting a projector to 6 phrases on 4 images"
    assert re.fullmatch(
        r"projector fitted: mean cosine between the embeddings of two phrases -?0\.\d\d, before 0\.\d\d, on held-out images",
        reached,
    )
    _, again = notes(samples[:3])
    assert "held-out" not in again
    assert again.endswith("; THE OLD PROJECTOR SEPARATED THEM: use projector: kept")


def test_each_unit_of_both_layers_has_mean_0_and_variance_1(opened: OpenedModel, samples: list[Sample]) -> None:
    fit_projector(opened, samples[:2], CPU, seed=0)
    asked = [samples[index] for index in (0, 0, 0, 1, 1, 1)]  # each with the three questions of the template
    with torch.no_grad():
        states = seg_states(opened, asked, PHRASES)
        first = opened.model.projector.linear_1(states.flatten(0, 1))
        for outputs in (first, opened.model.projector.linear_2(torch.relu(first))):
            torch.testing.assert_close(outputs.mean(dim=0), torch.zeros(outputs.shape[1]), rtol=0, atol=1e-3)
            torch.testing.assert_close(outputs.std(dim=0), torch.ones(outputs.shape[1]), rtol=0, atol=1e-3)


def test_states_do_not_depend_on_the_number_of_phrases_per_pass(
    opened: OpenedModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.model.eval()
    with torch.no_grad():
        whole = seg_states(opened, samples, PHRASES)
        monkeypatch.setattr(projector, "PHRASES_AT_ONCE", 4)
        torch.testing.assert_close(seg_states(opened, samples, PHRASES), whole, rtol=0, atol=1e-5)
        alone = seg_states(opened, samples[:1], PHRASES[-1:])
    torch.testing.assert_close(alone[0, 0], whole[0, -1], rtol=0, atol=1e-5)


def test_a_model_with_one_state_for_all_phrases_is_refused(
    opened: OpenedModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_state(opened: OpenedModel, asked: list[Sample], phrases: tuple[str, ...]) -> torch.Tensor:
        return torch.ones(len(asked), len(phrases), opened.model.projector.linear_1.in_features)

    monkeypatch.setattr(projector, "seg_states", one_state)
    with raises_code(TrainingError, "inseparable_phrases"):
        fit_projector(opened, samples, CPU, seed=0)


def test_a_failed_fit_is_noted(opened: OpenedModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states that vary strongly between images and hardly between phrases."""

    def noise(opened: OpenedModel, asked: list[Sample], phrases: tuple[str, ...]) -> torch.Tensor:
        draw = torch.Generator().manual_seed(0)
        width = opened.model.projector.linear_1.in_features
        by_phrase = 1e-3 * torch.randn(len(phrases), width, generator=draw)
        return torch.randn(len(asked), 1, width, generator=draw) + by_phrase

    monkeypatch.setattr(projector, "seg_states", noise)
    notes: list[str] = []
    fit_projector(opened, samples, CPU, seed=0, on_note=notes.append)
    assert notes[-1].endswith("THE PHRASES ARE STILL NOT SEPARATED")


def test_the_same_seed_gives_the_same_projector(opened: OpenedModel, samples: list[Sample]) -> None:
    def fitted(seed: int) -> torch.Tensor:
        again = open_model("tiny")
        fit_projector(again, samples, CPU, seed)
        return again.model.projector.linear_2.weight.detach()

    assert torch.equal(fitted(3), fitted(3))
    assert not torch.equal(fitted(3), fitted(4))


def test_skipped_phrases_are_noted(opened: OpenedModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projector, "MOST_PHRASES", 4)
    notes: list[str] = []
    fit_projector(opened, samples[:1], CPU, seed=0, on_note=notes.append)
    assert notes[0] == "fitting a projector to the first 4 of 6 phrases on 1 images"


def test_a_single_phrase_is_refused(opened: OpenedModel, samples: list[Sample]) -> None:
    one = [replace(each, prompts=(PHRASES[0], f" {PHRASES[0]} "), masks=((Absent(),),) * 2) for each in samples]
    with raises_code(SettingError, "conflicting_settings", "only first left branch;"):
        fit_projector(opened, one, CPU, seed=0)
    with raises_code(SettingError, "conflicting_settings", "only none;"):
        fit_projector(opened, [], CPU, seed=0)


def run_settings(folder: Path, **changes: Any) -> RunSettings:
    values = {
        "model": "tiny",
        "projector": "fitted",
        "data": {"train": folder / "set"},
        "steps": 1,
        "batch_size": 2,
        "trackers": [],
        "out": folder / "run",
    }
    return make_settings(RunSettings, {**values, **changes}, "test")


def test_a_new_run_fits_the_projector_and_a_resumed_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "set", 2, seed=7, size=64, num_workers=0)
    monkeypatch.setattr(projector, "QUESTIONS", 24)
    notes: list[str] = []
    train(run_settings(tmp_path), on_note=notes.append)
    assert any(note.startswith("projector fitted: ") for note in notes)
    assert any(note.endswith("its projector is not trained to segment yet") for note in notes)
    card = json.loads((tmp_path / "run/last/vesalius.json").read_text())
    assert card["lineage"]["settings"]["projector"] == "fitted"
    monkeypatch.setattr("vesalius.training.preparation.fit_projector", None)
    resume(run_settings(tmp_path, steps=2))


def test_data_prompt_with_a_fitted_projector_is_refused(tmp_path: Path) -> None:
    data = {"train": tmp_path / "nowhere", "prompt": "blood vessel"}
    with raises_code(SettingError, "bad_value", "data.prompt"):
        run_settings(tmp_path, data=data)
