"""Networks that RefineDet can stand on."""

from collections.abc import Callable

from refinedet.errors import InputError, show
from refinedet.models.backbones.base import Backbone
from refinedet.models.backbones.resnet import ResNet101
from refinedet.models.backbones.squeezenet import SqueezeNet
from refinedet.models.backbones.timm import TimmBackbone
from refinedet.models.backbones.vgg import VGG16

BACKBONES: dict[str, Callable[[], Backbone]] = {"vgg16": VGG16, "resnet101": ResNet101, "squeezenet": SqueezeNet}
TIMM = "timm:"  # prefix of the name of any timm model


def make_backbone(name: str) -> Backbone:
    """Make the backbone of that name, one of ``BACKBONES`` or "timm:NAME"; InputError if there is none."""
    if isinstance(name, str) and name.startswith(TIMM):
        return TimmBackbone(name.removeprefix(TIMM))
    if not isinstance(name, str) or name not in BACKBONES:
        raise InputError(f"backbone is {show(name)}; choose {', '.join(BACKBONES)} or {TIMM}NAME")
    return BACKBONES[name]()
