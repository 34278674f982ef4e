"""The ``refinedet`` command. Results go to stdout, progress and errors to stderr.

Exit status: 0 done; 1 done, but some inputs could not be read (`detect`) or the machine is not in order (`doctor`);
2 not done, with one line ``refinedet: error: ...`` naming the cause and the fix; 130 interrupted by Ctrl-C.

Torch and OpenCV are imported by the subcommands that need them, so that ``refinedet --help`` is quick.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from refinedet import __version__
from refinedet.errors import InputError, RefineDetError
from refinedet.files import PACKAGE, RECIPES, write_text

if TYPE_CHECKING:
    from refinedet.inference.detector import Detector

STDOUT = True  # `--json` without a file; no text, which argparse would check as a file name
FFMPEG_QUIET = "-8"  # AV_LOG_QUIET: what is wrong with a video is said once, by us
_FIXES = {
    errno.ENOSPC: "free space or choose another folder",
    errno.EDQUOT: "free space or choose another folder",
    errno.EFBIG: "free space or choose another folder",
    errno.EACCES: "change its permissions or choose another place",
    errno.EPERM: "change its permissions or choose another place",
    errno.EROFS: "choose another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's) and return its exit status."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", FFMPEG_QUIET)
    arguments = argparse.Namespace()
    try:
        arguments = _parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return arguments.run(arguments)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does: nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RefineDetError, OSError) as error:
        _say_error(error)
        return 2
    except KeyboardInterrupt as error:
        saved = str(error)  # training says what it saved
        hint = f"{saved}; go on with: {_resume_command(arguments)}" if saved else "interrupted"
        print(f"refinedet: {hint}", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """Usage errors end as all others: one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="refinedet", description="RefineDet object detection: train, evaluate, detect.")
    parser.add_argument("--version", action="version", version=f"refinedet {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_evaluate(commands)
    _add_detect(commands)
    _add_doctor(commands)
    return parser


def _add_train(commands: Any) -> None:
    shipped = sorted(path.stem for path in RECIPES.glob("*.toml"))
    parser = commands.add_parser(
        "train",
        help="train a model by a recipe",
        description="Train a model by a recipe.",
        epilog=f"Shipped recipes: {', '.join(shipped)}.",
    )
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="TOML file of the recipe, or a shipped one's name")
    parser.add_argument("--data", metavar="DIR", type=Path, help="data set folder (default: the recipe's)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of logs and checkpoints (default: runs/RECIPE)")
    parser.add_argument("--weights", metavar="FILE", type=Path, help="pretrained backbone file (default: the recipe's)")
    parser.add_argument(
        "--weights-input",
        choices=("torchvision", "caffe"),
        help="what the backbone file reads: RGB in 0..1, standardised, or BGR in 0..255 (default: the recipe's)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out where it stopped")
    parser.add_argument("--json", action="store_true", help="print the result as JSON only")
    parser.set_defaults(run=_train)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate", help="measure a checkpoint's precision", description="Measure a checkpoint's average precision."
    )
    _add_checkpoint(parser)
    parser.add_argument("--data", metavar="DIR", type=Path, required=True, help="data set folder, VOC or COCO layout")
    parser.add_argument("--split", default="test", help="split of the data set (default: test)")
    parser.add_argument(
        "--metric",
        choices=("voc", "voc07", "coco"),
        default="voc",
        help="AP at IoU 0.5, as the area under the curve or by the 11 points of VOC 2007, or COCO AP (default: voc)",
    )
    parser.add_argument("--format", choices=("voc", "coco"), help="layout of the data set (default: found out)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder for evaluation.json and the curves")
    _add_common(parser)
    parser.set_defaults(run=_evaluate)


def _add_detect(commands: Any) -> None:
    parser = commands.add_parser(
        "detect",
        help="find objects in images and videos",
        description="Find objects in images and videos. Annotated copies go to --out. Inputs that cannot be read are "
        "reported at the end, with exit status 1, after all others are done. Ctrl-C finishes the images under way and "
        "ends with the results so far, exit status 130.",
    )
    _add_checkpoint(parser)
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
    _add_common(parser)
    parser.set_defaults(run=_detect)


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor", help="check this installation", description="Check this installation: versions, extension, devices."
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON only")
    parser.set_defaults(run=_doctor)


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .safetensors file, or a shipped checkpoint's name")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", metavar="N", type=_positive, default=8, help="images at a time (default: 8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--json",
        metavar="FILE.json",
        nargs="?",
        const=STDOUT,
        default=False,
        type=_json_file,
        help="results as JSON: in a file, or without one as all that stdout gets",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _json_file(text: str) -> str:
    """The suffix is required: `--json IMAGE` or `--json CHECKPOINT` must never overwrite what was meant as an input."""
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .json; to print JSON, put --json last")
    return text


