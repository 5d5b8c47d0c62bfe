"""The text of `--help`: defaults of options, translation, and line breaks that count the cells of Chinese characters."""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Iterable

from vesalius.language import translate

UNIT = re.compile(
    r"\s+|[（“‘《]*(?:[\u2e80-\u9fff\uff00-\uffef]|[^\s\u2e80-\u9fff\uff00-\uffef（“‘《]+)[，。；：、）”’》！？]*"
)
"""A unit that no line break divides: a Chinese character or a word, with the punctuation that clings to it."""


class HelpFormatter(argparse.HelpFormatter):
    """Shows the default of each option that has one, and everything in the current language."""

    def add_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Iterable[object], prefix: str | None = None
    ) -> None:
        """Add the usage line."""
        super().add_usage(usage, actions, groups, translate("usage: ") if prefix is None else prefix)  # type: ignore[arg-type]

    def add_text(self, text: str | None) -> None:
        """Add a paragraph."""
        super().add_text(None if text is None else translate(text))

    def start_section(self, heading: str | None) -> None:
        """Add the title of a group of arguments."""
        super().start_section(None if heading is None else translate(heading))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help is None:
            return None
        has_default = action.option_strings and action.nargs != 0 and action.default not in (None, argparse.SUPPRESS)
        return translate(action.help) + (translate(" (default: %(default)s)") if has_default else "")

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(text, width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in wrap(text, width - len(indent)))


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells; a Chinese character fills two cells and may begin a line, punctuation may not."""
    lines = [""]
    for unit in UNIT.findall(" ".join(text.split())):
        if cells(lines[-1]) + cells(unit.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] = lines[-1].rstrip() if unit.isspace() and not lines[-1].strip() else lines[-1] + unit
    return [line.strip() for line in lines if line.strip()]


def cells(text: str) -> int:
    """Width of a text in a terminal."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)
