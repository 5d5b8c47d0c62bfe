"""Entry point of the command line: argument parsing, exit codes, and errors as one sentence or one JSON object.

argparse is used because click and typer add 0.07 s to `--help`. Only the arguments of the chosen command are built,
so `vesalius --help` imports no other package.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Collection, Sequence
from importlib.metadata import version

from vesalius.cli import (
    check,
    compare,
    convert,
    evaluate,
    import_,
    info,
    plan,
    predict,
    runs,
    split,
    synth,
    train,
    tune,
)
from vesalius.errors import VesaliusError
from vesalius.files import to_json

VERBS = {
    "synth": synth,
    "check": check,
    "split": split,
    "import": import_,
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


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each argument that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def build_parser(chosen: Collection[str]) -> argparse.ArgumentParser:
    """The parser of all commands, with arguments only for the `chosen` ones."""
    parser = argparse.ArgumentParser(prog="vesalius", description="Text-prompted segmentation of your own images.")
    parser.add_argument("--version", action="version", version=version("vesalius"))
    parser.set_defaults(json=False, verbose=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in VERBS.items():
        command = commands.add_parser(
            name,
            help=module.__doc__,
            description=module.__doc__,
            formatter_class=_HelpFormatter,
            argument_default=argparse.SUPPRESS,
        )
        command.set_defaults(run=module.run, parser=command)
        if name in chosen:
            module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print the result as JSON, as the last line of stdout")
        command.add_argument(
            "-v", "--verbose", action="store_true", help="print more messages, and the traceback of an error"
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 success, 1 error or failed items, 2 wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args, unknown = build_parser(arguments[:1]).parse_known_args(arguments)
    if unknown:  # parse_args would print the usage of all commands
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
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
        known = _as_vesalius_error(error)
        print(f"vesalius: {known}", file=sys.stderr)
        if args.json:
            print(to_json({"error": known.as_json()}), file=stdout)
        return known.exit_code
    finally:
        sys.stdout = stdout
    if args.json:
        print(to_json(result))
    return 1 if result.get("failed") else 0


def _as_vesalius_error(error: BaseException) -> VesaliusError:
    """Convert an interruption or an unexpected exception to a VesaliusError; others are returned unchanged."""
    if isinstance(error, VesaliusError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return VesaliusError("interrupted", code="interrupted")
    reason = " ".join(str(error).split())
    message = f"unexpected {type(error).__name__}: {reason} (-v shows the traceback)"
    return VesaliusError(message, code="unexpected")
