"""The language of help, pages and figures: Chinese translations of English texts.

Error messages, JSON and all other files are English. `zh.json` maps each English text to its Chinese translation; the
source has the English texts. `vesalius --lang zh`, or else the locale of the environment, selects the language.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

LANGUAGES = ("en", "zh")
VARIABLES = ("VESALIUS_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
"""Environment variables in order of priority. `--lang` sets the first one, which worker processes inherit."""
CATALOG = Path(__file__).with_name("zh.json")


def current() -> str:
    """`zh` if the first variable of `VARIABLES` that is set begins with zh, such as zh_CN.UTF-8; else `en`."""
    locale = next(filter(None, map(os.environ.get, VARIABLES)), "")
    return "zh" if locale.lower().startswith("zh") else "en"


def translate(text: str, **values: object) -> str:
    """The text in the current language, with `{name}` replaced by each of `values`.

    A text without translation, such as a message of a library, stays English.
    """
    if current() == "zh":
        text = catalog().get(text, text)
    return text.format(**values) if values else text


def note(text: str, **values: object) -> str:
    """The English text with its values, for JSON and the terminal; a page shows `translate_note` of it."""
    return text.format(**values)


def translate_note(said: str) -> str:
    """A sentence made by `note` in the current language, and so are counts in it; one without translation stays English."""
    return catalog().get(said) or _translate_filled(said) if current() == "zh" else said


def _translate_filled(said: str) -> str:
    """The Chinese of a text whose values are filled in, or the text itself."""
    for pattern, chinese in _patterns():
        if found := pattern.fullmatch(said):
            return chinese.format(**{name: _translate_filled(value) for name, value in found.groupdict().items()})
    return said


@lru_cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """(regular expression of an English text with values, its Chinese text); longest texts first, the most specific.

    Texts of fewer than five letters, such as `{low} to {high}`, are left out, because they match names too.
    """
    return [
        (re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.*)", re.escape(english)), re.DOTALL), chinese)
        for english, chinese in sorted(catalog().items(), key=lambda pair: -len(pair[0]))
        if "{" in english and len(re.findall("[a-z]", re.sub(r"{\w+}", "", english))) >= 5
    ]


@lru_cache
def catalog() -> Mapping[str, str]:
    """English text -> Chinese text."""
    texts: dict[str, str] = json.loads(CATALOG.read_text(encoding="utf-8"))
    return texts


@contextmanager
def speaking(language: str | None) -> Iterator[None]:
    """Set the language of this process, and of processes started by it, within the block; None: leave it."""
    before = os.environ.get(VARIABLES[0])
    if language is not None:
        os.environ[VARIABLES[0]] = language
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLES[0], None)
        else:
            os.environ[VARIABLES[0]] = before
