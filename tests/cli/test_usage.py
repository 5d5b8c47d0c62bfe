"""Wrong usage: the exit code is 2, and the answer names the nearest command, option, choice or setting."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

import pytest
from tests.codes import raises_code

from vesalius.cli import main
from vesalius.cli.main import VERBS, build_parser
from vesalius.cli.parser import COMMAND_SYNONYMS, OPTION_SYNONYMS
from vesalius.config import _paths, apply_changes, make_settings
from vesalius.errors import SettingError
from vesalius.training.settings import SYNONYMS, RunSettings

PREDICT = "predict tiny a.png --prompt x --out o"


def test_no_words_are_wrong_usage() -> None:
    assert main([]) == 2


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("", "COMMAND"),
        ("--promt", "--promt"),
        ("pedict", "did you mean predict?"),
        ("segment a.png", "did you mean predict?"),
        ("eval", "did you mean evaluate?"),
        ("fly", "commands: synth, check"),
        ("predict", "MODEL, IMAGE_OR_VIDEO_OR_FOLDER, --prompt, --out"),
        ("predict tiny a.png --promt vessel --out o", "unknown option --promt; did you mean --prompt?"),
        ("predict tiny a.png --pro vessel --out o", "did you mean --prompt?"),
        ("predict tiny a.png --prompt x --output o", "did you mean --out?"),
        ("predict tiny a.png --out o --prompt", "expected one argument"),
        (f"{PREDICT} --batch_size 4", "did you mean --batch-size?"),
        (f"{PREDICT} --device cuda", "did you mean --devices?"),
        (f"{PREDICT} -x", "unknown option -x"),
        (f"{PREDICT} b.png", "unexpected b.png"),
        ("predict tiny a.png --prompt x 'optic disc' --out o", '--prompt "optic disc"'),
        (f"{PREDICT} --batch-size four", "--batch-size: expected a whole number, got 'four'"),
        (f"{PREDICT} --threshold high", "--threshold: expected a number, got 'high'"),
        (f"{PREDICT} --answer forced", "expected verify, generate or force, got 'forced'; did you mean force?"),
        (f"{PREDICT} --save masks,overlays", "got 'overlays'; did you mean overlay?"),
        (f"{PREDICT} --cache-size 8GiB", "--cache-size requires --cache"),
        (f"{PREDICT} --reprompt-every 3", "--reprompt-every requires --propagation sam2"),
        (f"{PREDICT} --gpus 2x24GiB --devices cpu", "not allowed with"),
        ("evaluate tiny --out o", "expected MODEL DATA"),
        ("evaluate --predictions a b c --out o", "expected --predictions DIR DATA"),
        ("evaluate --predictions a b --tta --out o", "--tta requires a MODEL"),
        ("compare a b", "--out"),
        ("train", "expected RECIPE, or --resume RUN"),
        ("train a.yaml --resume run", "expected RECIPE, or --resume RUN"),
        ("train a.yaml b.yaml", "unexpected b.yaml"),
        ("train a.yaml --lr 3", "--set lr=VALUE"),
        ("train a.yaml --set optim.lr", "expected NAME=VALUE"),
        ("train --set lr=1 a.yaml", "got 'a.yaml'"),
        ("train --resume r --overfit 4", "not allowed with"),
        ("split a b", "--fractions"),
        ("split a b --folds 3 --fractions 0.5 0.5", "not allowed with"),
        ("split a b --fractions 0.5 half", "--fractions: expected a number, got 'half'"),
        ("import a b --key k.json", "--key needs --pseudonymize"),
        ("import a b --to yolo", "--to: expected"),
        ("synth a --n 1.5", "--n: expected a whole number, got '1.5'"),
        ("check", "DATA"),
        ("info", "MODEL"),
        ("runs a b", "unexpected b"),
        ("tune tiny d --metric hd95", "--metric: expected dice or iou"),
        ("convert a", "OUT"),
        ("plan tiny --for trainig", "did you mean train?"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_sentence(
    command: str, part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(command), "--json"]) == 2
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert error["code"] == "wrong_usage" or command.startswith("import a b --key")
    assert part in error["message"]
    assert printed.err == f"vesalius: {error['message']}\n"
    assert list(tmp_path.iterdir()) == []


def test_words_that_look_like_options_may_be_values(tmp_path: Path) -> None:
    parser = build_parser(VERBS)
    assert parser.parse_args(["synth", "o", "--seed", "-1"]).seed == -1
    assert parser.parse_args(["predict", "m", "a", "--prompt", "- dark spot", "--out=-o"]).prompt == ["- dark spot"]
    assert parser.parse_args(["info", "--", "--model"]).model == "--model"
    assert parser.parse_args(["--json", "info", "tiny", "-v"]).json


def test_synonyms_stand_for_names_that_exist() -> None:
    [commands] = [each for each in build_parser(VERBS)._actions if isinstance(each, argparse._SubParsersAction)]
    options = {name for command in commands.choices.values() for name in command._option_string_actions}
    assert {each for names in COMMAND_SYNONYMS.values() for each in names} <= set(VERBS)
    assert {each for names in OPTION_SYNONYMS.values() for each in names} <= options
    assert {each for names in SYNONYMS.values() for each in names} <= set(_paths(RunSettings))


@pytest.mark.parametrize(
    ("change", "meant"),
    [
        ("learning_rate=1e-4", "optim.lr"),
        ("lerning_rate=1e-4", "optim.lr"),
        ("optim.learning-rate=1e-4", "optim.lr"),
        ("lr=1e-4", "optim.lr"),
        ("train.lr=1e-4", "optim.lr"),
        ("bs=4", "batch_size"),
        ("workers=2", "num_workers"),
        ("grad_clip=1", "optim.max_grad_norm"),
        ("accumulation=4", "optim.gradient_accumulation_steps"),
        ("lora_rank=8", "trainable.lora.language.rank"),
        ("ema=0.99", "optim.ema_decay"),
        ("warmup=0.1", "optim.warmup_ratio"),
        ("patience=3", "validate.patience"),
        ("metric=dice", "validate.metric"),
        ("prompt=vessel", "data.prompt"),
        ("train=data", "data.train"),
        ("max_epochs=3", "epochs"),
        ("hflip=0.5", "augment.flip"),
    ],
)
def test_an_unknown_setting_is_answered_with_its_meaning(change: str, meant: str) -> None:
    recipe = {"model": "tiny", "data": {"train": "a"}, "steps": 1, "trainable": "lora", "out": "o"}
    with raises_code(SettingError, "unknown_setting", f"did you mean {meant}?"):
        make_settings(RunSettings, apply_changes(recipe, [change]), "--set")
