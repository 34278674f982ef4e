"""The ``refinedet`` command. Results go to stdout, progress and errors to stderr.

Exit status: 0 done; 1 done, but some inputs could not be read (`detect`) or the machine is not in order (`doctor`);
2 not done, with one line ``refinedet: error: ...`` naming the cause and the fix; 130 interrupted by Ctrl-C.

Each verb is a file: it adds its parser, and its ``run`` returns the exit status. Torch and OpenCV are imported by the
``run`` that needs them, so that ``refinedet --help`` is quick.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from refinedet import __version__
from refinedet.commands import detect, doctor, evaluate, train
from refinedet.commands.messages import say, say_error, show_warning
from refinedet.errors import InputError, RefineDetError
from refinedet.quiet import silence_opencv

VERBS = (train, evaluate, detect, doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's) and return its exit status."""
    silence_opencv()
    try:
        arguments = build_parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            status: int = arguments.run(arguments)
            return status
    except BrokenPipeError:  # the reader of our output has gone, as `head` does: nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RefineDetError, OSError) as error:
        say_error(error)
        return 2
    except KeyboardInterrupt as error:
        say(str(error) or "interrupted")  # training says what it saved, and how to go on
        return 130


class _Parser(argparse.ArgumentParser):
    """Usage errors end as all others: one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; ``run`` of what it returns carries the verb out."""
    parser = _Parser(prog="refinedet", description="RefineDet object detection: train, evaluate, detect.")
    parser.add_argument("--version", action="version", version=f"refinedet {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for verb in VERBS:
        verb.add_parser(commands)
    return parser
