"""Evaluation with several processes gives the result of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.codes import raises_code

from vesalius.errors import OutputError
from vesalius.scoring import evaluate as scoring


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_is_the_same_with_other_processes(tmp_path, workers, FakeSegmenter, dataset):
    data = dataset(tmp_path / "data", ids=list("abcd"), prompts=("x", "y"))
    drawn = workers == 2
    answers = {"a": None, "c": RuntimeError("no"), "d": np.linspace(-3, 3, 256).reshape(16, 16)}
    here = scoring.evaluate(FakeSegmenter(answers), data, tmp_path / "here", num_workers=0, figures=drawn)
    apart = scoring.evaluate(FakeSegmenter(answers), data, tmp_path / "apart", num_workers=workers, figures=drawn)

    changing = ("took_s", "images_per_s", "settings")
    assert {k: v for k, v in here.items() if k not in changing} == {k: v for k, v in apart.items() if k not in changing}
    for path in [
        Path("samples.jsonl"),
        *(p.relative_to(tmp_path / "here") for p in (tmp_path / "here").glob("figures/*")),
    ]:
        assert (tmp_path / "here" / path).read_bytes() == (tmp_path / "apart" / path).read_bytes()


def test_figure_that_cannot_be_written_in_a_worker_is_an_error(tmp_path, FakeSegmenter, dataset):
    data = dataset(tmp_path / "data")
    (tmp_path / ".out.unfinished/figures/a.png").mkdir(parents=True)

    class InTheWay(FakeSegmenter):
        def predict(self, items: Any) -> Any:
            (tmp_path / ".out.unfinished/figures/a.png").mkdir(exist_ok=True)
            return super().predict(items)

    with raises_code(OutputError, "write_failed", "figures/a.png"):
        scoring.evaluate(InTheWay(), data, tmp_path / "out", num_workers=1)
    assert (tmp_path / ".out.unfinished/state.json").exists()


SCRIPT = """
import json, sys
import numpy as np
from vesalius import LowRes, ModelDescription, Prediction, Segmenter, evaluate, load_samples

class Ones(Segmenter):
    description = ModelDescription("script", "script", batch_size=2)

    def predict(self, items):
        maps = LowRes(np.ones((1, 2, 2), np.float32), 2)
        return [
            Prediction(item.id, prompt, "ok", item.size, maps, (0.5,))
            for item in items for prompt in item.prompts
        ]

metrics = evaluate(Ones(), load_samples(sys.argv[1]), sys.argv[2], num_workers=2, figures=False)
print(json.dumps(metrics["coverage"]))
"""


def test_script_needs_no_guard_around_its_lines(tmp_path):
    from vesalius.synth import write_dataset

    write_dataset(tmp_path / "data", 3, seed=0, size=64)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", tmp_path / "data", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"ok": 6, "failed": 0, "no_seg": 0}, done.stderr
