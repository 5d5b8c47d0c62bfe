"""The whole line as a user drives it, and what he reads when something is wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from vesalius.cli import main
from vesalius.masks import decode_rle


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, a recipe and a run of two steps."""
    folder = tmp_path_factory.mktemp("工作")
    assert main(["synth", str(folder / "data"), "--n", "5", "--size", "96", "--seed", "4"]) == 0
    recipe = {
        "model": "tiny",
        "init": "random",
        "data": {"train": str(folder / "data"), "val": str(folder / "data")},
        "trainable": "full",
        "steps": 2,
        "batch_size": 2,
        "out": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    assert main(["train", str(folder / "recipe.yaml"), "--set", "optim.lr=1e-3", "seed=1"]) == 0
    return folder


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    code = main([str(argument) for argument in arguments] + ["--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def read_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one sentence on stderr of a command that must fail with exit code 1."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    sentences = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vesalius: ")]
    assert len(sentences) == 1
    return sentences[0]


def test_settings_on_the_command_line_reach_the_run(work: Path) -> None:
    settings = yaml.safe_load((work / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert settings["optim"]["lr"] == 1e-3
    assert settings["seed"] == 1
    assert settings["validate"]["metric"] == "dice"


def test_config_of_a_run_is_a_recipe(work: Path, tmp_path: Path) -> None:
    assert main(["train", str(work / "run" / "config.yaml"), "--set", f"out={tmp_path / 'again'}"]) == 0
    first, second = ((folder / "log.jsonl").read_text() for folder in (work / "run", tmp_path / "again"))
    assert [json.loads(line)["loss"] for line in first.splitlines()] == [
        json.loads(line)["loss"] for line in second.splitlines()
    ]


def test_check_counts_pairs(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run_json(capsys, "check", work / "data")
    assert code == 0
    assert result["counts"]["images"] == 5
    assert result["counts"]["pairs"] == 10
    assert result["format"] == "sa2va_json"


def test_predict_writes_the_prediction_folder(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = work / "data" / "images", tmp_path / "out"
    prompts = ["--prompt", "blood vessel", "--prompt", "导管"]
    saves = ["--save", "masks,probs,overlay,rle"]
    code, result = run_json(
        capsys, "predict", work / "run", images, *prompts, "--out", out, *saves, "--answer", "force"
    )
    assert code == 0
    assert result["coverage"] == {"ok": 10, "no_seg": 0, "failed": 0}
    lines = [
        json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(line["id"], line["prompt"]) for line in lines[:2]] == [
        ("synth_00000", "blood vessel"),
        ("synth_00000", "导管"),
    ]
    for line in lines:
        mask = read_pixels(out / line["mask"])
        assert set(np.unique(mask)) <= {0, 255}
        np.testing.assert_array_equal(mask > 0, decode_rle(line["rle"]))
        with np.load(out / line["probabilities"]) as stored:
            probabilities = stored["probabilities"]
        assert probabilities.shape == (1, 96, 96)
        np.testing.assert_array_equal(probabilities.max(axis=0) > 0.5, mask > 0)
        assert read_pixels(out / line["overlay"]).shape == (96, 96, 3)
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run["settings"]["answer"] == "force"
    assert len(run["model"]["fingerprint"]) == 64
    assert (out / "masks" / "synth_00000--导管.png").is_file()


def test_unreadable_image_among_others_fails_the_job_and_loses_nothing(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(images / "good.png")
    (images / "empty.png").touch()
    out = tmp_path / "out"
    code, result = run_json(
        capsys, "predict", work / "run", images, "--prompt", "x", "--out", out, "--answer", "force"
    )
    assert code == 1
    assert result["coverage"] == {"ok": 1, "no_seg": 0, "failed": 1}
    by_id = {
        line["id"]: line for line in map(json.loads, (out / "predictions.jsonl").read_text().splitlines())
    }
    assert by_id["empty"]["status"] == "failed"
    assert "empty.png" in by_id["empty"]["error"]
    assert "rle" not in by_id["empty"]
    assert not (out / "masks" / "empty.png").exists()
    assert (out / "masks" / "good.png").is_file()


def test_evaluate_refuses_training_images_and_scores_them_when_told(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", work / "run", work / "data", "--out", tmp_path / "out", "--answer", "force"]
    assert "trained on" in refusal(capsys, *command)
    assert not (tmp_path / "out").exists()
    code, metrics = run_json(capsys, *command, "--allow-training-samples")
    assert code == 0
    assert metrics["coverage"] == {"ok": 10, "no_seg": 0, "failed": 0}
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8")) | {
        "failed": 0
    }
    assert metrics["model"]["step"] == 2
    assert metrics["settings"]["answer"] == "force"
    rows = [
        json.loads(line)
        for line in (tmp_path / "out" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert np.mean([row["dice"] for row in rows]) == pytest.approx(metrics["mean"]["dice"])
    assert all((tmp_path / "out" / row["figure"]).is_file() for row in rows)
    assert (tmp_path / "out" / "report.html").is_file()


def test_untrained_model_that_says_nothing_is_scored_as_empty_masks(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["synth", str(tmp_path / "data"), "--n", "2", "--size", "96", "--seed", "9"])
    code, metrics = run_json(capsys, "evaluate", work / "run", tmp_path / "data", "--out", tmp_path / "out")
    assert code == 0
    assert metrics["coverage"]["no_seg"] == 4
    assert metrics["mean"]["dice"] == 0


def test_info_tells_what_a_model_is(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, facts = run_json(capsys, "info", work / "run")
    assert code == 0
    assert facts["step"] == 2
    assert facts["trained_on_images"] == 5
    assert facts["lineage"]["start"] == "random weights, seed 1"


def test_refusals_are_one_sentence_that_names_the_place(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = work / "data" / "images" / "synth_00000.png"
    out = ["--out", tmp_path / "out"]
    recipe = work / "recipe.yaml"
    data = work / "data"
    (tmp_path / "empty").mkdir()
    cases: list[tuple[list[str | Path], str]] = [
        (["predict", "tyni", image, "--prompt", "x", *out], "unknown model name 'tyni'; did you mean tiny?"),
        (["predict", work / "data", image, "--prompt", "x", *out], "holds no model"),
        (["predict", work / "run", tmp_path / "no.png", "--prompt", "x", *out], "no.png"),
        (["predict", work / "run", tmp_path / "empty", "--prompt", "x", *out], "empty: holds no image"),
        (["predict", work / "run", image, "--prompt", " ", *out], "the prompt is empty"),
        (["predict", work / "run", image, "--prompt", "x", "--prompt", "x", *out], "given twice"),
        (["predict", work / "run", image, "--prompt", "x", "--save", "mask", *out], "--save mask: unknown"),
        (["predict", work / "run", image, "--prompt", "x", "--threshold", "2", *out], "between 0 and 1"),
        (["predict", work / "run", image, "--prompt", "x", "--batch", "0", *out], "batch must be at least 1"),
        (["predict", work / "run", image, "--prompt", "x", "--out", work], "not empty; choose another"),
        (
            ["predict", work / "run", image, "--prompt", "x", "--out", "/proc/out"],
            "/proc/out: cannot be written",
        ),
        (["evaluate", work / "run", tmp_path / "empty", *out], "empty: is no dataset"),
        (["evaluate", work / "run", data, "--limit", "0", *out], "limit must be 1 or more"),
        (["check", tmp_path / "nowhere"], "nowhere: does not exist"),
        (["train"], "give a recipe, or --resume RUN"),
        (["train", tmp_path / "no.yaml"], "no.yaml: cannot be read (No such file or directory)"),
        (["train", recipe, "--set", "stepz=3"], "unknown key stepz; did you mean steps?"),
        (["train", recipe, "--set", "optim.lr"], "write it as name=value"),
        (["train", recipe, "--set", "optim.lr=-1"], "optim.lr: Input should be greater than 0"),
        (
            ["train", recipe],
            "run: exists and is not empty; choose another `out`, or continue it with --resume",
        ),
        (["train", "--resume", tmp_path / "empty"], "config.yaml: cannot be read"),
        (["synth", work / "data"], "not empty"),
        (["synth", tmp_path / "s", "--n", "0"], "n 0 is too small"),
        (["synth", tmp_path / "s", "--seed", "-1"], "seed -1 is negative"),
        (["train", recipe, "--set", f"out={recipe}"], "is a file; choose another `out`"),
        (["train", recipe, "--set", "optim.betas=[0.9, 1.5]"], "optim.betas"),
        (
            ["train", "--resume", work / "run", "--set", "batch_size=1"],
            "a batch had 2 images over all processes and would have 1",
        ),
        (["info", "Sa2VA-8B"], "Sa2VA-8B: its weights are not on this machine"),
    ]
    for command, expected in cases:
        assert expected in refusal(capsys, *command), command
        assert not (tmp_path / "out").exists(), command


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"mask": [[[1, 1, 5, 5]]], "text": ["x"]}, "2 points"),
        ({"mask": [[[1, 1]]], "text": ["x"]}, "1 point"),
        ({"mask": [[[1, 1, 5, 5, float("nan"), 2]]], "text": ["x"]}, "not a finite number"),
        ({"mask": [[[1, 1, 5, 5, 1, 5]]], "text": ["x", "y"]}, "2"),
        ({"mask": [[[1, 1, 500, 5, 1, 500]]], "text": ["x"]}, "another size"),
        ({"mask": [[]], "text": ["x"]}, "null"),
        ({"mask": [[[1, 1, 5, 5, 1, 5]]], "text": ["x"], "size": [80, 80]}, "80 x 80"),
    ],
)
def test_wrong_annotations_stop_training_before_it_begins(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: dict[str, Any], expected: str
) -> None:
    data = tmp_path / "set"
    data.mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(data / "图.png")
    (data / "annotations.json").write_text(json.dumps([{"image": "图.png", **entry}]), encoding="utf-8")
    assert main(["check", str(data)]) == 1
    out = tmp_path / "run"
    sentence = refusal(
        capsys,
        "train",
        work / "recipe.yaml",
        "--set",
        f"data.train={data}",
        f"data.val={data}",
        f"out={out}",
    )
    assert expected in sentence
    assert "图.png" in sentence or "entry 0" in sentence or "entry 1" in sentence
    assert not out.exists()


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fly"], ["predict", "tiny"], ["train", "a", "b", "c"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    capsys.readouterr()


def test_help_starts_without_torch() -> None:
    code = "import sys; from vesalius.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"{time.monotonic() - started:.2f} s")
    assert done.stdout.splitlines()[-1] == "False"
    assert "evaluate" in done.stdout


def test_interrupted_training_leaves_a_run_that_resumes(work: Path, tmp_path: Path) -> None:
    """A real process, killed without warning between checkpoints, then continued to the end."""
    out = tmp_path / "run"
    settings = [f"out={out}", "steps=3", "validate.every_epochs=1", "batch_size=5"]
    command = [sys.executable, "-m", "vesalius", "train", str(work / "recipe.yaml"), "--set", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "last").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert (out / "last").exists()
    assert main(["train", "--resume", str(out)]) == 0
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    assert (out / "last").readlink().name == "step-000003"
    assert not [path for path in out.rglob("*.partial")]
