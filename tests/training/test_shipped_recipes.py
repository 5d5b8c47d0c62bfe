"""Recipes that are part of Vesalius are found by name, in a clone and in an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.codes import raises_code

from vesalius.errors import SettingError
from vesalius.training.run import read_run_settings
from vesalius.training.shipped_recipes import find_recipe, shipped_recipes


@pytest.mark.parametrize("name", ["arcade", "arcade.yaml"])
def test_a_name_finds_the_recipe_in_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_run_settings(Path(name), ["data.train=mine"]).data.prompt == "blood vessel"


def test_a_file_of_the_user_comes_before_a_shipped_recipe_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("arcade.yaml").write_text("model: tiny\ndata: {train: mine}\nsteps: 3\nout: run\n")
    assert read_run_settings(Path("arcade.yaml"), []).steps == 3


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with raises_code(SettingError, "not_found", "arcad") as refused:
        find_recipe(Path("arcad"))
    assert all(name in str(refused.value) for name in ("arcade", "demo", "segments", "unet"))


def test_a_path_with_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert find_recipe(tmp_path / "arcade.yaml") == tmp_path / "arcade.yaml"
    assert {"arcade", "demo"} <= set(shipped_recipes())
