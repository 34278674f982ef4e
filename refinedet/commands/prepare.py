"""``refinedet prepare``: check a benchmark on disk and make the splits that the recipes train on."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from refinedet.choices import DATA_FORMATS
from refinedet.commands.options import add_json, deliver, noter, speaker
from refinedet.errors import InputError, printable, show

if TYPE_CHECKING:
    from refinedet.commands.options import Commands
    from refinedet.data.prepare import Prepared

PAGE = "refinedet_samples.jpg"  # no name that a user's own file has
_IMAGE_FOLDERS = re.compile(r"JPEGImages|Segmentation(Class|Object)|(train|val|test)20\d\d")  # VOC's and COCO's
_SUFFIXES = (".jpg", ".jpeg", ".png")


def add_parser(commands: Commands) -> None:
    """Add the parser of this verb."""
    parser = commands.add_parser(
        "prepare",
        help="check VOC or COCO on disk and make the paper's splits",
        description="Compare what is on disk of VOC or COCO with what was published, say where to get what is missing, "
        "make the splits of the paper, and draw a page of samples. Nothing is downloaded.",
    )
    parser.add_argument("benchmark", choices=DATA_FORMATS, help="voc or coco")
    parser.add_argument(
        "data", metavar="DIR", type=Path, help="VOCdevkit, or the folder of COCO's annotations and image folders"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help=f"the page of samples, .jpg or .png (default: DIR/{PAGE})"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check, make, draw, and say what is there; 1 where something is short or nothing can be trained on."""
    say = speaker(arguments)
    _check_page(arguments.out)

    from refinedet.data.prepare_coco import prepare_coco
    from refinedet.data.prepare_voc import prepare_voc

    prepared = prepare_voc(arguments.data) if arguments.benchmark == "voc" else prepare_coco(arguments.data)
    say(prepared.table())
    for path in prepared.written:
        say(f"Written: {printable(path)}")
    for path in prepared.kept:
        say(f"Kept, as it was not made by prepare: {printable(path)}")
    page = None
    try:
        page = _draw(prepared, arguments.out or prepared.root / PAGE)
    finally:  # what was found is told, wherever the page cannot be written
        deliver(arguments, {**prepared.to_json(), "page": page and str(page)})
    if page is not None:
        noter(arguments)(f"Samples with their boxes: {printable(page)}")
    return 0 if prepared.sound else 1


def _check_page(path: Path | None) -> None:
    """Raise InputError for a place where no page of samples can be, or where an image of the data is."""
    if path is None:
        return
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"--out is {show(str(path))}; give a file that ends in {', '.join(_SUFFIXES)}")
    if path.is_file() and _IMAGE_FOLDERS.fullmatch(path.absolute().parent.name):
        raise InputError(f"--out {path} is an image of the data, which would be lost; give another place")


def _draw(prepared: Prepared, path: Path) -> Path | None:
    """The page, where there is an image to be drawn."""
    import cv2

    from refinedet.files import atomic_write
    from refinedet.inference.page import draw_page

    if not prepared.samples:
        return None
    page = draw_page(prepared.samples, prepared.classes)
    encoded = cv2.imencode(path.suffix, page)[1]
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(encoded.tobytes())
    except OSError as error:
        raise InputError(
            f"the page of samples cannot be written to {show(str(path))} ({error.strerror or error}); name another "
            "place: --out FILE.jpg"
        ) from error
    return path
