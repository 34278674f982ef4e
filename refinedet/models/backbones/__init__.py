"""Networks that RefineDet can stand on."""

from collections.abc import Callable

from refinedet.choices import TIMM, check_backbone
from refinedet.models.backbones.base import Backbone
from refinedet.models.backbones.resnet import ResNet101
from refinedet.models.backbones.squeezenet import SqueezeNet
from refinedet.models.backbones.timm import TimmBackbone
from refinedet.models.backbones.vgg import VGG16

_BACKBONES: dict[str, Callable[[], Backbone]] = {"vgg16": VGG16, "resnet101": ResNet101, "squeezenet": SqueezeNet}


def make_backbone(name: str) -> Backbone:
    """Make the backbone of that name, one of `BACKBONES` or "timm:NAME"; InputError if there is none."""
    check_backbone(name)
    if name.startswith(TIMM):
        return TimmBackbone(name.removeprefix(TIMM))
    return _BACKBONES[name]()
