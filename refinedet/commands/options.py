"""Options that several verbs have, and the delivery of their JSON."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from refinedet.choices import DEVICES, DTYPES, is_device
from refinedet.errors import InputError, show
from refinedet.files import write_text
from refinedet.parsing import to_json
from refinedet.protocols import PROTOCOLS, Protocol, get_protocol

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

STDOUT = True  # `--json` without a file; no text, which argparse would check as a file name
_COCO_KEYS = re.compile(rb'"file_name"\s*:|"(annotations|categories)"\s*:\s*\[')  # in none of our own documents
_START = 1 << 16  # bytes that are looked through for them


def add_checkpoint(parser: argparse.ArgumentParser, *, exported: bool = True) -> None:
    """CHECKPOINT, the model to use. ``exported``: or a file of `refinedet export`."""
    files = (
        "a .safetensors file, a shipped checkpoint's name, or an exported file"
        if exported
        else ("a .safetensors file, or a shipped checkpoint's name")
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=files)


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    """``--batch-size``, of images without training."""
    parser.add_argument("--batch-size", metavar="N", type=positive, default=8, help="images at a time (default: 8)")


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """``--protocol``, of testing."""
    parser.add_argument(
        "--protocol",
        metavar="NAME|FILE.toml",
        help=f"how images are tested: {', '.join(PROTOCOLS)}, or a file of one's own (default: once, at the "
        "checkpoint's size, with its thresholds)",
    )


def chosen_protocol(arguments: argparse.Namespace) -> Protocol | None:
    """What ``--protocol`` says; InputError for a mistake in it, before torch is loaded or anything is read."""
    return None if arguments.protocol is None else get_protocol(arguments.protocol)


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``, for `choose_device`."""
    parser.add_argument("--device", default="auto", type=_device, help=f"{DEVICES} (default: auto)")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """``--dtype``, the name of a torch.dtype."""
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the network (default: float32)")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """``--quiet``, which every verb has."""
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="neither progress nor notes: results, warnings and errors only"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``: alone, the document is all that stdout gets; with a file, it goes there and the text stays on stdout.

    `speaker` and `deliver` do it.
    """
    parser.add_argument(
        "--json",
        metavar="FILE.json",
        nargs="?",
        const=STDOUT,
        default=False,
        type=_json_file,
        help="results as JSON: in a file, or without one as all that stdout gets",
    )


def speaker(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Prints a line for people: to stdout, or to stderr when stdout is kept for JSON."""
    if arguments.json is STDOUT and sys.stdout is None:
        raise InputError("--json has no stdout to go to, which is closed; give a file: --json FILE.json")
    stream = sys.stderr if arguments.json is STDOUT else sys.stdout

    def say(line: str) -> None:
        with tqdm.external_write_mode(file=stream):  # above the progress
            print(line, file=stream, flush=True)

    return say


def noter(arguments: argparse.Namespace) -> Callable[[str], None]:
    """As `speaker`, for what ``--quiet`` leaves out."""
    return (lambda line: None) if arguments.quiet else speaker(arguments)


def deliver(arguments: argparse.Namespace, document: Any) -> None:
    """Put the JSON document where ``--json`` says, if it was given; a file is written whole or not at all."""
    text = to_json(document) + "\n"
    if arguments.json is STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
    elif arguments.json:
        write_text(arguments.json, text)


def positive(text: str) -> int:
    """A whole number above 0, as an argument's type."""
    if not re.fullmatch("0*[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(f"{show(text)} is not a whole number from 1 to 999999")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """Height and width in pixels, as an argument's type."""
    matched = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)
    if matched is None:
        raise argparse.ArgumentTypeError(f"{show(text)} is no size; give 320, or a height and a width such as 320x512")
    return int(matched[1]), int(matched[2] or matched[1])


def _device(text: str) -> str:
    if not is_device(text):
        raise argparse.ArgumentTypeError(f"{text!r} is none; give {DEVICES}")
    return text


def _json_file(text: str) -> str:
    """The suffix is required: `--json IMAGE` or `--json CHECKPOINT` must never overwrite what was meant as an input."""
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .json; to print JSON, put --json last")
    if os.path.isfile(text) and _holds_annotations(text):
        raise argparse.ArgumentTypeError(f"{text!r} holds annotations, which would be lost; give another place")
    return text


def _holds_annotations(path: str) -> bool:
    """Whether a file begins as those of COCO's layout do."""
    try:
        with open(path, "rb") as file:
            return _COCO_KEYS.search(file.read(_START)) is not None
    except OSError:  # writing will tell
        return False
