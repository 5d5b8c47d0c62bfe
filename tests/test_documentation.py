"""Documentation agrees with the code: commands, flags, links, examples, recipe headers."""

import ast
import json
import re
import shlex
from argparse import ArgumentParser, _SubParsersAction
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import vesalius
from vesalius.cli.main import VERBS, build_parser
from vesalius.config import read_settings
from vesalius.data.dataset import open_dataset
from vesalius.training.settings import RunSettings

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh-CN.md")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md"))
)
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
COMMAND = re.compile(r"(?:\.venv/bin/)?vesalius |make ")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str | None = None) -> list[str]:
    """The fenced blocks of a document, or those of one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(document), re.MULTILINE | re.DOTALL)
    return [body for name, body in found if language is None or name == language]


def commands(document: str) -> list[str]:
    """The lines of its blocks that call vesalius or make."""
    return [line for block in blocks(document) for line in block.splitlines() if COMMAND.match(line)]


def header(recipe: Path) -> dict[str, str]:
    """`name: value` of the comments that open a recipe."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    comments = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return dict(match.groups() for line in comments if (match := re.fullmatch(r"# (\w+): +(\S.*)", line)))


def tree(document: str) -> set[str]:
    """Paths in the tree of a README: two spaces of indentation a folder."""
    block = next(block for block in blocks(document) if "\nsrc/vesalius/\n" in block)
    found, parents = set(), [""]
    for line in block.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        path = parents[depth] + name
        found.add(path)
        if name.endswith("/"):
            parents[depth + 1 :] = [path]
    return found


def verb_parsers(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    return next(dict(action.choices) for action in parser._actions if isinstance(action, _SubParsersAction))


@pytest.mark.parametrize("readme", READMES)
def test_tree_names_every_package_and_stays_short(readme: str) -> None:
    package = ROOT / "src" / "vesalius"
    packages = {f"src/vesalius/{path.parent.name}/" for path in package.glob("*/__init__.py")}
    named = tree(readme)
    assert {path for path in named if path.startswith("src/vesalius/")} - {"src/vesalius/"} == packages
    assert {path for path in named if not (ROOT / path).exists()} == set(), "names without a folder"
    assert len(text_of(readme).splitlines()) <= 150


def test_both_readmes_have_the_same_commands_headings_tables_and_numbers() -> None:
    english, chinese = READMES
    assert len(commands(english)) > 10
    assert commands(english) == commands(chinese)
    for pattern in (r"^#+ ", r"^\|", r"^```\w*$", r"^- ", r"^!\["):
        counts = [len(re.findall(pattern, text_of(readme), re.MULTILINE)) for readme in READMES]
        assert counts[0] == counts[1], pattern
    numbers = [
        re.findall(r"\d+\.\d{2,}", "".join(re.findall(r"^\|.*$", text_of(readme), re.MULTILINE))) for readme in READMES
    ]
    assert numbers[0] == numbers[1]
    assert tree(english) == tree(chinese)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "zh").glob("*.md")), ids=lambda path: path.stem)
def test_chinese_pages_have_the_commands_and_examples_of_their_english_twins(page: Path) -> None:
    chinese, english = f"docs/zh/{page.name}", f"docs/{page.name}"

    def code(document: str) -> list[str]:
        return [re.sub(r"#.*", "", block) for block in blocks(document)]

    assert commands(chinese) == commands(english)
    assert [block for block in code(chinese) if block not in code(english)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_parse(document: str) -> None:
    for line in commands(document):
        words = shlex.split(line, comments=True)
        if words[0] != "make":
            assert build_parser(VERBS).parse_args(words[1:])  # wrong usage would exit
    parsers = verb_parsers(build_parser(VERBS))
    for verb, rest in re.findall(r"`(?:\.venv/bin/)?vesalius ([a-z]+)([^`]*)`", text_of(document)):
        assert verb in parsers, f"vesalius {verb}"
        flags = re.findall(r"--[a-z-]+", rest)
        assert set(flags) <= set(parsers[verb]._option_string_actions), f"vesalius {verb}{rest}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_flags_named_in_passing_exist(document: str) -> None:
    known = {flag for verb in verb_parsers(build_parser(VERBS)).values() for flag in verb._option_string_actions}
    for flag in re.findall(r"`(--[a-z-]+)", text_of(document)):
        assert flag in {*known, "--version"}, flag


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_and_variables_exist(document: str) -> None:
    makefile = text_of("Makefile")
    targets = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    lines = [line for line in commands(document) if line.startswith("make ")]
    for line in [*lines, *re.findall(r"`(make [a-z][^`]*)`", text_of(document))]:
        for word in shlex.split(line, comments=True)[1:]:
            name, equals, _ = word.partition("=")
            assert re.search(rf"^{name} \?=", makefile, re.MULTILINE) if equals else word in targets, line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_local_links_lead_somewhere(document: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), f"{document} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_python_examples_compile_and_import_existing_names() -> None:
    found = [block for document in DOCUMENTS for block in blocks(document, "python")]
    assert len(found) >= 5
    for block in found:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vesalius"):
                module = __import__(str(node.module), fromlist=["*"])
                assert all(callable(getattr(module, alias.name, None)) for alias in node.names)
                assert node.module != "vesalius" or {a.name for a in node.names} <= set(vesalius.__all__)


def test_annotation_example_can_be_read(tmp_path: Path) -> None:
    (example,) = blocks("docs/data.md", "json")
    (tmp_path / "annotations.json").write_text(example, encoding="utf-8")
    for entry in json.loads(example):
        Image.fromarray(np.zeros((512, 512), np.uint8)).save(tmp_path / entry["image"])
    dataset = open_dataset(tmp_path)
    items = [vesalius.load_item(sample) for sample in dataset.samples]
    assert [item.prompts for item in items] == [("blood vessel", "catheter"), ("blood vessel",)]
    assert [[bool(mask.any()) for mask in item.masks] for item in items if item.masks is not None] == [
        [True, False],
        [True],
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipe_loads_and_opens_with_its_facts(recipe: Path) -> None:
    settings = read_settings(RunSettings, recipe)
    facts = header(recipe)
    assert list(facts) == ["source", "hardware", "hours", "score", "command"]
    assert (facts["hours"] == "not run") == (facts["score"] == "not run")
    assert facts["hours"] == "not run" or float(facts["hours"]) > 0
    words = shlex.split(facts["command"])
    arguments = build_parser(VERBS).parse_args(words[1:])
    assert ROOT / arguments.recipe == recipe
    assert read_settings(RunSettings, recipe, vars(arguments).get("set", [])) == settings, "command and file differ"
    assert not any(Path(str(value)).is_absolute() for value in yaml.safe_load(recipe.read_text())["data"].values())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_score_of_a_recipe_stands_where_it_says(recipe: Path) -> None:
    place = re.match(r"see (\S+?)(?:, \"(.*)\")?$", header(recipe)["score"])
    if place is None:  # the score itself
        return
    file, section = place.groups()
    assert (ROOT / file).is_file()
    assert section is None or re.search(rf"^#+ {re.escape(section)}$", text_of(file), re.MULTILINE)
