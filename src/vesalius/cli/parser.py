"""The argument parser: wrong usage is answered in one sentence that names the nearest command or option.

Wrong usage is all that the words of a command show by themselves: an unknown command or option, a missing argument, a
value of the wrong kind, a choice that does not exist, options that exclude or require each other. The exit code is 2. A
job that is refused for its files, its settings or the range of a value has exit code 1.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from vesalius.errors import UsageError, VesaliusError
from vesalius.names import list_choices, nearest, read_synonyms

KINDS: Mapping[Any, str] = {int: "a whole number", float: "a number"}
"""Type of an argument -> its description in an error."""
COMMAND_SYNONYMS = read_synonyms("""
synth: generate simulate synthesize
check: validate verify lint inspect
split: partition folds
train: finetune fine-tune fit learn
runs: list ls history
predict: segment infer inference seg
evaluate: eval test score
tune: calibrate threshold
compare: diff
plan: memory estimate
info: show describe model
convert: export merge
""")
"""Another word for a command -> the command."""
OPTION_SYNONYMS = read_synonyms("""
--prompt: text phrase query class label
--out: output output-dir outdir out-dir save-dir destination
--save: format outputs write
--devices: device gpu cuda
--gpus: gpu
--batch-size: batch bs
--num-workers: workers jobs threads processes
--tiles: tile window-size sliding-window
--threshold: thresh thr confidence
--tta: augment test-time-augmentation
--metric: metrics score
--set: override config settings
--find-lr: lr-find lr-finder
--n: num count number
--size: image-size resolution
--folds: cv k
--fractions: ratio ratios fraction
--limit: max-images first
--group: patient patient-id groups
--pseudonymize: anonymize deidentify
--verbose: debug
""")
"""Another word for an option, without its dashes -> the option; a word may stand for several options."""


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError; options cannot be abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._needs: list[tuple[str, str, str | None]] = []

    def needs(self, option: str, other: str, value: str | None = None) -> None:
        """Refuse `option` without `other`, or with another `value` of it."""
        self._needs.append((option, other, value))

    def error(self, message: str) -> NoReturn:
        """Raise UsageError for a message of argparse or of this class, such as `--n: expected a number, got 'x'`."""
        self.refuse(f"{message.removeprefix('argument ')}; {self.prog} --help shows all options")

    def refuse(self, message: str, field: str | None = None) -> NoReturn:
        """Raise UsageError for a message that ends with its own remedy."""
        words = self.prog.split()[1:]
        raise UsageError(": ".join([*words, message]), code="wrong_usage", field=field)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the words of a command and refuse the ones without a meaning."""
        args = [] if args is None else list(args)
        for word in self._unknown_options(args):
            self._refuse_option(word)
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unexpected {rest[0]}; {self._place_of(args, rest[0])}")
        for option, other, value in self._needs:
            found = vars(parsed).get(_dest(other))
            if _dest(option) in parsed and (found is None or value not in (None, found)):
                needed = " ".join(filter(None, (other, value)))
                self.refuse(f"{option} requires {needed}; add {needed}, or remove {option}", option)
        return parsed, rest

    def _place_of(self, args: Sequence[str], word: str) -> str:
        """Where a word without a meaning may belong: to the repeated option before it, or to the first arguments."""
        before = args[: args.index(word)] if word in args else []
        option = next((each for each in reversed(before) if each.startswith("--")), "")
        action = self._option_string_actions.get(option.partition("=")[0])
        if isinstance(action, argparse._AppendAction):
            return f'{option} takes one value; repeat it for another one: {option} "{word}"'
        return "arguments without an option stand side by side"

    def _unknown_options(self, words: Sequence[str]) -> Iterator[str]:
        """Words that look like options and are none; before the command only, if the parser has commands."""
        if self._subparsers is not None:
            words = [*takewhile(lambda word: word.startswith("-"), words)]
        for word in takewhile(lambda word: word != "--", words):
            if len(word) > 1 and word[0] == "-" and " " not in word and not re.fullmatch(r"-\.?\d.*", word):
                name = word.partition("=")[0]
                short = word[1] != "-" and word[:2] in self._option_string_actions
                if name not in self._option_string_actions and not short:
                    yield name

    def _refuse_option(self, option: str) -> NoReturn:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        name = option.lstrip("-").replace("_", "-").lower()
        meant = [each for each in OPTION_SYNONYMS.get(name, ()) if each in known]
        cutoff = 0.75 if "--set" in known else 0.6  # a setting of a recipe is a likely meaning as well
        close = meant or [each for each in [nearest(f"--{name}", known, cutoff)] if each]
        if close:
            self.refuse(f"unknown option {option}; did you mean {list_choices(close)}?", option)
        if "--set" in known:
            setting = name.replace("-", "_")
            self.refuse(f"unknown option {option}; a setting is changed with --set {setting}=VALUE", option)
        self.error(f"unknown option {option}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        kind: Callable[[str], Any] = self._registry_get("type", action.type, action.type)
        try:
            return kind(arg_string)
        except VesaliusError as error:
            self.refuse(str(error), _name(action))
        except argparse.ArgumentTypeError as error:
            self.refuse(f"{_name(action)}: {error}", _name(action))
        except ValueError:
            expected = KINDS.get(action.type, "another value")
            self.refuse(f"{_name(action)}: expected {expected}, got {arg_string!r}", _name(action))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(each) for each in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            close = COMMAND_SYNONYMS.get(value.lower(), [each for each in [nearest(value, choices)] if each])
            hint = f"did you mean {list_choices(close)}?" if close else f"commands: {', '.join(choices)}"
            self.refuse(f"unknown command {value}; {hint}", "COMMAND")
        self.refuse(f"{_name(action)}: {_expected(value, choices)}", _name(action))


def several_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Type of an argument that takes words of `known`, separated by commas."""

    def read(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(_expected(word, [*known]))
        return words

    return read


def change(text: str) -> str:
    """Type of --set: a text such as optim.lr=1e-4."""
    if not text.partition("=")[0] or "=" not in text:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE such as optim.lr=1e-4, got {text!r}")
    return text


def _dest(option: str) -> str:
    return option[2:].replace("-", "_")


def _name(action: argparse.Action) -> str:
    """The long option, or the name in the usage line."""
    return max(action.option_strings, key=len, default=str(action.metavar or action.dest))


def _expected(value: str, choices: Sequence[str]) -> str:
    close = nearest(value, choices)
    hint = f"; did you mean {close}?" if close else ""
    return f"expected {list_choices(choices)}, got {value!r}{hint}"
