"""Fixtures of the training tests: small models, data, and one finished run to copy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.training.run_files import MakeSettings, small_and_quick

from vesalius.config import make_settings
from vesalius.models.checkpoint import new_model, write_bundle
from vesalius.synth import write_dataset
from vesalius.training.run import train
from vesalius.training.settings import RunSettings


@pytest.fixture
def small() -> Iterator[None]:
    """Runs of this test use a small model and draw no curves."""
    with small_and_quick():
        yield


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small model with random weights, for runs in subprocesses."""
    folder = tmp_path_factory.mktemp("small") / "bundle"
    with small_and_quick():
        opened = new_model("tiny", 0)
        write_bundle(folder, opened, opened.card)
    return folder


@pytest.fixture(scope="session")
def four_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 4 images with 64 x 64 pixels."""
    folder = tmp_path_factory.mktemp("four") / "set"
    write_dataset(folder, 4, seed=7, size=64, num_workers=0)
    return folder


@pytest.fixture(scope="session")
def plain_settings(four_images: Path) -> MakeSettings:
    """Factory of settings: two steps on `four_images`, only the projector trainable, no validation."""

    def settings(out: Path, **changes: Any) -> RunSettings:
        values = {
            "model": "tiny",
            "init": "random",
            "trainable": "projector",
            "data": {"train": four_images},
            "steps": 2,
            "batch_size": 2,
            "trackers": [],
            "out": out,
        }
        return make_settings(RunSettings, {**values, **changes}, "test")

    return settings


@pytest.fixture(scope="session")
def finished_run(plain_settings: MakeSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with `plain_settings`; tests copy it with the fixture `run`."""
    with small_and_quick():
        return train(plain_settings(tmp_path_factory.mktemp("finished") / "run"))


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished_run, tmp_path / "run", symlinks=True))
