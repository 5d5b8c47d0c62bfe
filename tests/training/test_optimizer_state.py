"""Round trip and damage of stored optimizer state; test_processes.py tests sharded state."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.codes import raises_code

from vesalius.errors import OutputError, TrainingError
from vesalius.training.optimizer_state import OPTIMIZER, read_optimizer, write_optimizer


def made(seed: int, steps: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A module with a frozen last layer, and its optimizer; its second group has received no gradient."""
    torch.manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2), torch.nn.Linear(2, 2))
    module[2].requires_grad_(False)
    groups = [{"params": list(module[0].parameters())}, {"params": list(module[1].parameters()), "lr": 0.5}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        module[0](torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    return module, optimizer


def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    optimizer.zero_grad()
    module(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_the_next_step_is_identical_after_reading(tmp_path: Path) -> None:
    module, optimizer = made(0, steps=3)
    write_optimizer(tmp_path, module, optimizer, is_main=True)
    other, fresh = made(1)
    other.load_state_dict(module.state_dict())
    read_optimizer(tmp_path, other, fresh)
    assert [group["lr"] for group in fresh.param_groups] == [0.1, 0.5]
    for one, two in zip(step(module, optimizer), step(other, fresh), strict=True):
        assert torch.equal(one, two)


def test_tensors_are_named_after_parameters(tmp_path: Path) -> None:
    write_optimizer(tmp_path, *made(0, steps=1), is_main=True)
    kept = load_file(tmp_path / OPTIMIZER)
    parts = ("step", "exp_avg", "exp_avg_sq")
    assert set(kept) == {f"0.{name}:{part}" for name in ("weight", "bias") for part in parts}


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    write_optimizer(tmp_path, *made(0, steps=1), is_main=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lacking", ["step", "exp_avg", "exp_avg_sq", ""])
def test_an_incomplete_file_is_refused(tmp_path: Path, lacking: str) -> None:
    write_optimizer(tmp_path, *made(0, steps=1), is_main=True)
    kept = {} if not lacking else load_file(tmp_path / OPTIMIZER)
    kept.pop(f"0.bias:{lacking}", None)
    save_file(kept, tmp_path / OPTIMIZER)
    module, optimizer = made(1)
    with raises_code(TrainingError, "damaged_checkpoint", "exp_avg_sq"):
        read_optimizer(tmp_path, module, optimizer)
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("name", ["3.weight:exp_avg", "2.weight:exp_avg", "0.weight:exp_avg", "nonsense"])
def test_state_of_other_parameters_is_refused(tmp_path: Path, name: str) -> None:
    """An unknown parameter, a frozen parameter, a different shape, and a malformed name."""
    save_file({name: torch.zeros(5)}, tmp_path / OPTIMIZER)
    with raises_code(TrainingError, "damaged_checkpoint", name):
        read_optimizer(tmp_path, *made(0))


def test_pickled_code_is_not_executed(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / OPTIMIZER).write_bytes(pickle.dumps(Payload()))
    with raises_code(TrainingError, "damaged_checkpoint"):
        read_optimizer(tmp_path, *made(0))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / OPTIMIZER
    write_optimizer(tmp_path, *made(0, steps=1), is_main=True)
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-3])
    with raises_code(TrainingError, "damaged_checkpoint", f"{path}: "):
        read_optimizer(tmp_path, *made(0))


def test_an_unwritable_path_is_named(tmp_path: Path) -> None:
    (tmp_path / OPTIMIZER).mkdir()
    with raises_code(OutputError, "write_failed", f"{tmp_path / OPTIMIZER}: "):
        write_optimizer(tmp_path, *made(0, steps=1), is_main=True)
