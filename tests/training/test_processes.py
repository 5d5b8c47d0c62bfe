"""Distributed runs (DDP by torchrun, FSDP2 by accelerate launch) equal a run of one process and end together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.codes import raises_code
from tests.training.run_files import lines

from vesalius.config import make_settings
from vesalius.data.augment import AugmentSettings
from vesalius.errors import SettingError, TrainingError
from vesalius.models.checkpoint import open_model
from vesalius.synth import write_dataset
from vesalius.training.distributed import join_processes
from vesalius.training.loader import Loader
from vesalius.training.run import resume, train
from vesalius.training.settings import RunSettings

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATIONS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
RECIPE: dict[str, Any] = {
    "init": "pretrained",
    "trainable": "decoder",
    "epochs": 1,
    "batch_size": 2,
    "optim": {"lr": 1e-3, "warmup_ratio": 0.2, "gradient_accumulation_steps": 2},
    "augment": {"flip": 0.5},
    "loss": {"text": 0.0},
    "validate": {"limit": 2, "figures": 0},
    "trackers": [],
}
"""Recipe for five samples: one step of two batches of two images, and one step of one image for one of two processes."""

MakeRecipe = Callable[..., RunSettings]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, 5, seed=7, size=64)
    return folder


@pytest.fixture(scope="module")
def settings(data: Path, small_bundle: Path) -> MakeRecipe:
    """Factory of settings for a run of the small model."""

    def make(out: Path, **changes: Any) -> RunSettings:
        about = {"model": str(small_bundle), "data": {"train": data, "val": data}, "out": out}
        return make_settings(RunSettings, {**RECIPE, **about, **changes}, "test")

    return make


@pytest.fixture(scope="module")
def alone(settings: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference run, in one process."""
    return train(settings(tmp_path_factory.mktemp("alone") / "run"))


