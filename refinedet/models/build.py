"""Making a network: from a backbone's name and the classes, or from a configuration."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from numbers import Integral
from pathlib import Path

import torch

from refinedet.anchors import RATIO, parse_size
from refinedet.choices import SIZE_STEP, TIMM
from refinedet.errors import InputError
from refinedet.models.backbones import make_backbone
from refinedet.models.backbones.timm import first_line
from refinedet.models.config import TCB_CHANNELS, ModelConfig, check_classes
from refinedet.models.pretrained import load_pretrained
from refinedet.models.refinedet import RefineDet
from refinedet.presets import Preset, get_preset


def build(
    backbone: str,
    size: int | tuple[int, int] = 320,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    preset: str | Preset = "official",
    weights: str | Path | None = None,
    weights_input: str = "torchvision",
    tcb_channels: int = TCB_CHANNELS,
    anchor_ratio: float = RATIO,
) -> RefineDet:
    """Build a network with fresh parameters (spec sections 2 to 5), in training mode.

    ``backbone``: "vgg16", "resnet101", "squeezenet" or "timm:NAME". ``size``: side, or (height, width), of the input
    in pixels, multiples of 64. ``num_classes`` counts the background; ``classes`` names the foreground classes, and
    then ``num_classes`` may be left out. ``preset``: "official", "paper", "coco" or a Preset. ``weights``: ImageNet
    weights for the backbone (`refinedet.models.pretrained`); ``weights_input``: what they read, "torchvision" (RGB in
    0..1, standardised) or "caffe" (BGR in 0..255 minus the mean). ``tcb_channels``: width of the transfer connection
    blocks, 256 in the paper. ``anchor_ratio``: width / height of the wide anchors, 2 in the paper. Raises InputError
    for a bad argument and CheckpointError for a bad weights file.
    """
    # mypy does not know that int is Integral
    height_width = parse_size((size, size) if isinstance(size, (int, Integral)) else size)
    names = _class_names(num_classes, classes)
    if isinstance(backbone, str):
        try_backbone(backbone, height_width)
    features = make_backbone(backbone)
    config = ModelConfig(
        backbone, height_width, names, get_preset(preset), features.preprocessing, tcb_channels, anchor_ratio
    )
    model = RefineDet(config, features)
    if weights is not None:
        load_pretrained(features, weights, weights_input)
    return model


def from_config(config: ModelConfig) -> RefineDet:
    """Build the network of ``config`` with fresh parameters. Raises InputError as `build`."""
    try_backbone(config.backbone, parse_size(config.size))
    return RefineDet(config, make_backbone(config.backbone))


def allocate(config: ModelConfig) -> RefineDet:
    """The network of ``config`` in float32 on the CPU, whatever torch's defaults, to be filled by a whole state dict:
    until then its values are any. Raises InputError as `build`."""
    if config.backbone.startswith(TIMM):  # layers of timm may hold values that are in no state dict
        with torch.device("cpu"), _float32_by_default():
            return from_config(config)
    model = deepcopy(outline(config))
    model.config = config
    return model.to_empty(device="cpu")


def outline(config: ModelConfig) -> RefineDet:
    """The network of ``config`` on the meta device, without values: to ask for names and shapes. Not to be changed:
    networks that differ in thresholds or names of classes share one."""
    preset = Preset(head_bottleneck=config.preset.head_bottleneck, tcb=config.preset.tcb)
    return _outline(config.backbone, config.num_classes, preset, config.tcb_channels)


@lru_cache(maxsize=4)
def _outline(backbone: str, num_classes: int, preset: Preset, tcb_channels: int) -> RefineDet:
    size = (SIZE_STEP, SIZE_STEP)  # no weight depends on it
    with torch.device("meta"), _float32_by_default(), torch.inference_mode(False):  # it outlives the caller's blocks
        features = make_backbone(backbone)
        config = ModelConfig(
            backbone, size, _class_names(num_classes, None), preset, features.preprocessing, tcb_channels
        )
        return RefineDet(config, features)


@contextmanager
def _float32_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@lru_cache(maxsize=16)
def try_backbone(backbone: str, size: tuple[int, int]) -> None:
    """Raise InputError when a network of timm does not give its maps for images of ``size``: some have blocks that
    divide them evenly, or maps of a fixed size. A pass without values tells."""
    if not backbone.startswith(TIMM):
        return
    with torch.device("meta"), torch.no_grad(), _float32_by_default():
        network = make_backbone(backbone).eval()
        try:
            network(torch.empty(1, 3, *size))
        except InputError:
            raise
        except Exception as error:  # of any kind: timm's models do as they like
            raise InputError(
                f"backbone {backbone!r} does not take images of {size[0]} x {size[1]} pixels ({first_line(error)}); "
                "choose another size (multiples of 256 suit the most) or another network"
            ) from error


def _class_names(num_classes: int | None, classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        if not isinstance(num_classes, Integral) or num_classes < 2:
            raise InputError(f"num_classes is {num_classes!r}; give at least 2 (background and one class), or classes")
        return tuple(f"class{label}" for label in range(1, num_classes))
    check_classes(classes)
    if num_classes not in (None, len(classes) + 1):
        raise InputError(
            f"num_classes is {num_classes}, but there are {len(classes)} classes and the background; "
            f"give {len(classes) + 1} or leave it out"
        )
    return tuple(classes)
