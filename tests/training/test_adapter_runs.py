"""LoRA training runs: checkpoint contents, exact resumption, and merged weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.codes import raises_code
from tests.training.run_files import MakeSettings, StopAfter, lines

from vesalius.errors import TrainingError
from vesalius.lineage import fingerprint_weights
from vesalius.models.cards import read_card
from vesalius.models.checkpoint import open_model
from vesalius.training.run import resume, train

pytestmark = pytest.mark.usefixtures("small")


def with_validation(data: Path) -> dict[str, Any]:
    return {
        "data": {"train": data, "val": data},
        "validate": {"every_epochs": 1, "limit": 1, "figures": 0},
        "optim": {"lr": 1e-3},
    }


def test_a_lora_run_ends_with_merged_weights_and_resumes_from_its_adapter(
    plain_settings: MakeSettings, four_images: Path, tmp_path: Path
) -> None:
    changes = {**with_validation(four_images), "trainable": "tokens"}
    run = train(plain_settings(tmp_path / "run", **changes))
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
        resume(plain_settings(run, **{**changes, "trainable": late}))

    resume(plain_settings(run, **{**changes, "steps": 4}))
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4]
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {(run / name).resolve().name for name in ("best", "last")}


def test_an_adapter_resumes_exactly_and_frozen_components_are_stored_once(
    plain_settings: MakeSettings, four_images: Path, tmp_path: Path
) -> None:
    changes = {**with_validation(four_images), "steps": 4, "trainable": {"preset": "lora", "save": "adapter"}}
    whole = train(plain_settings(tmp_path / "whole", **changes))
    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        train(plain_settings(part, **changes), on_step=StopAfter(2))
    inode = ((part / "last").resolve() / "vlm/model.safetensors").stat().st_ino
    resume(plain_settings(part, **changes))
    assert fingerprint_weights(part / "last") == fingerprint_weights(whole / "last")
    assert (part / "last/vlm/model.safetensors").stat().st_ino == inode
    assert open_model(part / "best").has_adapter

    shutil.rmtree(part / "last" / "adapter")
    with pytest.raises(TrainingError, match=r"adapter: .*missing"):
        resume(plain_settings(part, **{**changes, "steps": 5}))
    assert json.loads((part / "last" / "vesalius.json").read_text())["adapter"]
