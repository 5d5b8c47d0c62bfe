"""Entry point of the command line: argument parsing, exit codes, and errors as one sentence or one JSON object.

argparse is used because click and typer add 0.07 s to `--help`. Only the arguments of the chosen command are built,
so `vesalius --help` imports no other package.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Collection, Sequence
from importlib.metadata import version
from typing import Any

from vesalius.cli import (
    check,
    compare,
    convert,
    evaluate,
    import_,
    info,
    init,
    plan,
    predict,
    runs,
    split,
    synth,
    train,
    tune,
)
from vesalius.cli.help import HelpFormatter
from vesalius.cli.parser import Parser
from vesalius.errors import UsageError, VesaliusError
from vesalius.files import to_json
from vesalius.language import LANGUAGES, speaking

VERBS = {
    "synth": synth,
    "check": check,
    "split": split,
    "import": import_,
    "init": init,
    "train": train,
    "runs": runs,
    "predict": predict,
    "evaluate": evaluate,
    "tune": tune,
    "compare": compare,
    "plan": plan,
    "info": info,
    "convert": convert,
}
"""Command -> module: its docstring is the summary, `add_arguments` fills the parser, `run` executes the command."""


def build_parser(chosen: Collection[str]) -> Parser:
    """The parser of all commands, with arguments only for the `chosen` ones."""
    parser = Parser(
        prog="vesalius",
        description="Text-prompted segmentation of your own images.",
        formatter_class=HelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=version("vesalius"))
    _add_shared_options(parser)
    parser.set_defaults(json=False, verbose=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in VERBS.items():
        command = commands.add_parser(
            name,
            help=module.__doc__,
            description=module.__doc__,
            formatter_class=HelpFormatter,
            argument_default=argparse.SUPPRESS,
        )
        command.set_defaults(run=module.run)
        if name in chosen:
            module.add_arguments(command)
        _add_shared_options(command)
    return parser


def _add_shared_options(parser: Parser) -> None:
    """Add --lang, --json and --verbose, which stand before or after the command."""
    add = parser.add_argument
    add("--lang", choices=LANGUAGES, help="language of help, pages and figures; default: the language of the locale")
    add("--json", action="store_true", help="print the result as JSON, as the last line of stdout")
    add("-v", "--verbose", action="store_true", help="print more messages, and the traceback of an error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 success, 1 error or failed items, 2 wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with speaking(_language(arguments)):
        return _run(arguments)


def _language(arguments: Sequence[str]) -> str | None:
    """The value of --lang, before the words are parsed, because --help ends the parsing."""
    pairs = [(word, after) for word, after in itertools.pairwise(arguments) if word == "--lang"]
    pairs += [("--lang", word[7:]) for word in arguments if word.startswith("--lang=")]
    return next((value for _, value in pairs if value in LANGUAGES), None)


def _run(arguments: Sequence[str]) -> int:
    try:
        args = build_parser([word for word in arguments if word in VERBS][:1]).parse_args(arguments)
    except UsageError as error:
        return _report(error, sys.stdout if "--json" in arguments else None)
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s: %(message)s")
    # SIGTERM, as from a canceled cluster job, cleans up like Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stdout = sys.stdout
    if args.json:
        sys.stdout = sys.stderr
    try:
        result = args.run(args)
    except BrokenPipeError:  # the process that reads stdout, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if args.verbose:
            traceback.print_exc()
        return _report(_as_vesalius_error(error), stdout if args.json else None)
    finally:
        sys.stdout = stdout
    if args.json:
        print(to_json(result))
    return 1 if result.get("failed") else 0


def _report(error: VesaliusError, stdout: Any) -> int:
    """Print the error as a sentence to stderr, and as JSON to `stdout` unless it is None; returns the exit code."""
    print(f"vesalius: {error}", file=sys.stderr)
    if stdout is not None:
        print(to_json({"error": error.as_json()}), file=stdout)
    return error.exit_code


def _as_vesalius_error(error: BaseException) -> VesaliusError:
    """Convert an interruption or an unexpected exception to a VesaliusError; others are returned unchanged."""
    if isinstance(error, VesaliusError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return VesaliusError("interrupted", code="interrupted", remedy="run the same command again")
    reason = " ".join(str(error).split())
    message = f"unexpected {type(error).__name__}: {reason} (-v shows the traceback)"
    return VesaliusError(message, code="unexpected")
