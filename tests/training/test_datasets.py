"""Runs on several datasets: joined samples, distinct ids, leaks between them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.codes import raises_code
from tests.training.run_files import MakeSettings

from vesalius.cli.main import main
from vesalius.errors import AnnotationError, SettingError
from vesalius.synth import write_dataset
from vesalius.training.datasets import open_data
from vesalius.training.run import resume, train

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two datasets whose folders have the same name and whose images have the same ids."""
    folder = tmp_path_factory.mktemp("two")
    sets = folder / "a" / "set", folder / "b" / "set"
    for seed, out in enumerate(sets):
        write_dataset(out, 2 + seed, seed=seed, size=64, num_workers=0)
    return sets


def test_a_run_uses_the_images_of_all_datasets(
    plain_settings: MakeSettings, two: tuple[Path, Path], tmp_path: Path
) -> None:
    notes: list[str] = []
    asked = plain_settings(tmp_path / "run", data={"train": list(two), "val": two[1]}, validate={"figures": 0})
    run = train(asked, on_note=notes.append)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["train"]["data"] == [str(path) for path in two]
    expected = {f"a__set__synth_0000{n}" for n in range(2)} | {f"b__set__synth_0000{n}" for n in range(3)}
    assert set(manifest["train"]["samples"]) == expected
    assert manifest["val"]["samples"] == [f"b__set__synth_0000{n}" for n in range(3)]
    assert "3 validation images are also training images: scores will be too high" in notes
    assert "3 groups (patients, sequences) are in both training and validation data: scores will be too high" in notes
    assert "training data: set, set, 5 images" in (run / "last" / "README.md").read_text()
    resume(asked.changed(steps=3))
    with raises_code(SettingError, "bad_value"):
        plain_settings(tmp_path / "empty", data={"train": []})


def test_the_command_line_takes_a_list(two: tuple[Path, Path], plain_settings: MakeSettings, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(plain_settings(tmp_path / "run", steps=1).to_yaml())
    assert main(["train", str(recipe), "--set", f"data.train=[{two[0]},{two[1]}]"]) == 0
    assert len(json.loads((tmp_path / "run" / "manifest.json").read_text())["train"]["samples"]) == 5


def test_ids_and_groups_keep_apart_what_is_different_and_together_what_is_the_same(
    plain_settings: MakeSettings, two: tuple[Path, Path], tmp_path: Path
) -> None:
    def opened(**data: Any) -> tuple[list[str], list[str]]:
        train_set, val_set = open_data(plain_settings(tmp_path / "run", data=data), None)
        return [each.id for each in train_set.samples], [each.id for each in (val_set.samples if val_set else ())]

    assert opened(train=two[0])[0] == ["synth_00000", "synth_00001"]
    assert opened(train=[two[0]])[0] == ["synth_00000", "synth_00001"]
    other = Path(shutil.copytree(two[0], tmp_path / "other"))
    assert opened(train=[other, two[1]])[0][0] == "other__synth_00000"
    # files of one folder share its images
    entries = json.loads((other / "annotations.json").read_text())
    (other / "annotations.json").unlink()
    for name, entry in zip(("one", "two"), entries, strict=True):
        (other / f"annotations.{name}.json").write_text(json.dumps([entry]))
    one, second = (other / f"annotations.{name}.json" for name in ("one", "two"))
    assert opened(train=[one, second])[0] == ["other__synth_00000", "other__synth_00001"]
    with raises_code(AnnotationError, "duplicate_id", "other__synth_00000"):
        opened(train=[one, one])
    with raises_code(SettingError, "output_inside_data"):
        open_data(plain_settings(two[1] / "run", data={"train": list(two)}), None)
