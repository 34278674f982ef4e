"""``refinedet benchmark``: images per second of a model, and where the time goes."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from refinedet.choices import SIZE_STEP
from refinedet.commands.options import add_device, add_dtype, add_json, deliver, noter, positive, size, speaker
from refinedet.errors import printable, show
from refinedet.progress import SHORT, show_progress

if TYPE_CHECKING:
    from refinedet.commands.options import Commands
    from refinedet.interrupt import StopRequest
    from refinedet.profiling.speed_report import Report

SECONDS = 45  # of the whole command
BATCHES = (1, 8)
PAGE = "benchmark.html"


def add_parser(commands: Commands) -> None:
    """Add the parser of this verb."""
    parser = commands.add_parser(
        "benchmark",
        help="measure images per second of a model, and where the time goes",
        description="Measure a model on this machine: images per second, p50, p90 and p99 of a call, the stages, cold "
        "and warm, parameters, GFLOP and peak memory, beside the paper's numbers. What each number counts is said "
        "below the table. Ctrl-C ends with what is measured so far.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a .safetensors file, a shipped checkpoint's name, an exported file, or a network with random weights: "
        "vgg16, resnet101, squeezenet, timm:NAME",
    )
    parser.add_argument(
        "--batch", metavar="N[,N...]", type=_batches, default=BATCHES, help="batch sizes, in turn (default: 1,8)"
    )
    parser.add_argument(
        "--size",
        metavar="N",
        type=size,
        help=f"side of the network's input in pixels, or HEIGHTxWIDTH, multiples of {SIZE_STEP} (default: the "
        "checkpoint's; without weights 320)",
    )
    parser.add_argument(
        "--classes",
        metavar="N",
        type=positive,
        help="of a network with random weights, no background (default: 20)",
    )
    add_dtype(parser)
    add_device(parser)
    parser.add_argument("--threads", metavar="N", type=positive, help="of the CPU (default: as torch chooses)")
    parser.add_argument(
        "--images",
        metavar="IMAGE|FOLDER",
        nargs="+",
        help="photographs to measure with, the first 64; how many objects they have matters (default: the examples in "
        "the repository, else a synthetic image)",
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=positive,
        default=SECONDS,
        help=f"time of all, loading included; a call of each kind is measured in any case (default: {SECONDS})",
    )
    add_json(parser)
    parser.add_argument(
        "--html",
        metavar="FILE.html",
        nargs="?",
        const=PAGE,
        type=_html_file,
        help=f"also as a page with pictures, whole in one file (default: {PAGE})",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, tell, and write what was asked for; an interrupt ends the measuring, not the telling."""
    say, note = speaker(arguments), noter(arguments)
    start = time.perf_counter()
    from refinedet.files import write_text
    from refinedet.interrupt import stop_on_interrupt
    from refinedet.profiling.speed_page import page
    from refinedet.profiling.speed_report import CONVENTIONS

    imported = time.perf_counter() - start
    with stop_on_interrupt() as stop:
        report = _measure(arguments, start, imported, stop)
    try:
        say(report.text())
        note("")
        for name, text in CONVENTIONS.items():
            note(f"{name}: {text}")
        if arguments.html is not None:
            write_text(arguments.html, page(report))
            note(f"Page: {printable(arguments.html)}")
    finally:
        deliver(arguments, report.document())
    stop.obey("interrupted; the numbers are of the calls until then")
    return 1 if any(each.error for each in report.batches) else 0


def _measure(arguments: argparse.Namespace, begun: float, imported: float, stop: StopRequest) -> Report:
    import torch

    from refinedet.commands.inputs import find_photographs
    from refinedet.inference.timing import wait_for
    from refinedet.ops.devices import choose_device
    from refinedet.profiling.machine import describe
    from refinedet.profiling.model import imitate_training, open_detector, open_photographs
    from refinedet.profiling.resident import PeakMemory
    from refinedet.profiling.speed import measure_batches
    from refinedet.profiling.speed_report import Report, Spent, describe_model

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    machine = describe(device)
    photographs = open_photographs(find_photographs(arguments.images, "--images"))
    resident = PeakMemory(device).resident()
    with stop.at_once():
        start = time.perf_counter()
        detector, random = open_detector(arguments.model, arguments.size, arguments.classes, arguments.device)
        detector.to(getattr(torch, arguments.dtype))
        wait_for(detector.device)
        loaded = time.perf_counter() - start
        if random:
            imitate_training(detector, photographs.decode(0))
        model = describe_model(arguments.model, detector, random)
    with show_progress("measuring", "call", None, delay=SHORT) as bar:

        def tell(what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update()

        start = time.perf_counter()
        measured = measure_batches(
            detector,
            photographs,
            arguments.batch,
            max(0.0, begun + arguments.seconds - start),
            bytes_per_image=model.largest_layer_bytes if detector.device.type == "cpu" else 0,
            on_call=tell,
            stop=lambda: stop.made,
        )
    end = time.perf_counter()
    spent = Spent(arguments.seconds, end - begun, end - start)
    return Report(model, machine, photographs.what, imported, loaded, resident, measured, spent)


def _batches(text: str) -> tuple[int, ...]:
    sizes = [positive(part) for part in text.split(",")]
    if len(set(sizes)) < len(sizes):
        raise argparse.ArgumentTypeError(f"{show(text)} has a size twice")
    return tuple(sizes)


def _html_file(text: str) -> str:
    """The suffix is required: `--html bccd` must not take the model for a file."""
    if not text.endswith(".html"):
        raise argparse.ArgumentTypeError(f"{show(text)} does not end in .html; give MODEL before --html")
    return text
