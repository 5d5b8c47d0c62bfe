"""Two clean datasets, copied and damaged by each test: a synthetic one and, if available, real angiograms."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vesalius.checks.inspection import Report, inspect
from vesalius.synth import write_dataset
from vesalius.types import Finding

N = 6


@dataclass
class Spoiled:
    """A dataset for a test to spoil: images in a folder, entries in memory until it is checked."""

    root: Path
    entries: list[dict[str, Any]]

    def image(self, index: int) -> Path:
        return self.root / self.entries[index]["image"]

    def write(self, split: str = "", entries: list[dict[str, Any]] | None = None) -> None:
        name = f"annotations.{split}.json" if split else "annotations.json"
        (self.root / name).write_text(json.dumps(self.entries if entries is None else entries))

    def check(self, **settings: Any) -> Report:
        if not list(self.root.glob("annotations*.json")):
            self.write()
        return inspect(self.root, num_workers=0, **settings)

    def findings(self, **settings: Any) -> tuple[Finding, ...]:
        return self.check(**settings).findings


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write_dataset(folder, N, seed=5, size=128)
    return folder


@pytest.fixture(scope="session")
def angiograms(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 ARCADE angiograms without findings, each with a group."""
    source = shared / "data" / "arcade"
    report = inspect(source, split="val", num_workers=0)
    odd = {name for finding in report.findings for name in finding.samples}
    clean = [sample.id for sample in report.parts[""].samples if sample.id not in odd][:20]
    entries = json.loads((source / "annotations.val.json").read_text())
    kept = [entry for entry in entries if Path(entry["image"]).stem in clean]
    folder = tmp_path_factory.mktemp("angiograms") / "data"
    (folder / "images").mkdir(parents=True)
    for number, entry in enumerate(kept):
        shutil.copy(source / "images" / entry["image"], folder / "images")
        entry.update(image=f"images/{entry['image']}", group=f"p{number}")
    (folder / "annotations.json").write_text(json.dumps(kept))
    return folder


def copy_of(folder: Path, to: Path, n: int) -> Spoiled:
    entries = json.loads((folder / "annotations.json").read_text())[:n]
    (to / "images").mkdir(parents=True)
    for entry in entries:
        shutil.copy(folder / entry["image"], to / "images")
    return Spoiled(to, entries)


@pytest.fixture(params=["synthetic", "angiograms"])
def clean(request: pytest.FixtureRequest, tmp_path: Path) -> Spoiled:
    """A copy of 6 images of each dataset."""
    return copy_of(request.getfixturevalue(request.param), tmp_path / "data", N)


@pytest.fixture
def drawn(synthetic: Path, tmp_path: Path) -> Spoiled:
    """A copy of the synthetic dataset."""
    return copy_of(synthetic, tmp_path / "data", N)


@pytest.fixture
def twenty(angiograms: Path, tmp_path: Path) -> Spoiled:
    return copy_of(angiograms, tmp_path / "data", 20)
