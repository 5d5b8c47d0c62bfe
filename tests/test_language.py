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
from tests.scoring.evaluations import metrics, pair, row

import vesalius
from vesalius.cli import main
from vesalius.cli.help import cells, wrap
from vesalius.cli.main import VERBS, build_parser
from vesalius.codes import chinese_codes
from vesalius.evaluation.metrics import METRICS
from vesalius.language import catalog, current, note, speaking, translate, translate_note
from vesalius.phrases import describe_unknown
from vesalius.scoring.comparison_report import ABOUT, VERDICTS
from vesalius.scoring.report import EMPTY_MASKS, TEXTS, write_report
from vesalius.scoring.tables import KINDS
from vesalius.training.figures import RATES
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
    """The string constants of a module, or those that it passes to a function of `vesalius.language`, or to `label`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {"label"} | {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "vesalius.language"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not only_translated and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif only_translated and isinstance(node, ast.Call) and ast.unparse(node.func) in functions - {"speaking"}:
            keys = (
                {id(each.slice) for each in ast.walk(node.args[0]) if isinstance(each, ast.Subscript)}
                if node.args
                else ()
            )
            yield from (
                each.value
                for each in (ast.walk(node.args[0]) if node.args else ())
                if isinstance(each, ast.Constant) and isinstance(each.value, str) and id(each) not in keys
            )


def texts_of_template(path: Path) -> Iterator[str]:
    """The constants with the filter `t`."""
    tree = Environment().parse(path.read_text(encoding="utf-8"))
    for each in tree.find_all(nodes.Filter):
        if each.name == "t" and not isinstance(each.node, nodes.Name):
            yield from (
                constant.value
                for constant in [each.node, *each.node.find_all(nodes.Const)]
                if isinstance(constant, nodes.Const)
            )


def english_in(path: Path) -> list[str]:
    """English words of a template that are not translated: those outside tags, styles and expressions."""
    source = re.sub(
        r"{% block style %}.*?{% endblock %}|<style>.*?</style>", "", path.read_text("utf-8"), flags=re.DOTALL
    )
    data = "".join(f"{each.data}\0" for each in Environment().parse(source).find_all(nodes.TemplateData))
    spoken = re.findall(r'(?:alt|aria-label|title)="([^"\0]*)', data)
    return [
        word
        for text in [re.sub(r"<[^<>]*>", " ", data.replace("\0", "")), *spoken]
        for word in re.findall(r"[A-Za-z]{3,}", text)
        if word not in INTERNATIONAL
    ]


INTERNATIONAL = {"Dice", "IoU", "gIoU", "cIoU", "Holm", "augment"}
"""Words in templates that are the same in Chinese: metrics, a test, a setting."""
SHARED_TITLES = {"Dice", "IoU", "clDice", "HD95", "ASSD"}
"""Titles of metrics that are the same in Chinese."""
COUNTED = {f"{{n}} {noun}{ending}" for noun in ("image", "group", "prediction") for ending in ("", "s")}
"""Counts within notes."""


def texts_of_tables() -> set[str]:
    """Texts in tables of constants that the reports translate."""
    return {
        *(name for name, _ in LEGEND),
        *(metric.title for metric in METRICS.values() if metric.title not in SHARED_TITLES),
        *KINDS.values(),
        *VERDICTS.values(),
        *RATES.values(),
        ABOUT,
        *TEXTS.values(),
        *(text for name, _, score in EMPTY_MASKS for text in (name, score)),
        *COUNTED,
        *("error", "errors", "warning", "warnings", "images", "pairs", "objects", "absent", "groups"),
    }


MODULES, TEMPLATES = sorted(SRC.rglob("*.py")), sorted(SRC.rglob("*.html.jinja"))


def test_every_text_of_help_has_a_translation() -> None:
    assert sorted({*texts_of_help(build_parser(VERBS))} - catalog().keys()) == []


def test_every_text_of_pages_and_figures_has_a_translation() -> None:
    texts = {text for path in MODULES for text in constants_of(path, only_translated=True)}
    texts |= {text for path in TEMPLATES for text in texts_of_template(path)}
    texts |= texts_of_tables()
    assert sorted(texts - catalog().keys()) == []


def test_every_translation_is_used() -> None:
    used = {*texts_of_help(build_parser(VERBS))}
    used |= {text for path in MODULES for text in constants_of(path, only_translated=False)}
    used |= {text for path in TEMPLATES for text in texts_of_template(path)} | texts_of_tables()
    assert sorted(catalog().keys() - used) == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_have_no_untranslated_text(path: Path) -> None:
    assert english_in(path) == []


def test_untranslated_text_of_a_template_is_found(tmp_path: Path) -> None:
    path = tmp_path / "page.html.jinja"
    path.write_text('<p class="gray">{{ n }} new words</p><img alt="A vessel"><i title="{{ \'mean\' | t }}">Dice</i>')
    assert english_in(path) == ["new", "words", "vessel"]


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


def test_a_note_is_translated_with_its_counts_but_not_its_names() -> None:
    said = note("{groups}; {images} without one, each its own group", groups="2 groups", images="1 image")
    model = note("The model of {name} was trained on {n} of the images.", name="masks", n=3)
    assert translate_note(said) == "2 groups; 1 image without one, each its own group"
    with speaking("zh"):
        assert translate_note(said) == "2 个组；1 幅图像没有分组，各自成组"
        assert translate_note(model) == "masks 的模型训练时用过其中 3 幅图像。"
        assert translate_note("a sentence of a reader") == "a sentence of a reader"


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


def test_an_evaluation_has_a_chinese_page_and_english_markdown(tmp_path: Path) -> None:
    rows = [row(0, 0.5, unknown_phrase=True), row(1, 0.7, "no_seg", prompt="catheter")]
    asked = describe_unknown({"blood vessel": 1}, 2)
    with speaking("zh"):
        page = write_report(tmp_path, metrics(rows, notes=[asked]), rows).read_text("utf-8")
    assert '<html lang="zh">' in page and "2 个预测的平均 Dice 为" in page and "未知短语" in page
    assert "2 个预测中有 1 个的短语不为模型所知" in page and "无 [SEG]" in page
    assert asked in (tmp_path / "report.md").read_text("utf-8").replace("\\", "")
    assert not CHINESE.search((tmp_path / "report.md").read_text("utf-8"))


def test_a_comparison_has_a_chinese_page_and_english_markdown(tmp_path: Path) -> None:
    folders = map(str, pair(tmp_path))
    assert main(["compare", *folders, "--metric", "dice", "--out", str(tmp_path / "both"), "--lang", "zh"]) == 0
    page, *others = (
        (tmp_path / "both" / name).read_text("utf-8") for name in ("report.html", "comparison.md", "comparison.json")
    )
    assert '<html lang="zh">' in page and "new 与 old 相比：Dice 为" in page
    assert not [text for text in others if CHINESE.search(text)]


def test_a_check_explains_findings_in_chinese_above_their_english_messages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "check"
    assert main(["synth", str(data), "--n", "2", "--size", "64", "--num-workers", "0"]) == 0
    next((data / "images").iterdir()).unlink()
    assert main(["check", str(data), "--report", str(out), "--num-workers", "0", "--lang", "zh"]) == 1
    capsys.readouterr()
    page, code = (out / "check.html").read_text("utf-8"), chinese_codes()["missing_image"]
    assert page.index(code.meaning) < page.index(code.remedy) < page.index(" is not in ")
    assert not CHINESE.search((out / "findings.json").read_text("utf-8"))


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
