"""``refinedet evaluate``: measure a checkpoint's average precision."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from refinedet.choices import DATA_FORMATS, METRICS
from refinedet.commands.options import (
    add_batch_size,
    add_checkpoint,
    add_device,
    add_json,
    add_protocol,
    chosen_protocol,
    deliver,
    noter,
    speaker,
)
from refinedet.errors import printable

if TYPE_CHECKING:
    from refinedet.commands.options import Commands


def add_parser(commands: Commands) -> None:
    """Add the parser of this verb."""
    parser = commands.add_parser(
        "evaluate", help="measure a checkpoint's precision", description="Measure a checkpoint's average precision."
    )
    add_checkpoint(parser)
    parser.add_argument("--data", metavar="DIR", type=Path, required=True, help="data set folder, VOC or COCO layout")
    parser.add_argument("--split", default="test", help="split of the data set (default: test)")
    parser.add_argument(
        "--metric",
        choices=METRICS,
        default="voc",
        help="AP at IoU 0.5, as the area under the curve or by the 11 points of VOC 2007, or COCO AP (default: voc)",
    )
    add_protocol(parser)
    parser.add_argument("--format", choices=DATA_FORMATS, help="layout of the data set (default: found out)")
    parser.add_argument(
        "--allow-outside", action="store_true", help="annotations and splits may name files outside the data folder"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder for evaluation.json and the curves")
    add_batch_size(parser)
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, and show the table."""
    protocol = chosen_protocol(arguments)
    from refinedet.evaluation.evaluate import evaluate_checkpoint
    from refinedet.ops.devices import choose_device

    say = speaker(arguments)
    evaluation = evaluate_checkpoint(
        arguments.checkpoint,
        arguments.data,
        arguments.split,
        format=arguments.format,
        allow_outside=arguments.allow_outside,
        device=choose_device(arguments.device),
        protocol=protocol,
        metric=arguments.metric,
        batch_size=arguments.batch_size,
    )
    deliver(arguments, json.loads(evaluation.to_json()))
    say(evaluation.table())
    if arguments.out is not None:
        evaluation.save(arguments.out)
        noter(arguments)(f"Numbers, detections and precision-recall curves: {printable(arguments.out)}")
    return 0
