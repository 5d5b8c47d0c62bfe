"""The Chinese catalog has an entry for every English text of help, pages and figures, and no other entry."""

from __future__ import annotations

import argparse
import ast
import os
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2 import Environment, nodes

import vesalius
from vesalius.cli import main
from vesalius.cli.help import cells, wrap
from vesalius.cli.main import VERBS, build_parser
from vesalius.language import catalog, current, speaking, translate
from vesalius.visualization import LEGEND

SRC = Path(vesalius.__file__).parent
CHINESE = re.compile("[\u4e00-\u9fff]")


def texts_of_help(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Summaries, titles of groups, and help of all arguments."""
    yield from filter(None, (parser.description, *(group.title for group in parser._action_groups)))
    for action in parser._actions:
        if action.help:
            yield action.help
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from texts_of_help(command)


def constants_of(path: Path, only_translated: bool) -> Iterator[str]:
    """The string constants of a module, or those that it passes to `translate`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if only_translated and isinstance(node, ast.Call) and ast.unparse(node.func) in ("translate", "label"):
            yield from (
                each.value
                for each in ast.walk(node.args[0])
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            )
        elif not only_translated and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def texts_of_template(path: Path) -> Iterator[str]:
    """The constants with the filter `t`."""
    tree = Environment().parse(path.read_text(encoding="utf-8"))
    for each in tree.find_all(nodes.Filter):
        if each.name == "t":
            yield from (
                constant.value
                for constant in [each.node, *each.node.find_all(nodes.Const)]
                if isinstance(constant, nodes.Const)
            )


MODULES, TEMPLATES = sorted(SRC.rglob("*.py")), sorted(SRC.rglob("*.html.jinja"))


def test_every_text_of_help_has_a_translation() -> None:
    assert sorted({*texts_of_help(build_parser(VERBS))} - catalog().keys()) == []


def test_every_text_of_pages_and_figures_has_a_translation() -> None:
    texts = {text for path in MODULES for text in constants_of(path, only_translated=True)}
    texts |= {text for path in TEMPLATES for text in texts_of_template(path)}
    texts |= {name for name, _ in LEGEND}
    assert sorted(texts - catalog().keys()) == []


def test_every_translation_is_used() -> None:
    used = {*texts_of_help(build_parser(VERBS))}
    used |= {text for path in MODULES for text in constants_of(path, only_translated=False)}
    used |= {text for path in TEMPLATES for text in texts_of_template(path)}
    assert sorted(catalog().keys() - used) == []


@pytest.mark.parametrize(("english", "chinese"), catalog().items())
def test_a_translation_is_chinese_and_keeps_placeholders_and_code(english: str, chinese: str) -> None:
    assert CHINESE.search(chinese)
    for pattern in (r"%\(\w+\)s", r"`[^`]+`"):
        assert sorted(re.findall(pattern, chinese)) == sorted(re.findall(pattern, english))
    assert {name for _, name, _, _ in string.Formatter().parse(chinese) if name} == {
        name for _, name, _, _ in string.Formatter().parse(english) if name
    }
    # full-width punctuation beside Chinese characters
    assert not re.search("[\u4e00-\u9fff][,;:()?!]|[,;:()?!][\u4e00-\u9fff]", chinese)


@pytest.mark.parametrize(
    ("variables", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8", "LC_MESSAGES": "zh_TW"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "VESALIUS_LANG": "en"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, "zh"),
    ],
)
def test_the_locale_selects_the_language(
    variables: dict[str, str], language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VESALIUS_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert current() == language


def test_values_are_filled_in_and_unknown_texts_stay() -> None:
    with speaking("zh"):
        assert current() == "zh"
        assert translate("{n} unknown words", n=3) == "3 unknown words"
        assert translate("random seed") == "随机种子"
    assert translate("random seed") == "random seed"


@pytest.mark.parametrize("order", [["--lang", "zh", "--help"], ["--help", "--lang=zh"]])
def test_help_is_chinese_on_request_and_stays_within_80_columns(
    order: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in VERBS:
        with pytest.raises(SystemExit) as stop:
            main([command, *order])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert translate(VERBS[command].__doc__ or "") not in text
        assert text.startswith("用法：vesalius") and "显示帮助并退出" in text
        assert [line for line in text.splitlines() if cells(line) > 80] == []
    assert os.environ["VESALIUS_LANG"] == "en"


def test_an_error_stays_english(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "tyni", "--lang", "zh"]) == 1
    assert "did you mean tiny?" in capsys.readouterr().err


def test_lines_break_between_chinese_characters_and_before_no_punctuation() -> None:
    text = "把一个模型分到这样显存的多块 GPU 上，也可写 24GiB,48GiB；见 `vesalius plan`（默认：masks）"
    for width in range(12, 60):
        lines = wrap(text, width)
        assert all(cells(line) <= width for line in lines if " " in line or CHINESE.match(line[-1]))
        assert not [line for line in lines if line[0] in "，。；：、）"]
        assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)


def test_a_chinese_locale_gives_chinese_help_without_other_imports() -> None:
    code = "import sys; from vesalius.cli import main\ntry: main(['--help'])\nfinally: print('numpy' in sys.modules)"
    environment = {**os.environ, "VESALIUS_LANG": "", "LC_ALL": "zh_CN.UTF-8", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "用文字提示分割" in done.stdout and done.stdout.endswith("False\n")
