"""`vesalius.train` and `vesalius.resume`: recipes as files and as values, changes by keyword, wrong calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.codes import raises_code
from tests.training.run_files import MakeSettings, lines

import vesalius
from vesalius.errors import SettingError
from vesalius.jobs.opening import load_predictor

pytestmark = pytest.mark.usefixtures("small")


def test_a_mapping_and_a_file_train_with_changes(
    plain_settings: MakeSettings, four_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = plain_settings(tmp_path / "unused").model_dump(mode="json", exclude={"data", "out"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**values, "data": {"train": "nowhere", "prompt": "vessel"}}))
    data = str(four_images)
    run = vesalius.train(values, data={"train": data, "prompt": "vessel"}, out=tmp_path / "a", **{"optim.lr": 1e-3})
    assert run == tmp_path / "a"
    other = vesalius.train(
        str(tmp_path / "recipe.yaml"), data={"train": Path(data)}, out=str(tmp_path / "b"), optim={"lr": 0.001}
    )
    assert lines(run)[0]["loss"] == lines(other)[0]["loss"]
    config = yaml.safe_load((other / "config.yaml").read_text())
    assert (config["data"]["prompt"], config["optim"]["lr"]) == ("vessel", 1e-3)
    assert str(run) in capsys.readouterr().out
    assert load_predictor(run).description.step == 2
    assert vesalius.resume(run, steps=3) == run
    assert [line["step"] for line in lines(run)] == [1, 2, 3]


CALLS: dict[str, tuple[str, Callable[[], Any]]] = {
    "no recipe": ("bad_value", vesalius.train),
    "a number": ("bad_value", lambda: vesalius.train(3)),
    "unknown setting": ("unknown_setting", lambda: vesalius.train("tiny", step=3)),
    "unknown part": ("unknown_setting", lambda: vesalius.train("tiny", optim={"rate": 3})),
    "wrong value": ("bad_value", lambda: vesalius.train("tiny", steps="many")),
    "unknown recipe": ("not_found", lambda: vesalius.train("huge")),
    "overfit": ("bad_value", lambda: vesalius.train("tiny", overfit="4")),
    "no run": ("no_run", lambda: vesalius.resume("nowhere")),
    "run None": ("bad_value", lambda: vesalius.resume(None)),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls_are_refused_with_a_code(name: str) -> None:
    code, call = CALLS[name]
    with raises_code(SettingError, code):
        call()
