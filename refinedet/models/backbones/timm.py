"""Any convolutional network of timm as a backbone (optional dependency ``timm``)."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor, nn

from refinedet.errors import InputError
from refinedet.models.backbones.base import Backbone, Features
from refinedet.models.layers import ConvBlock
from refinedet.preprocessing import Preprocessing

REDUCTIONS = (8, 16, 32)
EXTRA_WIDTHS = (256, 512)  # of the new stage of stride 64, as VGG-16's conv6_1 and conv6_2


class TimmBackbone(Backbone):
    """The last feature maps of strides 8, 16 and 32 of a timm network, and a new stage for stride 64.

    ``name``: a timm model name. Raises InputError when timm is absent, has no such model, or the model does not give
    those strides (vision transformers mostly do not). The mean and deviation of the input are the model's own.
    """

    norm = nn.BatchNorm2d

    def __init__(self, name: str) -> None:
        super().__init__()
        timm = _import_timm()
        self.name = name
        self.body = _feature_network(timm, name)
        mid, out = EXTRA_WIDTHS
        widths = self.body.feature_info.channels()
        self.extra64 = nn.Sequential(
            ConvBlock(widths[-1], mid, 1, norm=self.norm), ConvBlock(mid, out, 3, stride=2, padding=1, norm=self.norm)
        )
        self.channels = (*widths, out)
        config = self.body.pretrained_cfg
        self.preprocessing = Preprocessing(mean=_grey_bgr(config["mean"]), std=_grey_bgr(config["std"]), order="rgb")

    def forward(self, images: Tensor) -> Features:
        c8, c16, c32 = self.body(images)
        return c8, c16, c32, self.extra64(c32)

    def complete_network(self) -> nn.Module:
        """timm's own network with its classifier, anew: the one whose weights its files hold."""
        return _import_timm().create_model(self.name)


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise InputError("a timm backbone needs the package timm: pip install 'refinedet[timm]'") from error
    return timm


def _feature_network(timm: ModuleType, name: str) -> nn.Module:
    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}; list its names with timm.list_models()")
    whole = timm.create_model(name)
    reductions = [stage["reduction"] for stage in whole.feature_info]
    if any(stride not in reductions for stride in REDUCTIONS):
        raise InputError(
            f"timm model {name!r} gives strides {sorted(set(reductions))}; choose one that gives 8, 16 and 32"
        )
    if whole.pretrained_cfg.get("fixed_input_size"):
        raise InputError(f"timm model {name!r} works at one input size only; choose a convolutional network")
    last = [max(i for i, stride in enumerate(reductions) if stride == wanted) for wanted in REDUCTIONS]
    # "getter" keeps timm's parameter names, and with them its weight files.
    return timm.create_model(name, features_only=True, feature_cls="getter", out_indices=last)


def _grey_bgr(rgb: tuple[float, float, float]) -> tuple[float, float, float]:
    """RGB in 0..1 to BGR in 0..255."""
    red, green, blue = (255 * value for value in rgb)
    return blue, green, red
