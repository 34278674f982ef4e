"""``refinedet evaluate``: measure a checkpoint's average precision."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refinedet.choices import COMPETITIONS, DATA_FORMATS, METRICS
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
from refinedet.errors import InputError, printable

if TYPE_CHECKING:
    from refinedet.commands.options import Commands
    from refinedet.evaluation.report import Evaluation
    from refinedet.evaluation.submit import Submission


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
    parser.add_argument(
        "--submit",
        metavar="DIR",
        type=Path,
        help="folder for the file that the server of VOC or COCO wants; the split needs no annotations then",
    )
    parser.add_argument(
        "--competition",
        choices=COMPETITIONS,
        help="VOC's, for --submit: trained on VOC2012 trainval alone (comp3) or on other data too (default: comp4)",
    )
    parser.add_argument(
        "--algorithm", metavar="NAME", help="the method's name in COCO's file, for --submit (default: the checkpoint's)"
    )
    add_batch_size(parser)
    add_device(parser)
    add_dtype(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write what is to be written, and show the table."""
    protocol = chosen_protocol(arguments)
    import torch

    from refinedet.evaluation.evaluate import evaluate_checkpoint
    from refinedet.evaluation.submit import submit_checkpoint

    say = speaker(arguments)
    given = (arguments.checkpoint, arguments.data, arguments.split)
    options: dict[str, Any] = {
        "format": arguments.format,
        "allow_outside": arguments.allow_outside,
        "device": arguments.device,
        "dtype": getattr(torch, arguments.dtype),
        "protocol": protocol,
        "metric": arguments.metric,
        "batch_size": arguments.batch_size,
    }

    measured: list[Evaluation] = []

    def tell(evaluation: Evaluation, submission: Submission | None = None) -> None:
        deliver(arguments, _document(evaluation, submission))
        if arguments.submit is None or evaluation.mean_ap is not None:
            say(evaluation.table())

    def save(evaluation: Evaluation) -> None:
        measured.append(evaluation)
        if arguments.out is not None:
            evaluation.save(arguments.out)

    if arguments.submit is None:
        for option in ("competition", "algorithm"):
            if getattr(arguments, option) is not None:
                raise InputError(f"--{option} says how to submit; give --submit DIR too")
        evaluation = evaluate_checkpoint(*given, **options)
        save(evaluation)
        tell(evaluation)
    else:
        try:
            evaluation, submission = submit_checkpoint(
                *given,
                arguments.submit,
                competition=arguments.competition,
                algorithm=arguments.algorithm,
                save=save,
                **options,
            )
        except BaseException:  # the server's file alone may have failed
            if measured:
                tell(measured[0])
            raise
        tell(evaluation, submission)
        say(_describe(submission))
    if arguments.out is not None:
        noter(arguments)(f"Numbers, detections and precision-recall curves: {printable(arguments.out)}")
    return 0


def _document(evaluation: Evaluation, submission: Submission | None) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(evaluation.to_json())
    if submission is not None:
        document["submission"] = {**submission._asdict(), "file": str(submission.file)}
    return document


def _describe(submission: Submission) -> str:
    measured = "" if submission.annotated else "No AP: the split has no annotations here, the server measures it\n"
    size = submission.file.stat().st_size / 1e6
    return (
        f"{measured}For the server: {printable(submission.file)} ({submission.images} images, {submission.detections} "
        f"detections, {size:.3g} MB)"
    )
