"""Matching of prompts with the phrases that a model was trained on. Imports no torch.

A model that was trained on few phrases gives a mask for any text, usually the mask of one of its phrases. So each prompt
is compared with these phrases before it is asked:

1. A prompt equal to a known phrase is asked as it is.
2. A prompt that differs from exactly one known phrase in spelling only is asked as that phrase. Spelling means case,
   Unicode form, blanks, hyphens and underscores, punctuation around it, a leading article, and the plural of its words.
3. Any other prompt is unknown. It is asked as it is, and its predictions are marked.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vesalius.errors import SettingError
from vesalius.language import note
from vesalius.names import list_names

ARTICLES = ("the", "a", "an")
NEAREST = 0.6
"""Minimum similarity (`difflib` ratio of the spellings) of a known phrase that is suggested for an unknown prompt."""
LISTED = 10
"""Maximum number of prompts, and of known phrases, in a message; the others are counted."""


@dataclass(frozen=True)
class Match:
    """A prompt, and the phrase that the model is asked in its place."""

    prompt: str
    asked: str
    """The known phrase, or the prompt itself."""
    unknown: bool = False
    """True if the model lists its phrases and the prompt is none of them."""

    @property
    def phrase(self) -> str:
        """The known phrase if it differs from the prompt, else ""."""
        return "" if self.asked == self.prompt else self.asked


def match(prompt: str, phrases: Collection[str] | None) -> Match:
    """The phrase to ask for a prompt, given the model's phrases; None stands for a model with an open vocabulary.

    >>> match("Blood Vessels.", ["blood vessel", "catheter"]).asked
    'blood vessel'
    >>> match("liver", ["blood vessel", "catheter"]).unknown
    True
    """
    if phrases is None or prompt in phrases:
        return Match(prompt, prompt)
    words = _words(prompt)
    for same in (_same_spelling, _same_number):
        found = [phrase for phrase in phrases if same(words, _words(phrase))]
        if found:
            # two phrases of the model differ in spelling only, so either could be meant
            return Match(prompt, found[0]) if len(found) == 1 else Match(prompt, prompt, unknown=True)
    return Match(prompt, prompt, unknown=True)


def unknown_prompts(prompts: Iterable[str], phrases: Collection[str] | None) -> list[str]:
    """The prompts that are none of the model's phrases, each once and in order; none for an open vocabulary."""
    return [prompt for prompt in dict.fromkeys(prompts) if match(prompt, phrases).unknown]


def describe_prompts(prompts: Iterable[str], phrases: Collection[str] | None, model: str) -> list[str]:
    """Notes for the user, one sentence or two each: prompts asked under another spelling, and unknown prompts.

    `model` is the model's name. The list is empty if the model knows all prompts, or has an open vocabulary.
    """
    matches = [match(prompt, phrases) for prompt in dict.fromkeys(prompts)]
    respelled = [f'"{each.prompt}" is asked as "{each.phrase}"' for each in matches if each.phrase]
    notes = [list_names(respelled, LISTED)] if respelled else []
    unknown = [each.prompt for each in matches if each.unknown]
    if unknown:
        notes.append(
            f"{_state(unknown, phrases or (), model)}. The masks of an unknown phrase may show something else; "
            "fine-tune the model for it, or refuse unknown phrases with --strict-phrases (Python: strict_phrases=True)"
        )
    return notes


def refuse_unknown(prompts: Iterable[str], phrases: Collection[str] | None, model: str) -> None:
    """Raise one SettingError that lists all prompts that are none of the model's phrases."""
    if unknown := unknown_prompts(prompts, phrases):
        raise SettingError(
            f"{_state(unknown, phrases or (), model)}; ask a phrase that it knows, or fine-tune it for others",
            code="unknown_phrase",
            field="prompt",
        )


def describe_unknown(counts: Mapping[str, int], total: int, name: str = "") -> str:
    """Sentence on the predictions of unknown phrases in a result; `counts` maps each unknown prompt to its number.

    The sentence begins with the `name` of the result, if it is given.
    """
    asked = list_names((f'"{prompt}"' for prompt in counts), LISTED)
    said = {"n": sum(counts.values()), "total": total, "names": asked}
    if name:
        text = "{name}: {n} of {total} predictions are for phrases that the model does not know: {names}."
        return note(text, name=name, **said)
    return note("{n} of {total} predictions are for phrases that the model does not know: {names}.", **said)


def list_phrases(phrases: Collection[str]) -> str:
    """The phrases in quotation marks, separated by commas; more than `LISTED` are counted."""
    return list_names((f'"{phrase}"' for phrase in phrases), LISTED) or "no phrase"


def _state(unknown: Sequence[str], phrases: Collection[str], model: str) -> str:
    """Clause that names the unknown prompts, each with the nearest known phrase, and the known phrases."""
    named = list_names((f'"{prompt}"{_hint(prompt, phrases)}' for prompt in unknown), LISTED)
    return f"{model} does not know {named}; it knows {list_phrases(phrases)}"


def _hint(prompt: str, phrases: Collection[str]) -> str:
    spelled = {" ".join(_words(phrase)): phrase for phrase in phrases}
    # a sentence around a known phrase, such as "segment the blood vessels", is not near it in spelling
    near = [each for each in spelled if _holds(_words(prompt), each.split())]
    near = near or difflib.get_close_matches(" ".join(_words(prompt)), spelled, n=1, cutoff=NEAREST)
    return f' (nearest: "{spelled[near[0]]}")' if near else ""


def _holds(words: Sequence[str], phrase: Sequence[str]) -> bool:
    """Whether the phrase stands among the words, but for plural endings."""
    starts = range(len(words) - len(phrase) + 1)
    return bool(phrase) and any(_same_number(words[at : at + len(phrase)], phrase) for at in starts)


def _words(text: str) -> tuple[str, ...]:
    """The words without case, punctuation at their ends, invisible characters and a leading article."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(_as_separator(each) for each in plain if unicodedata.category(each) != "Cf")
    words = tuple(filter(None, (_without_punctuation(word) for word in plain.split())))
    return words[1:] if len(words) > 1 and words[0] in ARTICLES else words


def _as_separator(character: str) -> str:
    """A blank for hyphens, dashes and underscores; any other character is unchanged."""
    return " " if unicodedata.category(character) in ("Pd", "Pc") else character


def _without_punctuation(word: str) -> str:
    inside = [index for index, each in enumerate(word) if unicodedata.category(each)[0] != "P"]
    return word[inside[0] : inside[-1] + 1] if inside else ""


def _same_spelling(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the words are equal, wherever the blanks are."""
    return bool(one) and "".join(one) == "".join(other)


def _same_number(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the words are equal but for plural endings, word by word or written as one word."""
    if not one or not other:
        return False
    by_word = len(one) == len(other) and all(map(_equal_or_plural, one, other))
    return by_word or _equal_or_plural("".join(one), "".join(other))


def _equal_or_plural(one: str, other: str) -> bool:
    return one == other or one in _plurals(other) or other in _plurals(one)


def _plurals(word: str) -> set[str]:
    """Possible plural forms of an English word: vessels, branches, arteries, stenoses."""
    plurals = {f"{word}s", f"{word}es"}
    if word.endswith("y"):
        plurals.add(f"{word[:-1]}ies")
    if word.endswith("is"):
        plurals.add(f"{word[:-2]}es")
    return plurals
