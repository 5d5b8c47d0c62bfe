"""User-defined segmenters need only `description` and `predict`; other operations are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tests.codes import raises_code

from vesalius import LowRes, ModelDescription, Prediction, Segmenter
from vesalius.errors import SettingError
from vesalius.jobs.folder import write_predictions
from vesalius.segmenter import Usage
from vesalius.types import Item, Sample


class LeftHalf(Segmenter):
    description = ModelDescription("left", "test", batch_size=3)

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        maps = LowRes(np.array([[[9, -9], [9, -9]]], np.float32), 2)
        return [Prediction(item.id, prompt, "ok", item.size, maps) for item in items for prompt in item.prompts]


def test_description_and_predict_are_enough_for_a_job(tmp_path: Path) -> None:
    Image.new("L", (8, 4)).save(tmp_path / "a.png")
    sample = Sample("a", tmp_path / "a.png", (), ())
    summary = write_predictions(LeftHalf(), [sample], ["vessel"], tmp_path / "out")
    assert summary["model"] == {"name": "left", "kind": "test", "fingerprint": None, "step": None}
    assert summary["coverage"] == {"ok": 1, "no_seg": 0, "failed": 0}
    assert (np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png")) > 0).sum() == 16


def test_other_abilities_are_refused_with_the_name_of_the_model() -> None:
    model = LeftHalf()
    assert model.usage == Usage()
    assert model.check_prompts(["any prompt"]) == []
    for ask in (
        lambda: model.with_views(["flip"], ["vessel"]),
        lambda: model.check_video(5),
        lambda: model.predict_video([], ["vessel"]),
    ):
        with raises_code(SettingError, "not_supported", "left: "):
            ask()
