"""The command line from data to report, and its errors."""

import json
import os
import signal
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
from vesalius.cli.main import VERBS
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


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    """The error object of a command that must fail with exit code 1 and one sentence on stderr."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 1
    printed = capsys.readouterr()
    error: dict[str, Any] = json.loads(printed.out.splitlines()[-1])["error"]
    assert printed.err.splitlines()[-1] == f"vesalius: {error['message']}"
    assert "\n" not in error["message"]
    return error


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
    assert result["format"] == "vesalius"


def test_predict_writes_the_prediction_folder(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = work / "data" / "images", tmp_path / "out"
    prompts = ["--prompt", "blood vessel", "--prompt", "导管"]
    saves = ["--save", "masks,probs,overlay,rle"]
    code, result = run_json(
        capsys, "predict", work / "run", images, *prompts, "--out", out, *saves, "--answer", "force"
    )
    assert code == 0
    assert result["coverage"] == {"ok": 10, "no_seg": 0, "failed": 0}
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
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
        shape = read_pixels(out / line["overlay"]).shape
        # a legend below the image marks an unknown phrase
        assert shape[0] > 96 if line.get("unknown_phrase") else shape == (96, 96, 3)
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run["settings"]["answer"] == "force"
    assert len(run["model"]["fingerprint"]) == 64
    assert (out / "masks" / "synth_00000--导管.png").is_file()


def test_an_unreadable_image_fails_the_job_but_not_the_other_images(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(images / "good.png")
    (images / "empty.png").touch()
    out = tmp_path / "out"
    code, result = run_json(capsys, "predict", work / "run", images, "--prompt", "x", "--out", out, "--answer", "force")
    assert code == 1
    assert result["coverage"] == {"ok": 1, "no_seg": 0, "failed": 1}
    by_id = {line["id"]: line for line in map(json.loads, (out / "predictions.jsonl").read_text().splitlines())}
    assert by_id["empty"]["status"] == "failed"
    assert "empty.png" in by_id["empty"]["error"]
    assert "rle" not in by_id["empty"]
    assert not (out / "masks" / "empty.png").exists()
    assert (out / "masks" / "good.png").is_file()


def test_evaluate_scores_training_images_only_if_allowed(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", work / "run", work / "data", "--out", tmp_path / "out", "--answer", "force"]
    assert "trained on" in refusal(capsys, *command)["message"]
    assert not (tmp_path / "out").exists()
    code, metrics = run_json(capsys, *command, "--allow-training-samples")
    assert code == 0
    assert metrics["coverage"] == {"ok": 10, "no_seg": 0, "failed": 0}
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8")) | {"failed": 0}
    assert metrics["model"]["step"] == 2
    assert metrics["settings"]["answer"] == "force"
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert np.mean([row["dice"] for row in rows]) == pytest.approx(metrics["mean"]["dice"])
    assert all((tmp_path / "out" / row["figure"]).is_file() for row in rows)
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_untrained_model_without_seg_is_scored_as_empty_masks(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["synth", str(tmp_path / "data"), "--n", "2", "--size", "96", "--seed", "9"])
    code, metrics = run_json(capsys, "evaluate", work / "run", tmp_path / "data", "--out", tmp_path / "out")
    assert code == 0
    assert metrics["coverage"]["no_seg"] == 4
    assert metrics["mean"]["dice"] == 0


def test_info_shows_the_provenance_of_a_model(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, facts = run_json(capsys, "info", work / "run")
    assert code == 0
    assert facts["step"] == 2
    assert facts["trained_on_images"] == 5
    assert facts["lineage"]["start"] == "random weights, seed 1"


def test_errors_have_a_code_and_one_sentence(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = work / "data" / "images" / "synth_00000.png"
    out = ["--out", tmp_path / "out"]
    recipe, data = work / "recipe.yaml", work / "data"
    predict = ["predict", work / "run", image, "--prompt", "x"]
    (tmp_path / "empty").mkdir()
    cases: list[tuple[list[str | Path], str, str]] = [
        (["predict", "tyni", image, "--prompt", "x", *out], "unknown_model", "did you mean tiny?"),
        (["predict", work / "data", image, "--prompt", "x", *out], "no_model", "data"),
        (["predict", work / "run", tmp_path / "no.png", "--prompt", "x", *out], "not_found", "no.png"),
        (["predict", work / "run", tmp_path / "empty", "--prompt", "x", *out], "no_image", "empty"),
        (["predict", work / "run", image, "--prompt", " ", *out], "bad_value", "prompt"),
        ([*predict, "--prompt", "x", *out], "duplicate_prompt", "'x'"),
        ([*predict, "--threshold", "2", *out], "bad_value", "2"),
        ([*predict, "--batch-size", "0", *out], "bad_value", "0"),
        ([*predict, "--fill-holes", "-1", *out], "bad_value", "fill_holes"),
        ([*predict, "--out", work], "output_exists", str(work)),
        ([*predict, "--out", "/proc/out"], "write_failed", "/proc/out"),
        (["evaluate", work / "run", tmp_path / "empty", *out], "unknown_format", "empty"),
        (["evaluate", work / "run", data, "--limit", "0", *out], "bad_value", "limit"),
        (["check", tmp_path / "nowhere"], "not_found", "nowhere"),
        (["train", tmp_path / "no.yaml"], "unreadable_file", "no.yaml"),
        (["train", recipe, "--set", "stepz=3"], "unknown_setting", "did you mean steps?"),
        (["train", recipe, "--set", "optim.lr=-1"], "bad_value", "greater than 0"),
        (["train", recipe], "output_exists", "--resume"),
        (["train", "--resume", tmp_path / "empty"], "unreadable_file", "config.yaml"),
        (["synth", work / "data"], "output_exists", "data"),
        (["synth", tmp_path / "s", "--n", "0"], "bad_value", "n"),
        (["synth", tmp_path / "s", "--seed", "-1"], "bad_value", "seed"),
        (["train", recipe, "--set", f"out={recipe}"], "output_exists", "recipe.yaml"),
        (["train", recipe, "--set", "optim.betas=[0.9, 1.5]"], "bad_value", "optim.betas"),
        (["train", "--resume", work / "run", "--set", "batch_size=1"], "changed_setting", "2"),
        (["info", "Sa2VA-8B"], "not_downloaded", "Sa2VA-8B"),
    ]
    for command, code, part in cases:
        error = refusal(capsys, *command)
        assert error["code"] == code, error
        assert part in error["message"], error
        assert not (tmp_path / "out").exists(), command


@pytest.mark.parametrize(
    ("entry", "code", "part"),
    [
        ({"mask": [[[1, 1, 5, 5]]], "text": ["x"]}, "too_few_points", "2 points"),
        ({"mask": [[[1, 1]]], "text": ["x"]}, "too_few_points", "1 point"),
        ({"mask": [[[1, 1, 5, 5, float("nan"), 2]]], "text": ["x"]}, "not_finite", ""),
        ({"mask": [[[1, 1, 5, 5, 1, 5]]], "text": ["x", "y"]}, "phrase_count_mismatch", "2"),
        ({"mask": [[[1, 1, 500, 5, 1, 500]]], "text": ["x"]}, "outside_image", ""),
        ({"mask": [[]], "text": ["x"]}, "empty_object", "null"),
        ({"mask": [[[1, 1, 5, 5, 1, 5]]], "text": ["x"], "size": [80, 80]}, "size_mismatch", "80 x 80"),
    ],
)
def test_wrong_annotations_stop_training_before_it_begins(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: dict[str, Any], code: str, part: str
) -> None:
    data = tmp_path / "set"
    data.mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(data / "图.png")
    (data / "annotations.json").write_text(json.dumps([{"image": "图.png", **entry}]), encoding="utf-8")
    assert main(["check", str(data)]) == 1
    out = tmp_path / "run"
    changes = [f"data.train={data}", f"data.val={data}", f"out={out}"]
    error = refusal(capsys, "train", work / "recipe.yaml", "--set", *changes)
    assert error["code"] == code
    assert part in error["message"]
    assert "图.png" in error["message"] or "entry 0" in error["message"] or "entry 1" in error["message"]
    assert not out.exists()


def vesalius(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """`vesalius` in a process of its own."""
    command = [sys.executable, "-m", "vesalius", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_json_prints_an_error_object_as_the_last_line_of_stdout(tmp_path: Path) -> None:
    process = vesalius("check", tmp_path / "nowhere", "--json")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    error = json.loads(stdout.splitlines()[-1])["error"]
    assert list(error) == ["code", "message", "path", "field"]
    assert (error["code"], error["path"], error["field"]) == ("not_found", str(tmp_path / "nowhere"), None)
    assert stderr.splitlines()[-1] == f"vesalius: {error['message']}"


def test_an_unexpected_exception_has_the_code_unexpected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vesalius.training.runs.list_runs", lambda folder: 1 / 0)
    error = refusal(capsys, "runs", tmp_path)
    assert error["code"] == "unexpected"
    assert "ZeroDivisionError" in error["message"]
    assert main(["runs", str(tmp_path), "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_has_the_code_interrupted_and_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = vesalius("synth", out, "--n", "5000", "--num-workers", "0", "--json")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.partial/images/*.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    error = json.loads(stdout.splitlines()[-1])["error"]
    assert error["code"] == "interrupted" and "again" in error["message"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "absent"),
    [("main(['--help'])", ("torch", "numpy", "pydantic")), ("build_parser(VERBS)", ("torch", "transformers"))],
)
def test_parsing_arguments_imports_no_torch(code: str, absent: tuple[str, ...]) -> None:
    script = (
        f"import sys; from vesalius.cli.main import *\ntry: {code}\n"
        f"finally: print([name for name in {absent} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", VERBS)
def test_help_of_a_command_shows_its_summary(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (VERBS[name].__doc__ or "") in text
    assert "default: None" not in text and "arguments." not in text


def test_interrupted_training_leaves_a_run_that_resumes(work: Path, tmp_path: Path) -> None:
    """A process is killed between checkpoints, then resumed to the end."""
    out = tmp_path / "run"
    settings = [f"out={out}", "steps=3", "validate.every_epochs=1", "batch_size=5"]
    process = vesalius("train", work / "recipe.yaml", "--set", *settings)
    deadline = time.monotonic() + 120
    while not (out / "last").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert (out / "last").exists()
    assert main(["train", "--resume", str(out)]) == 0
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    assert (out / "last").readlink().name == "step-000003"
    assert not [path for path in out.rglob("*.partial")]