def start(launcher: list[str], arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [*launcher, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT, timeout=600)


def assert_equal(run: Path, alone: Path) -> None:
    """Assert equal losses (1e-5), validation Dice (1e-3) and final weights (1e-4)."""
    for one, other in zip(lines(run), lines(alone), strict=True):
        for name in ("loss", "loss_mask", "loss_dice", "loss_iou", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), (one["step"], name)
    assert lines(run, "validation.jsonl")[-1]["dice"] == pytest.approx(
        lines(alone, "validation.jsonl")[-1]["dice"], abs=1e-3
    )
    one, other = (dict(open_model(each / "last").model.named_parameters()) for each in (run, alone))
    assert one.keys() == other.keys()
    for name, parameter in one.items():
        torch.testing.assert_close(parameter, other[name], atol=1e-4, rtol=1e-3, msg=name)


def test_two_processes_of_torchrun_have_the_losses_of_one(settings: MakeRecipe, alone: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(settings(tmp_path / "run", batch_size=1).to_yaml())
    done = start(TORCHRUN, ["-m", "vesalius", "train", str(recipe)])
    assert done.returncode == 0, done.stderr
    assert_equal(tmp_path / "run", alone)
    assert done.stdout.count("validation at step 2") == 1
    state = json.loads((tmp_path / "run" / "last" / "train_state.json").read_text())
    assert state["global_batch_size"] == 2


SHARDED = """
import os, shutil, sys
from pathlib import Path
from torch.distributed.tensor import DTensor
from vesalius.cli import main
from vesalius.training import loop
recipe, run, copy = sys.argv[1:]
train_step, stopped = loop.train_step, False
def checked(context, state, *args):
    global stopped
    parameters = list(context.learner.module.parameters())
    assert all(isinstance(p, DTensor) for p in parameters)
    held, of = (sum(n) for n in zip(*((p.to_local().numel(), p.numel()) for p in parameters)))
    assert 0.4 < held / of < 0.6, (held, of)  # not exactly 0.5: a tensor with one row is whole in the first process
    moved = [p for group in context.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in moved} <= {id(p) for p in parameters}
    if state.step == 1 and not stopped:
        stopped = True
        context.process.barrier()
        if context.process.is_main:
            shutil.copytree(run, copy, symlinks=True)
        context.process.barrier()
        raise InterruptedError
    print(f"{len(parameters)} parameters in shards, {len(moved)} move", flush=True)
    return train_step(context, state, *args)
loop.train_step = checked
assert main(["train", recipe]) != 0 and stopped
code = main(["train", "--resume", run])
sys.stdout.flush()
# two runs in one process: at interpreter exit, gloo may abort on the threads of the interrupted one
os._exit(code)
"""


def test_two_processes_of_accelerate_launch_train_sharded_and_resume_sharded_or_unsharded(
    settings: MakeRecipe, alone: Path, tmp_path: Path
) -> None:
    """On CPUs, where Accelerate itself would use DDP, each parameter is a DTensor sharded over both processes.

    Baseline and validation run on the sharded model; the run is stopped after its first step and resumed.
    """
    recipe, script, run = tmp_path / "recipe.yaml", tmp_path / "script.py", tmp_path / "run"
    script.write_text(SHARDED)
    configuration = ["--config_file", str(ROOT / "recipes" / "accelerate" / "fsdp2.yaml")]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *configuration, "--main_process_port", "0"]
    recipe.write_text(settings(run, batch_size=1, save_every_minutes=1e-9).to_yaml())
    copy = tmp_path / "whole"
    done = start(launch, [str(script), str(recipe), str(run), str(copy)])
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d\d+ parameters in shards, \d\d+ move", done.stdout), done.stderr
    assert done.stdout.count("resumed at step 1") == 1
    assert done.stdout.count("before training: answers ") == 1
    assert [line["step"] for line in lines(run)] == [1, 2]
    assert [line["step"] for line in lines(run, "validation.jsonl")] == [0, 2]
    assert len({line["fingerprint"] for line in lines(run, "validation.jsonl")}) == 2
    assert_equal(run, alone)
    whole = resume(settings(copy, batch_size=2, save_every_minutes=1e-9))
    assert_equal(whole, alone)


@pytest.mark.slow
def test_signal_to_the_launcher_saves_in_all_processes(settings: MakeRecipe, tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(settings(run, batch_size=1, epochs=1000).to_yaml())
    command = [*TORCHRUN, "-m", "vesalius", "train", str(recipe)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as job:  # type: ignore[call-overload]
        while not (run / "log.jsonl").exists():
            assert job.poll() is None, job.stderr.read()
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        errors = job.stderr.read()
    assert "stopped by SIGTERM after step" in errors, errors
    step = int(re.findall(r"after step (\d+), which is saved", errors)[0])
    assert (run / "last").readlink().name == f"step-{step:06d}"
    assert lines(run)[-1]["step"] == step


@pytest.mark.slow
def test_an_error_in_one_process_ends_both_with_its_message(settings: MakeRecipe, tmp_path: Path) -> None:
    """The loss is NaN in the second process only; both processes end with the same error."""
    recipe, script, run = tmp_path / "recipe.yaml", tmp_path / "script.py", tmp_path / "run"
    script.write_text(
        "import os, sys\nfrom vesalius.training import loop\nwhole = loop.backward\n"
        "def spoiled(context, *args, **more):\n    losses = whole(context, *args, **more)\n"
        "    return {**losses, 'total': float('nan')} if context.process.rank == 1 else losses\n"
        "loop.backward = spoiled\nfrom vesalius.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    recipe.write_text(settings(run, batch_size=1).to_yaml())
    done = start(TORCHRUN, [str(script), "train", str(recipe)])
    assert done.returncode == 1
    assert "the loss became nan at step 1 on the samples synth_0000" in done.stderr
    failure = json.loads((run / "failure.json").read_text())
    assert [batch["losses"]["total"] == "nan" for batch in failure["batches"]] == [False, False, True, True]


def loaders(data: Path, ranks: int, batch_size: int) -> list[Loader]:
    from vesalius.data.dataset import open_dataset
    from vesalius.models.checkpoint import new_model
    from vesalius.training.learner import TextSegLearner
    from vesalius.training.losses import LossSettings
    from vesalius.training.mixture import TaskSettings, open_mixture

    learner = TextSegLearner(new_model("tiny", 0), {}, LossSettings())
    mixture = open_mixture(open_dataset(data).samples, TaskSettings(), None, False)
    return [
        Loader(mixture, learner, AugmentSettings(), batch_size, seed=3, accumulation=2, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]


@pytest.mark.parametrize(("ranks", "batch_size"), [(2, 1), (2, 2), (3, 1), (4, 2)])
def test_processes_divide_the_batches_and_weights_of_one_process(data: Path, ranks: int, batch_size: int) -> None:
    (one,), several = loaders(data, 1, ranks * batch_size), loaders(data, ranks, batch_size)
    assert {each.steps_in_epoch() for each in several} == {one.steps_in_epoch()}
    for whole, *steps in zip(one.steps(1), *(each.steps(1) for each in several), strict=True):
        assert {step.images for step in steps} == {whole.images}
        assert sum(each.weight for step in steps for each in step.microbatches) == pytest.approx(1)
        for index, expected in enumerate(whole.microbatches):
            parts = [step.microbatches[index] for step in steps]
            assert expected.ids == [i for each in parts if each.weight for i in each.ids]
            np.testing.assert_allclose(
                [each.weight * whole.images for each in parts], [len(each.ids) * bool(each.weight) for each in parts]
            )


@pytest.mark.parametrize(
    ("variable", "value", "code", "names"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "conflicting_settings", "mixed precision fp16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "conflicting_settings", "asks for 4"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "unsupported_launch", "DeepSpeed"),
    ],
)
def test_launch_configuration_that_contradicts_the_recipe_is_refused(
    settings: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    code: str,
    names: str,
) -> None:
    monkeypatch.setenv(variable, value)
    with raises_code(SettingError, code, names):
        train(settings(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_processes_that_do_not_form_a_group_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each process would train alone into the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with raises_code(TrainingError, "missing_process", "2 processes were started and 1 joined"):
        join_processes("fp32")


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_accelerate_reads_each_launch_configuration_and_its_header_says_where_it_ran(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).mixed_precision == "no"
    text = path.read_text()
    assert re.search(r"^# run: +\S", text, re.MULTILINE)
    assert f"--config_file recipes/accelerate/{path.name}" in text
    assert yaml.safe_load(text)["num_machines"] == 1
