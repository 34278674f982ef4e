"""Words that recipes, functions and the command line choose from.

They stand here because the command line offers and checks them before it imports torch.
"""

import re

from refinedet.errors import InputError, show, suggestion

DEVICES = "auto, cpu, cuda or cuda:N"
"""The names of devices, for a message; `is_device` knows them."""

DTYPES = ("float32", "float16", "bfloat16")
"""In which a network computes."""

DATA_FORMATS = ("voc", "coco")
"""Layouts of a data set folder."""

SAVED_FORMATS = ("coco", "voc", "yolo", "labelme")
"""Formats in which what was found is saved for annotation tools."""

SAVED_SPLIT = "default"
"""The split that holds it; CVAT calls its own so, where nobody has named one."""

METRICS = ("voc", "voc07", "coco")
"""What average precision means: at IoU 0.5 the area under the curve (voc) or the mean of 11 points (voc07, as VOC 2007
results are published), or the mean over IoU 0.50:0.95 (coco)."""

COMPETITIONS = ("comp3", "comp4")
"""VOC's detection challenges: trained on VOC2012's own trainval images alone, or on any but the test images."""

WEIGHTS_INPUTS = ("torchvision", "caffe")
"""What the first convolution of a backbone file reads. torchvision: RGB in 0..1, standardised by ImageNet's statistics.
caffe: BGR in 0..255 minus the mean."""

BACKBONES = ("vgg16", "resnet101", "squeezenet")
"""Networks that this package builds; `TIMM` and a name is one of timm's."""

TIMM = "timm:"

LAYER_ORDERS = ("time", "flop", "bytes", "rate", "run")
"""How a profile's layers are sorted: the longest, the most operations, the most bytes or the slowest first; or as they
run."""

SIZE_STEP = 64
"""Both sides of a network's input are multiples of it, in pixels: the stride of the coarsest level (spec section 2)."""

MAX_SIDE = 4096
"""The longest side of a network's input in pixels; the paper's is 512."""


def is_device(name: str) -> bool:
    """Whether ``name`` is one of `DEVICES`, be there such a device or not."""
    return re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?", name) is not None


def check_backbone(name: object) -> None:
    """Raise InputError unless ``name`` is a backbone's; whether timm has it, timm alone knows."""
    if name in BACKBONES or (isinstance(name, str) and re.fullmatch(TIMM + r"[\w./:-]+", name, re.ASCII)):
        return
    hint = suggestion(name, BACKBONES) if isinstance(name, str) else ""
    raise InputError(f"backbone is {show(name)};{hint} choose {', '.join(BACKBONES)} or {TIMM}NAME")