def _train(arguments: argparse.Namespace) -> int:
    from refinedet.training.run import train

    say = _speaker(arguments)
    out = _run_folder(arguments)
    result = train(
        arguments.recipe,
        out,
        data=arguments.data,
        weights=arguments.weights,
        weights_input=arguments.weights_input,
        resume=arguments.resume,
    )
    say(f"Trained to step {result.steps} in {result.seconds / 60:.1f} min")
    if result.loss is not None:
        say(f"Mean loss of the last steps: {result.loss:.4f}")
    if result.evaluation is not None:
        mean_ap = result.evaluation["mean_ap"]
        shown = "- (it has no object)" if mean_ap is None else f"{mean_ap:.4f}"
        say(f"Mean {result.evaluation['measure']} on the test split: {shown}")
    say(f"Model: {result.checkpoint}")
    say(f"Logs and the state to resume from: {out}")
    _deliver(arguments, json.loads(result.to_json()))
    return 0


def _run_folder(arguments: argparse.Namespace) -> Path:
    return arguments.out or Path("runs") / arguments.recipe.stem


def _resume_command(arguments: argparse.Namespace) -> str:
    command = ["refinedet", "train", str(arguments.recipe)]
    for name in ("data", "weights", "weights_input"):
        if getattr(arguments, name):
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    return shlex.join([*command, "--out", str(_run_folder(arguments)), "--resume"])


def _evaluate(arguments: argparse.Namespace) -> int:
    from refinedet.evaluation.evaluate import evaluate_checkpoint
    from refinedet.ops.devices import choose_device

    say = _speaker(arguments)
    evaluation = evaluate_checkpoint(
        arguments.checkpoint,
        arguments.data,
        arguments.split,
        format=arguments.format,
        device=choose_device(arguments.device),
        metric=arguments.metric,
        batch_size=arguments.batch_size,
    )
    say(evaluation.table())
    if arguments.out is not None:
        evaluation.save(arguments.out)
        say(f"Numbers, detections and precision-recall curves: {arguments.out}")
    _deliver(arguments, json.loads(evaluation.to_json()))
    return 0


def _detect(arguments: argparse.Namespace) -> int:
    from refinedet.commands.detect import DetectJob, find_inputs, plan_outputs

    images, videos = find_inputs(arguments.inputs)
    targets = plan_outputs([*images, *videos], arguments.out)
    job = DetectJob(
        detector=_load(arguments.checkpoint, arguments.device),
        targets=targets,
        score_threshold=arguments.score_threshold,
        batch_size=arguments.batch_size,
        say=_speaker(arguments),
        keep_records=bool(arguments.json),
    )
    job.run(images, videos)
    if job.done:
        job.say(f"Annotated copies: {arguments.out}")
    _deliver(arguments, {"refinedet": __version__, "checkpoint": arguments.checkpoint, **job.to_json()})
    for error in job.failures.values():
        _say_error(error)
    if job.interrupted:
        print(f"refinedet: interrupted, {len(job.remaining)} of {len(targets)} inputs remain", file=sys.stderr)
        return 130
    if not job.failures:
        return 0
    return 1 if job.done else 2


def _doctor(arguments: argparse.Namespace) -> int:
    from refinedet.commands import doctor

    return doctor.main(as_json=arguments.json)


def _load(checkpoint: str, device: str) -> Detector:
    import refinedet
    from refinedet.ops.devices import choose_device

    chosen = choose_device(device)
    return refinedet.load(checkpoint).to(chosen)


def _speaker(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Prints a line for people: to stdout, or to stderr when stdout is kept for JSON."""
    stream = sys.stderr if arguments.json is STDOUT else sys.stdout
    return lambda line: print(line, file=stream)


def _deliver(arguments: argparse.Namespace, document: Any) -> None:
    """Put the JSON document where ``--json`` says, if it was given."""
    text = json.dumps(document, allow_nan=False) + "\n"
    if arguments.json is STDOUT:
        sys.stdout.write(text)
    elif arguments.json:
        write_text(arguments.json, text)


def _say_error(error: Exception) -> None:
    print(f"refinedet: error: {_explain_os_error(error) if isinstance(error, OSError) else error}", file=sys.stderr)


def _explain_os_error(error: OSError) -> str:
    """What the system said, with file and fix as all other errors have them."""
    fix = _FIXES.get(error.errno or 0)
    if error.filename is None or fix is None:
        return str(error)
    return f"{error.filename}: {error.strerror}; {fix}"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """A warning of this package is for the user: one line without the source code behind it."""
    if issubclass(category, UserWarning) and Path(filename).is_relative_to(PACKAGE):
        print(f"refinedet: warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), file=sys.stderr, end="")
