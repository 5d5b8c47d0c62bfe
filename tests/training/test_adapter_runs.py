"""Runs that train LoRA: what their checkpoints hold, that they resume exactly, and what they become at the end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.codes import raises_code

from vesalius.config import make_settings
from vesalius.errors import TrainingError
from vesalius.lineage import fingerprint_weights
from vesalius.models.cards import read_card
from vesalius.models.checkpoint import open_model
from vesalius.synth import write_dataset
from vesalius.training.run import resume, train
from vesalius.training.settings import RunSettings

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, 4, seed=7, size=96)
    return folder


def settings(data: Path, out: Path, **changes: Any) -> RunSettings:
    stored = json.loads((GOLDEN / "first_losses_settings.json").read_text())
    values = {**stored, "data": {"train": data, "val": data}, "out": out, "trackers": []}
    return make_settings(RunSettings, {**values, "trainable": "tokens", "steps": 2, **changes}, "test")


def test_a_run_of_lora_ends_in_merged_weights_and_resumes_from_its_adapter(
    data: Path, tmp_path: Path
) -> None:
    run = train(settings(data, tmp_path / "run"))
    last, best = open_model(run / "last"), open_model(run / "best")
    assert last.has_adapter
    assert not best.has_adapter
    assert (run / "best").resolve().name == "step-000002-merged"
    assert "trainable: tokens" in (run / "best" / "README.md").read_text()
    prompts = last.processor.tokenizer("Please segment the vessel", return_tensors="pt").input_ids
    with torch.no_grad():
        states = [each.model.vlm.model.language_model(prompts).last_hidden_state for each in (last, best)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)
    assert read_card(run / "best").step == 2

    late = {"preset": "tokens", "save": "adapter"}
    with raises_code(TrainingError, "changed_setting", "step-000002-merged"):
        resume(settings(data, run, trainable=late))

    longer = resume(settings(data, run, steps=4))
    whole = train(settings(data, tmp_path / "whole", steps=4))
    # the rates of a run of 2 steps fall sooner, so that the weights differ; the number of steps does not
    assert [json.loads(line)["step"] for line in (longer / "log.jsonl").read_text().splitlines()] == [
        json.loads(line)["step"] for line in (whole / "log.jsonl").read_text().splitlines()
    ]
    names = {path.name for path in (longer / "checkpoints").iterdir()}
    assert names == {(longer / name).resolve().name for name in ("best", "last")}


def test_an_adapter_is_resumed_to_the_last_digit_and_frozen_halves_are_written_once(
    data: Path, tmp_path: Path
) -> None:
    changes = {
        "steps": 4,
        "validate": {"every_epochs": 1},
        "trainable": {"preset": "lora", "save": "adapter"},
    }
    whole = train(settings(data, tmp_path / "whole", **changes))

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings(data, tmp_path / "part", **changes), on_step=stop)
    first = (tmp_path / "part/last").resolve() / "vlm/model.safetensors"
    inode = first.stat().st_ino
    part = resume(settings(data, tmp_path / "part", **changes))
    assert fingerprint_weights(part / "last") == fingerprint_weights(whole / "last")
    assert (part / "last/vlm/model.safetensors").stat().st_ino == inode
    assert open_model(part / "best").has_adapter
