"""Other processes: the same results in the same order, few in flight, and one sentence when one is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vesalius.errors import OutputError, VesaliusError
from vesalius.scoring import evaluate as scoring
from vesalius.workers import IN_FLIGHT, map_in_order


def wait_longer_for_the_first(number: int) -> int:
    import time

    time.sleep(0.2 if number == 0 else 0)
    return number


def end(number: int) -> int:
    os._exit(7)


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_results_come_in_order_with_few_jobs_taken_ahead(processes):
    taken = 0

    def jobs() -> Any:
        nonlocal taken
        for number in range(40):
            taken += 1
            yield number

    ahead = []
    for done, result in enumerate(map_in_order(wait_longer_for_the_first, jobs(), processes)):
        assert result == done
        ahead.append(taken - done)
    assert max(ahead) <= IN_FLIGHT * processes + 1


def test_process_that_was_killed_is_one_sentence():
    with pytest.raises(VesaliusError, match=r"was killed.*run the same again to continue"):
        list(map_in_order(end, range(3), 1))
    assert list(map_in_order(wait_longer_for_the_first, range(3), 1)) == [0, 1, 2]


def test_error_of_the_work_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(partial(divmod, 1), [1, 0], 1))


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_is_the_same_with_other_processes(tmp_path, workers, FakeSegmenter, data_set):
    data = data_set(tmp_path / "data", ids=list("abcd"), prompts=("x", "y"))
    drawn = workers == 2
    answers = {"a": None, "c": RuntimeError("no"), "d": np.linspace(-3, 3, 256).reshape(16, 16)}
    here = scoring.evaluate(FakeSegmenter(answers), data, tmp_path / "here", workers=0, figures=drawn)
    apart = scoring.evaluate(FakeSegmenter(answers), data, tmp_path / "apart", workers=workers, figures=drawn)

    changing = ("took_s", "images_per_s", "settings")
    assert {k: v for k, v in here.items() if k not in changing} == {
        k: v for k, v in apart.items() if k not in changing
    }
    for path in [
        Path("samples.jsonl"),
        *(p.relative_to(tmp_path / "here") for p in (tmp_path / "here").glob("figures/*")),
    ]:
        assert (tmp_path / "here" / path).read_bytes() == (tmp_path / "apart" / path).read_bytes()


def test_figure_that_cannot_be_written_in_another_process_is_one_sentence(tmp_path, FakeSegmenter, data_set):
    data = data_set(tmp_path / "data")
    (tmp_path / ".out.unfinished/figures/a.png").mkdir(parents=True)

    class InTheWay(FakeSegmenter):
        def predict(self, items: Any) -> Any:
            (tmp_path / ".out.unfinished/figures/a.png").mkdir(exist_ok=True)
            return super().predict(items)

    with pytest.raises(OutputError, match=r"figures/a\.png: cannot be written \(Is a directory\)"):
        scoring.evaluate(InTheWay(), data, tmp_path / "out", workers=1)
    assert (tmp_path / ".out.unfinished/state.json").exists()


SCRIPT = """
import json, sys
import numpy as np
from vesalius import Prediction, evaluate, load_samples

class Segmenter:
    batch, threshold, threshold_origin, settings = 2, 0.5, {}, {}
    card = {"name": "script", "kind": "script", "fingerprint": None, "step": None}
    training_images, training_looks, tuning_images = (), (), ()

    def predict(self, items):
        return [
            Prediction(item.id, prompt, "ok", item.size, np.ones((1, 2, 2), np.float32), 2, (0.5,))
            for item in items for prompt in item.prompts
        ]

metrics = evaluate(Segmenter(), load_samples(sys.argv[1]), sys.argv[2], workers=2, figures=False)
print(json.dumps(metrics["coverage"]))
"""


def test_script_needs_no_guard_around_its_lines(tmp_path):
    from vesalius.data.synth import write_data_set

    write_data_set(tmp_path / "data", 3, seed=0, size=64)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", tmp_path / "data", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"ok": 6, "failed": 0, "no_seg": 0}, done.stderr
