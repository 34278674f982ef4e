"""``refinedet detect``: find objects in images and videos."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from refinedet import __version__
from refinedet.choices import SAVED_FORMATS
from refinedet.commands import messages
from refinedet.commands.options import (
    add_batch_size,
    add_checkpoint,
    add_device,
    add_dtype,
    add_json,
    add_protocol,
    chosen_protocol,
    deliver,
    noter,
    speaker,
)
from refinedet.errors import InputError, printable, suggestion

if TYPE_CHECKING:
    from refinedet.commands.options import Commands

SURE = 0.5  # score of what is shown, unless another is asked for
FEW = 8  # images of which each object is shown; of more each image is a line


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
        "inputs",
        metavar="IMAGE|FOLDER|VIDEO",
        nargs="+",
        help="of a folder, the files directly in it; a pattern in quotes ('photos/*.jpg'; ** is any folder below); "
        "-: the files and folders that stdin lists, one a line or as `find -print0` writes them",
    )
    parser.add_argument(
        "-r",
        "--recursive",
        action="store_true",
        help="of a folder, those in all folders below it, too; hidden ones, links and --out are left out",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("detections"),
        help="folder of annotated copies (default: ./detections)",
    )
    parser.add_argument(
        "--save",
        metavar="FORMAT[,FORMAT]",
        type=_formats,
        action="extend",
        default=[],
        help=f"for annotation tools, the images and their objects as a data set, too, in DIR/FORMAT: "
        f"{', '.join(SAVED_FORMATS)}",
    )
    parser.add_argument(
        "--score-threshold",
        metavar="T",
        type=_fraction,
        help=f"leave out lower scores everywhere (default: {SURE}, or that of the protocol or model if it is higher)",
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help=f"show each object, not a line per image, of more than {FEW} images, too",
    )
    add_protocol(parser)
    add_batch_size(parser)
    add_device(parser)
    add_dtype(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Annotate the inputs, and tell what was found and what could not be read."""
    protocol = chosen_protocol(arguments)
    import torch

    import refinedet
    from refinedet.commands.annotate import Annotator
    from refinedet.commands.inputs import find_inputs, plan_outputs
    from refinedet.commands.save import Saver, plan_saved
    from refinedet.protocols import of_preset

    _refuse_swapped(arguments.checkpoint, arguments.inputs)
    say, note = speaker(arguments), noter(arguments)
    images, videos = find_inputs(arguments.inputs, recursive=arguments.recursive, out=arguments.out)
    targets = plan_outputs([*images, *videos], arguments.out)
    folders = plan_saved(arguments.save, images, videos, arguments.out)
    detector = refinedet.load(arguments.checkpoint, arguments.device).to(getattr(torch, arguments.dtype))
    threshold = arguments.score_threshold
    if threshold is None:
        testing = protocol or of_preset(detector.preset)
        threshold = max(SURE, testing.thresholds.score_threshold)
    annotator = Annotator(
        detector=detector,
        targets=targets,
        protocol=protocol,
        score_threshold=threshold,
        batch_size=arguments.batch_size,
        say=say,
        note=note,
        each_object=arguments.verbose or len(images) <= FEW,
        keep_records=bool(arguments.json),
        saver=Saver(folders, images, detector.classes) if folders else None,
    )
    try:
        annotator.run(images, videos)
    finally:  # what was found is kept, whatever ended the work, and before anything else can go wrong
        try:
            deliver(arguments, {"refinedet": __version__, "checkpoint": arguments.checkpoint, **annotator.to_json()})
        finally:
            for error in annotator.failures.values():
                messages.say_error(error)
    if annotator.done:
        note(f"Annotated copies: {printable(arguments.out)}")
        for name, folder in folders.items():
            note(f"Data set ({name}): {printable(folder)}")
    annotator.stop.obey(f"interrupted, {len(annotator.remaining)} of {len(targets)} inputs remain")
    if not annotator.failures:
        return 0
    return 1 if annotator.done else 2


def _refuse_swapped(checkpoint: str, inputs: list[str]) -> None:
    """`detect photo.jpg bccd` is `detect bccd photo.jpg`."""
    from refinedet.weights.checkpoint import shipped_names

    if Path(checkpoint).suffix == ".safetensors" or not os.path.exists(checkpoint):
        return
    for given in inputs:
        if Path(given).suffix == ".safetensors" or (given in shipped_names() and not os.path.exists(given)):
            raise InputError(
                f"{checkpoint} stands where the checkpoint belongs, and {given} among the inputs; the checkpoint comes "
                f"first: refinedet detect {shlex.join([given, checkpoint])}"
            )


def _formats(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in SAVED_FORMATS:
            hint = suggestion(name, SAVED_FORMATS)
            raise argparse.ArgumentTypeError(f"{name!r} is unknown;{hint} choose from {', '.join(SAVED_FORMATS)}")
    return names


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
