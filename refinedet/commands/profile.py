"""``refinedet profile``: where the time of a model goes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from refinedet.choices import LAYER_ORDERS
from refinedet.commands.options import add_device, add_json, deliver, noter, positive, size, speaker
from refinedet.errors import printable
from refinedet.progress import show_progress

if TYPE_CHECKING:
    from refinedet.commands.options import Commands

MOST_ROWS = 20  # of a table without --verbose
_NO_LOG = "KINETO_LOG_LEVEL", "99"  # else torch's profiler tells on stderr when it starts and what GPU is missing


def add_parser(commands: Commands) -> None:
    """Add the parser of this verb."""
    parser = commands.add_parser(
        "profile",
        help="show where a model's time goes",
        description="Show where a model's time goes: its stages, layers, operators and, on a GPU, kernels, beside what "
        "was measured that the machine can do at most. In --out: profile.json (all numbers), trace.json (for "
        "https://ui.perfetto.dev), roofline.png, profile.html (all tables, and the roofline with names).",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a .safetensors file, a shipped checkpoint's name, or a network's with random weights (vgg16, resnet101)",
    )
    parser.add_argument(
        "--size",
        type=size,
        metavar="N",
        help="side of the network's input in pixels, or HEIGHTxWIDTH (default: the checkpoint's, else 320)",
    )
    parser.add_argument("--batch", metavar="N", type=positive, default=1, help="images of a call (default: 1)")
    parser.add_argument(
        "--sort",
        choices=LAYER_ORDERS,
        default=LAYER_ORDERS[0],
        help="layers: the longest, the most operations or bytes, or the slowest first, or as they run (default: time)",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help=f"show all layers and kernels, not the first {MOST_ROWS}"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("profile"), help="folder of the files (default: ./profile)"
    )
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the files, and show the tables."""
    os.environ.setdefault(*_NO_LOG)
    from refinedet.profiling.model import imitate_training, open_detector, open_photographs
    from refinedet.profiling.profile import STEPS, profile

    say, note = speaker(arguments), noter(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)  # what stands in the way is told before minutes of work
    detector, random_weights = open_detector(arguments.model, arguments.size, device=arguments.device)
    detector.trained_network  # noqa: B018 (what has no layers to profile is refused before minutes of work)
    photographs = open_photographs()
    if random_weights:
        imitate_training(detector, photographs.decode(0))
    with show_progress("profiling", "step", len(STEPS) + 1, leave=False) as bar:

        def on_step(step: str) -> None:
            bar.set_postfix_str(step, refresh=True)
            bar.update(0 if step == STEPS[0] else 1)

        found = profile(
            arguments.model,
            detector,
            photographs,
            arguments.batch,
            random_weights=random_weights,
            on_step=on_step,
        )
        on_step("files")
        found.write(arguments.out)
    deliver(arguments, found.to_json())
    most = None if arguments.verbose else MOST_ROWS
    say("\n\n".join([found.about(), *(table.text(most) for table in found.tables(arguments.sort))]))
    note(f"\nNumbers, trace, roofline and a page with all of it: {printable(arguments.out)}")
    return 0
