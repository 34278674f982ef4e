"""The ``refinedet`` command. Results go to stdout, progress and errors to stderr.

Exit status: 0 done; 1 done, but some inputs could not be read (`detect`), the machine is not in order (`doctor`) or the
reader of stdout went; 2 not done, with one line ``refinedet: error: ...`` naming the cause and the fix; 3 a fault of
this package, with its traceback; 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by the SIGHUP of a closed terminal:
128 + signal, as shells and schedulers have it.

Each verb is a file: it adds its parser, and its ``run`` returns the exit status. Torch and OpenCV are imported by the
``run`` that needs them, so that ``refinedet --help`` is quick.
"""

import argparse
import os
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from refinedet import __version__
from refinedet.commands import benchmark, convert, detect, doctor, evaluate, export, prepare, profile, train
from refinedet.commands.messages import is_out_of_memory, say, say_error, show_warning
from refinedet.commands.options import add_quiet
from refinedet.commands.streams import Stream, safe_streams
from refinedet.errors import InputError, RefineDetError, show, suggestion
from refinedet.interrupt import Stopped, raise_on_interrupt
from refinedet.progress import quiet
from refinedet.silence import silence_opencv

VERBS = (prepare, train, evaluate, detect, convert, export, benchmark, profile, doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's) and return its exit status."""
    silence_opencv()
    with safe_streams() as stdout:
        try:
            status = _run(argv)
        except SystemExit as end:  # --help and --version
            raise SystemExit(_undelivered(stdout) or end.code) from None
        return max(status, _undelivered(stdout))


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = build_parser().parse_args(argv)
        with warnings.catch_warnings(), quiet(arguments.quiet), raise_on_interrupt():
            warnings.showwarning = show_warning
            status: int = arguments.run(arguments)
            return status
    except (RefineDetError, OSError) as error:
        say_error(error)
        return 2
    except KeyboardInterrupt as error:
        say(str(error) or "interrupted")  # training says what it saved, and how to go on
        return error.exit_status if isinstance(error, Stopped) else 130
    except Exception as error:
        return _tell_unforeseen(error)


def _tell_unforeseen(error: Exception) -> int:
    """The limits of the machine and of names are the user's to mend; all else is a fault of this package."""
    if is_out_of_memory(error):
        say_error(error)
        return 2
    if isinstance(error, UnicodeEncodeError):  # a library that takes names in UTF-8 only
        say(f"error: {error.object} cannot be written in {error.encoding}; rename the file or folder")
        return 2
    traceback.print_exc()
    say(f"error: this is a fault of refinedet {__version__}: please report the lines above and the command")
    return 3


def _undelivered(stdout: Stream | None) -> int:
    """The exit status that a failed stdout asks for. Where its reader has gone, as `head` does, nobody is told."""
    if stdout is None:
        return 0
    stdout.flush()
    if stdout.error is None:
        return 0
    if isinstance(stdout.error, BrokenPipeError):
        return 1
    say_error(OSError(stdout.error.errno, stdout.error.strerror, "stdout"))
    return 2


class _Parser(argparse.ArgumentParser):
    """Usage errors end as all others: one line and exit status 2. They name what was probably meant."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}{'' if message.endswith('?') else ';'} see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """None but known arguments: here, and not at the end, it is known which verb they were given to."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._explain_unknown(unknown[0]))
        return known, unknown

    def _explain_unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"{show(argument)} stands alone after an option; give all inputs together"
        if os.path.lexists(argument):
            return f"{show(argument)} is no option; the file of that name is ./{argument}"
        option = argument.partition("=")[0]
        return f"there is no option {show(option)};{suggestion(option, self._option_string_actions)}".removesuffix(";")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = suggestion(str(value), action.choices)
            raise argparse.ArgumentError(action, f"{value!r} is unknown;{hint} choose from {', '.join(action.choices)}")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; ``run`` of what it returns carries the verb out."""
    parser = _Parser(prog="refinedet", description="RefineDet object detection: train, evaluate, detect.")
    parser.add_argument("--version", action="version", version=f"refinedet {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for verb in VERBS:
        verb.add_parser(commands)
    for command in commands.choices.values():
        add_quiet(command)
    return parser
