"""`vesalius init` writes a recipe from the checked data; each choice follows from the data and has a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tests.codes import raises_code
from tests.training.run_files import lines, small_and_quick

from vesalius.cli import main
from vesalius.errors import CheckpointError, DataError, OutputError, SettingError
from vesalius.inference.plan import Plan, make_plan
from vesalius.training import first_recipe
from vesalius.training.first_recipe import write_first_recipe
from vesalius.training.run import read_run_settings


def draw(folder: Path, phrases: dict[str, list[int]], n: int = 6, thickness: int = 12) -> Path:
    """A dataset of `n` images of 64 x 64 pixels; each phrase is a bar from the given column, 0 where it is absent."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    entries = []
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
        bars = {phrase: [x, 8, x + thickness, 8, x + thickness, 56, x, 56] for phrase, (x,) in phrases.items()}
        entries.append({"image": f"{i}.png", "mask": [[bar] for bar in bars.values()], "text": list(bars)})
    (folder / "annotations.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def plan_of_tiny() -> Plan:
    """The memory plan of a training step of `tiny`, which takes a second to estimate."""
    return make_plan("tiny", purpose="train", changes=["trainable=full", "image=[64,64]"])


@pytest.fixture
def planned(plan_of_tiny: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are written with this plan."""
    monkeypatch.setattr(first_recipe, "make_plan", lambda *_, **__: plan_of_tiny)


def recipe_of(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def test_init_then_the_printed_command_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["synth", "data", "--n", "8", "--size", "96"]) == 0
    assert main(["split", "data", "parts", "--fractions", "0.5", "0.25", "0.25"]) == 0
    capsys.readouterr()
    assert main(["init", "parts", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["recipe"], result["new_phrases"]) == ("recipe.yaml", [])
    values = recipe_of(Path("recipe.yaml"))
    assert values["data"] == {"train": "parts/annotations.train.json", "val": "parts/annotations.val.json"}
    with small_and_quick():
        command = result["next"].split()[1:]
        assert main([*command, "--set", "epochs=null", "steps=2", "init=random", "batch_size=2"]) == 0
    assert len(lines(Path(values["out"]))) == 2


def test_every_setting_but_the_plain_ones_has_a_reason(planned: None, tmp_path: Path) -> None:
    write_first_recipe(draw(tmp_path / "data", {"disc": [8]}), tmp_path / "recipe.yaml")
    rows = (tmp_path / "recipe.yaml").read_text(encoding="utf-8").splitlines()
    settings = [i for i, row in enumerate(rows) if not row.startswith("#")]
    without = {rows[i].partition(":")[0] for i in settings if not rows[i - 1].startswith("#")}
    assert without == {"seed", "out"}


def test_new_phrases_are_separated_and_the_language_model_is_frozen(planned: None, tmp_path: Path) -> None:
    recipe = write_first_recipe(draw(tmp_path / "data", {"disc": [8], "cup": [40]}), tmp_path / "r.yaml")
    values = recipe_of(recipe.path)
    assert (values["projector"], values["trainable"]) == ("fitted", "decoder")
    assert recipe.basis.new == ("disc", "cup")


def test_known_phrases_keep_the_projector(planned: None, tmp_path: Path) -> None:
    recipe = write_first_recipe(draw(tmp_path / "data", {"blood vessel": [8], "catheter": [40]}), tmp_path / "r.yaml")
    values = recipe_of(recipe.path)
    assert "projector" not in values
    assert values["trainable"] == "full"


@pytest.mark.parametrize(("phrase", "flip"), [("left atrium", None), ("左冠状动脉", None), ("atrium", 0.5)])
def test_flips_are_left_out_where_a_phrase_names_a_side(
    planned: None, phrase: str, flip: float | None, tmp_path: Path
) -> None:
    recipe = write_first_recipe(draw(tmp_path / "data", {phrase: [8]}), tmp_path / "r.yaml")
    assert recipe_of(recipe.path)["augment"].get("flip") == flip


@pytest.mark.parametrize(("thickness", "weight"), [(12, None), (1, 0.5)])
def test_thin_structures_get_a_centerline_loss(
    planned: None, thickness: int, weight: float | None, tmp_path: Path
) -> None:
    data = draw(tmp_path / "data", {"wire": [8]}, n=2, thickness=thickness)
    if thickness == 1:  # a cell of the mask grid is 4 pixels in an image of 1024
        for i in range(2):
            path = data / "images" / f"{i}.png"
            with Image.open(path) as image:
                image.resize((1024, 1024)).save(path)
    recipe = write_first_recipe(data, tmp_path / "r.yaml")
    assert recipe_of(recipe.path)["loss"].get("cldice") == weight


def test_the_batch_is_planned_and_never_larger_than_the_data(planned: None, tmp_path: Path) -> None:
    recipe = write_first_recipe(draw(tmp_path / "data", {"disc": [8]}, n=3), tmp_path / "r.yaml")
    assert recipe_of(recipe.path)["batch_size"] == 3
    assert recipe.basis.plan is not None


def test_a_model_that_does_not_fit_is_written_with_what_would_fit(
    plan_of_tiny: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(plan_of_tiny, device_map=None, loads=(), remedies=("trainable=decoder instead of full",))
    monkeypatch.setattr(first_recipe, "make_plan", lambda *_, **__: plan)
    recipe = write_first_recipe(draw(tmp_path / "data", {"disc": [8]}), tmp_path / "r.yaml")
    assert any("DOES NOT FIT" in note and plan.remedies[0] in note for note in recipe.notes)
    assert plan.remedies[0] in recipe.path.read_text(encoding="utf-8")


def test_a_published_model_is_fine_tuned_with_lora(planned: None, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", {"disc": [8], "cup": [40]})
    recipe = write_first_recipe(data, tmp_path / "r.yaml", model="Sa2VA-1B")
    values = recipe_of(recipe.path)
    assert (values["model"], values["trainable"], values["optim"]["lr"]) == ("Sa2VA-1B", "lora", 4e-5)
    assert "projector" not in values


def test_a_new_unet_has_no_settings_of_a_language_model(tmp_path: Path) -> None:
    recipe = write_first_recipe(draw(tmp_path / "data", {"disc": [8]}), tmp_path / "r.yaml", model="unet")
    values = recipe_of(recipe.path)
    assert values["model"] == "unet"
    assert {"trainable", "projector"} & set(values) == set()


def test_validation_data_may_be_another_dataset(planned: None, tmp_path: Path) -> None:
    train, val = (draw(tmp_path / name, {"disc": [8]}) for name in ("train", "val"))
    recipe = write_first_recipe(train, tmp_path / "r.yaml", val=val)
    assert read_run_settings(recipe.path, []).data.val == val
    assert write_first_recipe(train, tmp_path / "s.yaml").basis.val is None


def test_faulty_data_is_refused_with_the_codes_of_its_errors(planned: None, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", {"disc": [8]})
    (data / "images" / "2.png").write_bytes(b"not an image")
    with raises_code(DataError, "dataset_errors", "unreadable_image 1", "vesalius check"):
        write_first_recipe(data, tmp_path / "r.yaml")
    assert not (tmp_path / "r.yaml").exists()


def test_refusals_leave_files_as_they_are(planned: None, tmp_path: Path) -> None:
    data, out = draw(tmp_path / "data", {"disc": [8]}), tmp_path / "r.yaml"
    out.write_text("mine")
    with raises_code(OutputError, "output_exists"):
        write_first_recipe(data, out)
    assert out.read_text() == "mine"
    with raises_code(SettingError, "output_inside_data"):
        write_first_recipe(data, data / "r.yaml")
    with raises_code(CheckpointError, "wrong_model_kind"):
        write_first_recipe(data, tmp_path / "s.yaml", model="frangi")
    with raises_code(SettingError, "unknown_model"):
        write_first_recipe(data, tmp_path / "s.yaml", model="Sa2VA-2Z")


def test_parts_without_the_name_train_are_refused_with_their_names(planned: None, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", {"disc": [8]})
    (data / "annotations.json").rename(data / "annotations.a.json")
    (data / "annotations.b.json").write_text((data / "annotations.a.json").read_text())
    with raises_code(SettingError, "ambiguous_split", "a, b"):
        write_first_recipe(data, tmp_path / "r.yaml")
