"""``refinedet train``: train a model by a recipe."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from refinedet.choices import WEIGHTS_INPUTS
from refinedet.commands.options import add_device, add_json, deliver, speaker
from refinedet.errors import DataError
from refinedet.interrupt import Stopped, TrainingInterrupted
from refinedet.training.folder import STATE_FILE
from refinedet.training.sources import Layer, parse_setting, recipe_names, setting

if TYPE_CHECKING:
    from refinedet.commands.options import Commands
    from refinedet.training.recipe import Recipe


class GivenSetting(NamedTuple):
    """A setting of the recipe on the command line, with the words that gave it."""

    option: str
    text: str
    layer: Layer


def add_parser(commands: Commands) -> None:
    """Add the parser of this verb."""
    parser = commands.add_parser(
        "train",
        help="train a model by a recipe",
        description="Train a model by a recipe.",
        epilog=f"Shipped recipes: {', '.join(recipe_names())}.",
    )
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="TOML file of the recipe, or a shipped one's name")
    _add_setting(
        parser,
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="a setting in place of the recipe's, such as train.lr=1e-3; may be given many times",
    )
    _add_setting(parser, "--data", "data.root", metavar="DIR", help="data set folder (default: the recipe's)")
    _add_setting(
        parser, "--weights", "model.weights", metavar="FILE", help="pretrained backbone file (default: the recipe's)"
    )
    _add_setting(
        parser,
        "--weights-input",
        "model.weights_input",
        metavar=f"{{{','.join(WEIGHTS_INPUTS)}}}",
        help="what the backbone file reads: RGB in 0..1, standardised, or BGR in 0..255 (default: the recipe's)",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of logs and checkpoints (default: runs/RECIPE)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out where it stopped")
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and tell what came out of it and where it is."""
    from refinedet.training.read import read_recipe

    say = speaker(arguments)
    out = _run_folder(arguments)
    recipe = read_recipe(arguments.recipe, [given.layer for given in arguments.settings])

    from refinedet.training.run import RunStopped, train  # loads torch: a mistake in the recipe is told by now

    try:
        result = train(recipe, out, device=arguments.device, resume=arguments.resume, progress=not arguments.quiet)
    except TrainingInterrupted as stopped:
        ways = f"go on with: {resume_command(arguments)}; measure it with: {evaluate_command(recipe, out)}"
        raise Stopped(f"{stopped}; {ways}", stopped.signum) from None
    except RunStopped as stopped:
        raise DataError(f"{stopped}; go on with: {resume_command(arguments)}") from None
    say(f"Trained to step {result.steps} in {result.seconds / 60:.1f} min")
    if result.loss is not None:
        say(f"Mean loss of the last steps: {result.loss:.4f}")
    if result.evaluation is not None:
        mean_ap = result.evaluation["mean_ap"]
        shown = "- (it has no object)" if mean_ap is None else f"{mean_ap:.4f}"
        say(f"Mean {result.evaluation['measure']} on the test split: {shown}")
    say(f"Model: {result.checkpoint}")
    say(f"Logs and the state to resume from: {out}")
    deliver(arguments, json.loads(result.to_json()))
    return 0


def resume_command(arguments: argparse.Namespace) -> str:
    """The command that goes on with the run of ``arguments``, as one types it."""
    command = ["refinedet", "train", str(arguments.recipe)]
    for given in arguments.settings:
        command += [given.option, given.text]
    if arguments.device != "auto":
        command += ["--device", arguments.device]
    return shlex.join([*command, "--out", str(_run_folder(arguments)), "--resume"])


def evaluate_command(recipe: Recipe, out: Path) -> str:
    """The command that measures the run in ``out`` as far as it got."""
    folder, _, split = recipe.data.test_split.rpartition("/")
    command = ["refinedet", "evaluate", str(out / STATE_FILE), "--data", str(Path(recipe.data.root or "") / folder)]
    return shlex.join([*command, "--split", split] if split != "test" else command)


def _run_folder(arguments: argparse.Namespace) -> Path:
    out: Path | None = arguments.out
    return out or Path("runs") / arguments.recipe.stem


def _add_setting(
    parser: argparse.ArgumentParser, option: str, name: str | None = None, *, metavar: str, help: str
) -> None:
    """An option for setting ``name``, or without it for any one; all go to one list, of which the last one wins."""
    read: Callable[[str], Layer] = parse_setting if name is None else lambda text: setting(name, text, option)
    parser.add_argument(
        option,
        dest="settings",
        metavar=metavar,
        action="append",
        default=[],
        type=lambda text: GivenSetting(option, text, read(text)),
        help=help,
    )
