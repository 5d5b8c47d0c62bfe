"""Settings: strict keys, values from the command line, and errors that name file and field."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from tests.codes import raises_code

from vesalius.config import Settings, apply_changes, make_settings, read_settings
from vesalius.errors import SettingError


class Optim(Settings):
    lr: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)


class Run(Settings):
    optim: Optim = Optim()
    check_: Optim = Field(default=Optim(), alias="check")
    steps: int | None = None
    name: str = "run"


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "配方.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_and_changes_make_settings(tmp_path: Path) -> None:
    path = recipe(tmp_path, "optim: {lr: 1e-3}\nname: 血管\n")
    settings = read_settings(Run, path, ["optim.betas=[0.5, 0.6]", "steps=7"])
    assert settings == Run(optim=Optim(lr=1e-3, betas=(0.5, 0.6)), steps=7, name="血管")


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert read_settings(Run, recipe(tmp_path, "# nothing\n")) == Run()


def test_yaml_round_trip_writes_every_default(tmp_path: Path) -> None:
    text = Run(name="é").to_yaml()
    assert set(yaml.safe_load(text)) == {"optim", "check", "steps", "name"}
    assert read_settings(Run, recipe(tmp_path, text)) == Run(name="é")


@pytest.mark.parametrize(
    ("text", "code", "field", "reason"),
    [
        ("optin: {}", "unknown_setting", "optin", "did you mean optim?"),
        ("optim: {rl: 1}", "unknown_setting", "optim.rl", "did you mean optim.lr?"),
        ("check: {rl: 1}", "unknown_setting", "check.rl", "did you mean check.lr?"),
        ("chek: {}", "unknown_setting", "chek", "did you mean check?"),
        ("zzzz: 1", "unknown_setting", "zzzz", "optim, check, steps, name"),
        ("optim: {lr: -1}", "bad_value", "optim.lr", "greater than 0"),
        ("steps: many", "bad_value", "steps", "expected a whole number; got 'many'"),
        ("optim: {betas: [0.9, x]}", "bad_value", "optim.betas.1", "expected a number; got 'x'"),
        ("optim: {betas: 3}", "bad_value", "optim.betas", "expected a list of 2 values"),
        ("optim: 3", "bad_value", "optim", "expected keys and values; got 3"),
        ("name: [x]", "bad_value", "name", "expected text"),
        ("lr: 1", "unknown_setting", "lr", "did you mean optim.lr or check.lr?"),
        ("adam: {lr: 1}", "unknown_setting", "adam.lr", "did you mean optim.lr or check.lr?"),
        ("[1, 2]", "not_yaml", None, "list"),
        ("a: [", "not_yaml", None, ""),
        ("steps: 1\nname: a\nsteps: 2", "not_yaml", None, "duplicate key steps"),
        ("optim: {lr: 1, lr: 2}", "not_yaml", None, "duplicate key lr"),
        ("a: !!python/name:os.system", "not_yaml", None, ""),
    ],
)
def test_a_wrong_recipe_is_refused_with_file_and_field(
    tmp_path: Path, text: str, code: str, field: str | None, reason: str
) -> None:
    path = recipe(tmp_path, text)
    with raises_code(SettingError, code, f"{path}: ", field or "", reason) as caught:
        read_settings(Run, path)
    assert (caught.value.path, caught.value.field) == (str(path), field)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_recipe_is_refused(tmp_path: Path) -> None:
    with raises_code(SettingError, "unreadable_file", "none.yaml"):
        read_settings(Run, tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with raises_code(SettingError, "not_yaml", "a.yaml"):
        read_settings(Run, tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("true", True),
        ("null", None),
        ("[1, a]", [1, "a"]),
        ("blood vessel", "blood vessel"),
        ("tree", "tree"),
        ("a=b", "a=b"),
        ("", None),
    ],
)
def test_values_of_changes_are_read_as_yaml(text: str, value: Any) -> None:
    assert apply_changes({}, [f"a.b={text}"]) == {"a": {"b": value}}


def test_changes_leave_the_original_alone() -> None:
    original = {"optim": {"lr": 1}, "name": "x"}
    assert apply_changes(original, ["optim.lr=2", "optim.new.deep=3"]) == {
        "optim": {"lr": 2, "new": {"deep": 3}},
        "name": "x",
    }
    assert original == {"optim": {"lr": 1}, "name": "x"}


@pytest.mark.parametrize(
    ("change", "code"), [("optim.lr", "malformed_change"), ("=3", "malformed_change"), ("a=[1", "not_yaml")]
)
def test_a_change_that_is_not_name_and_value_is_refused(change: str, code: str) -> None:
    with raises_code(SettingError, code, f"--set {change}"):
        apply_changes({}, [change])


@given(st.text(max_size=20))
def test_any_change_gives_values_or_a_setting_error(change: str) -> None:
    with contextlib.suppress(SettingError):
        assert isinstance(apply_changes({}, [change]), dict)


def test_settings_are_frozen_and_changed_copies_are_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Run().steps = 3
    assert Run().changed(steps=3).steps == 3
    with pytest.raises(ValueError, match="valid integer"):
        Run().changed(steps="many")


def test_an_error_in_plain_values_names_their_origin() -> None:
    with raises_code(SettingError, "unknown_setting", "vesalius.json", "stepz", "steps") as caught:
        make_settings(Run, {"stepz": 1}, "vesalius.json")
    assert caught.value.path is None
