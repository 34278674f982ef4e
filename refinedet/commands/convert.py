"""``refinedet convert``: bring in the weights of another program, or hand over one's own."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refinedet.commands.options import add_json, deliver, size, speaker
from refinedet.errors import printable, shorten

if TYPE_CHECKING:
    from refinedet.commands.options import Commands
    from refinedet.weights.convert import Conversion

FORMATS = {"caffemodel": "a model of Caffe", "luuuyi": "a model of the luuuyi port", "refinedet": "a checkpoint"}
# Recipes that start from a backbone, and where their data usually lie.
TRAININGS = {"vgg16": ("vgg16_voc07_320", "VOCdevkit"), "resnet101": ("resnet101_coco_320", "COCO")}
_LIST = "voc, coco, or a file with one name per line"


def add_parser(commands: Commands) -> None:
    """Add the parser of this verb."""
    parser = commands.add_parser(
        "convert",
        help="convert a model of Caffe or of the luuuyi port, or into one of Caffe",
        description="Convert a model of another program into a checkpoint, or a checkpoint into a model of Caffe. "
        "Backbone, classes and the size of the input are found out from the file.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="a .caffemodel of RefineDet, VGG-16 reduced or ResNet-101, a .pth of the luuuyi port, or a checkpoint",
    )
    parser.add_argument(
        "--out", metavar="MODEL", type=Path, required=True, help="file to write: .safetensors, or .caffemodel for Caffe"
    )
    parser.add_argument(
        "--size",
        type=size,
        metavar="N",
        help="side of the network's input in pixels, or HEIGHTxWIDTH (default: what the file or its name tells)",
    )
    parser.add_argument("--classes", metavar="NAMES", help=f"names of the classes: {_LIST} (default: by their number)")
    parser.add_argument("--select", metavar="NAMES", help=f"keep these classes alone, VOC's of COCO's say: {_LIST}")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert, and tell what was found and where it lies."""
    from refinedet.training.read import read_classes
    from refinedet.weights.convert import convert

    say = speaker(arguments)
    names = {
        option: None if text is None else read_classes(text, Path(), f"--{option}")
        for option, text in (("classes", arguments.classes), ("select", arguments.select))
    }
    found = convert(arguments.file, arguments.out, size=arguments.size, **names)
    say(describe(found))
    say(f"Written: {printable(found.output)}")
    if found.config is None:
        recipe, data = TRAININGS[found.backbone]
        command = ["refinedet", "train", recipe, "--data", data, "--weights", str(found.output)]
        say(f"Start a training from it: {printable(shlex.join([*command, '--weights-input', 'caffe']))}")
    deliver(arguments, document(found))
    return 0


def describe(found: Conversion) -> str:
    """What was found, for people."""
    start = f"{printable(found.input)}: {FORMATS[found.format]}, {found.values} values"
    lines = [f"{start}, {found.backbone}"]
    if found.config is None:
        lines[0] += " as trained on ImageNet"
    else:
        height, width = found.config.size
        lines.append(f"Input {height} x {width} pixels, told by {found.size_from}; preset {found.config.preset.name}")
        lines.append(f"{len(found.config.classes)} classes: {printable(shorten(list(found.config.classes)))}")
    if found.ignored:
        lines.append(f"Not used: {printable(shorten(list(found.ignored)))}")
    return "\n".join(lines)


def document(found: Conversion) -> dict[str, Any]:
    """What was found, as JSON."""
    config = found.config
    return {
        "input": str(found.input),
        "output": str(found.output),
        "format": found.format,
        "kind": "backbone" if config is None else "detector",
        "backbone": found.backbone,
        "size": None if config is None else list(config.size),
        "size_from": found.size_from or None,
        "classes": None if config is None else list(config.classes),
        "preset": None if config is None else config.preset.name,
        "ignored_layers": list(found.ignored),
        "values": found.values,
    }
