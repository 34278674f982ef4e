"""``refinedet detect``: find objects in images and videos."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from refinedet import __version__
from refinedet.commands import messages
from refinedet.commands.options import add_batch_size, add_checkpoint, add_device, add_json, deliver, speaker

if TYPE_CHECKING:
    from refinedet.commands.options import Commands


def add_parser(commands: Commands) -> None:
    """Add the parser of this verb."""
    parser = commands.add_parser(
        "detect",
        help="find objects in images and videos",
        description="Find objects in images and videos. Annotated copies go to --out. Inputs that cannot be read are "
        "reported at the end, with exit status 1, after all others are done. Ctrl-C or SIGTERM finishes what is "
        "under way and ends with the results so far, exit status 130 or 143.",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "inputs", metavar="IMAGE|FOLDER|VIDEO", nargs="+", type=Path, help="of a folder, the files directly in it"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("detections"),
        help="folder of annotated copies (default: ./detections)",
    )
    parser.add_argument(
        "--score-threshold",
        metavar="T",
        type=_fraction,
        default=0.5,
        help="leave out lower scores everywhere (default: 0.5)",
    )
    add_batch_size(parser)
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Annotate the inputs, and tell what was found and what could not be read."""
    import refinedet
    from refinedet.commands.annotate import Annotator
    from refinedet.commands.inputs import find_inputs, plan_outputs
    from refinedet.ops.devices import choose_device

    images, videos = find_inputs(arguments.inputs)
    targets = plan_outputs([*images, *videos], arguments.out)
    device = choose_device(arguments.device)
    annotator = Annotator(
        detector=refinedet.load(arguments.checkpoint).to(device),
        targets=targets,
        score_threshold=arguments.score_threshold,
        batch_size=arguments.batch_size,
        say=speaker(arguments),
        keep_records=bool(arguments.json),
    )
    annotator.run(images, videos)
    if annotator.done:
        annotator.say(f"Annotated copies: {arguments.out}")
    deliver(arguments, {"refinedet": __version__, "checkpoint": arguments.checkpoint, **annotator.to_json()})
    for error in annotator.failures.values():
        messages.say_error(error)
    annotator.stop.obey(f"interrupted, {len(annotator.remaining)} of {len(targets)} inputs remain")
    if not annotator.failures:
        return 0
    return 1 if annotator.done else 2


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
