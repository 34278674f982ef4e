"""``refinedet export``: a model as a file of another runtime, checked against PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from refinedet.choices import SIZE_STEP
from refinedet.commands.options import (
    add_checkpoint,
    add_json,
    add_protocol,
    chosen_protocol,
    deliver,
    positive,
    size,
    speaker,
)
from refinedet.errors import printable
from refinedet.formats import FORMATS, ROWS, Choices

if TYPE_CHECKING:
    from refinedet.commands.options import Commands

DYNAMIC = "dynamic"
DTYPES = tuple(dict.fromkeys(dtype for form in FORMATS.values() for dtype in form.dtypes))


def add_parser(commands: Commands) -> None:
    """Add the parser of this verb."""
    formats = "; ".join(f"{form.name} ({form.suffix}): {form.runs_on}" for form in FORMATS.values())
    parser = commands.add_parser(
        "export",
        help="write a model for another runtime",
        description="Write a model as a file of another runtime. The file is run and compared with PyTorch before it "
        "is handed over; how far they are apart, its size and the time of an image are shown, and kept beside it as "
        f"JSON. {formats}. `refinedet detect`, `evaluate` and `benchmark` take these files as they take a checkpoint.",
    )
    add_checkpoint(parser, exported=False)
    parser.add_argument("--format", choices=tuple(FORMATS), required=True, help="of the file")
    parser.add_argument("--out", metavar="FILE", type=Path, help="to write (default: the model's name, in this folder)")
    parser.add_argument(
        "--size",
        metavar="N",
        type=size,
        help=f"side of the network's input in pixels, or HEIGHTxWIDTH, multiples of {SIZE_STEP} (default: the model's)",
    )
    parser.add_argument(
        "--batch",
        metavar=f"N|{DYNAMIC}",
        type=_batch,
        default=1,
        help=f"images at a time, or {DYNAMIC} for any number (default: 1)",
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default: float32)")
    precision.add_argument("--half", dest="dtype", action="store_const", const="float16", help="as --dtype float16")
    parser.add_argument(
        "--calibrate",
        metavar="IMAGE|FOLDER",
        nargs="+",
        help="images like those to come, for --dtype int8; at most 300 of them are looked at",
    )
    parser.add_argument(
        "--raw", action="store_true", help="the network alone, without what makes objects of its output"
    )
    parser.add_argument(
        "--rows",
        choices=ROWS,
        default=ROWS[0],
        help=f"of onnx: as many for every image, the last ones empty, or those there are (default: {ROWS[0]})",
    )
    add_protocol(parser)
    parser.add_argument(
        "--images", metavar="IMAGE|FOLDER", nargs="+", help="to compare with, the first 4 (default: the examples)"
    )
    parser.add_argument("--data", metavar="DIR", type=Path, help="data set to measure what precision is lost on")
    parser.add_argument("--split", default="test", help="of --data (default: test)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="that aoti is compiled for (default: cpu)"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export, and tell how far the file is from PyTorch and where it lies."""
    protocol = chosen_protocol(arguments)
    choices = Choices(arguments.format, arguments.size, arguments.batch, arguments.dtype, arguments.rows, arguments.raw)
    out = arguments.out or _default_name(arguments.checkpoint, choices)
    say = speaker(arguments)
    import refinedet
    from refinedet.commands.inputs import find_photographs

    report = refinedet.export(
        refinedet.load(arguments.checkpoint),
        out,
        choices,
        images=find_photographs(arguments.images, "--images"),
        calibration=find_photographs(arguments.calibrate, "--calibrate"),
        protocol=protocol,
        data=arguments.data,
        split=arguments.split,
        device=arguments.device,
    )
    say(report.text())
    say(f"Written: {printable(out)}, and what was measured: {printable(out)}.json")
    deliver(arguments, report.document())
    return 0


def _default_name(checkpoint: str, choices: Choices) -> Path:
    """The model's name, and what keeps files of one suffix apart."""
    marks = [*(["aoti"] if choices.format == "aoti" else []), *([] if choices.dtype == "float32" else [choices.dtype])]
    return Path("_".join([Path(checkpoint).stem, *marks]) + FORMATS[choices.format].suffix)


def _batch(text: str) -> int | None:
    return None if text == DYNAMIC else positive(text)
