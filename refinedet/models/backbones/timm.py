"""Any convolutional network of timm as a backbone (optional dependency ``timm``)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinedet.errors import InputError, suggestion
from refinedet.models.backbones.base import Backbone, Features
from refinedet.models.layers import ConvBlock, L2Norm
from refinedet.preprocessing import Preprocessing

REDUCTIONS = (8, 16, 32)
EXTRA_WIDTHS = (256, 512)  # of the new stage of stride 64, as VGG-16's conv6_1 and conv6_2
_RMS = 0.5  # of normalised features; VGG-16's have 0.44 and 0.35
MOST_ADDED = 3  # cells by which a map is made wider; Inception, which does not pad its convolutions, lacks 3 of 40


class TimmBackbone(Backbone):
    """The last feature maps of strides 8, 16 and 32 of a timm network, and a new stage for stride 64.

    The former are normalised as VGG-16's are (spec section 2). Without that they may be ten times as large as the heads
    are made for: EfficientNet-Lite0's losses of the ARM then stay thrice as high.

    ``name``: a timm model name. Raises InputError when timm is absent, has no such model, or the model does not give
    those strides (vision transformers mostly do not). The mean and deviation of the input are the model's own.

    Maps that are a few cells smaller or larger than H/stride are padded with zeros, or cropped, on all sides alike: the
    cells stay where their receptive fields are (Inception V3's within a pixel at stride 8).
    """

    norm = nn.BatchNorm2d
    body: Any  # timm's feature network, which tells more about itself than an nn.Module does

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
        self.norms = nn.ModuleList(L2Norm(width, _RMS * width**0.5) for width in widths)
        self.channels = (*widths, out)
        config = self.body.pretrained_cfg
        self.preprocessing = Preprocessing(mean=_grey_bgr(config["mean"]), std=_grey_bgr(config["std"]), order="rgb")

    def forward(self, images: Tensor) -> Features:
        height, width = images.shape[2:]
        sizes = [(height // stride, width // stride) for stride in REDUCTIONS]
        maps = [_fit_map(x, size, self.name) for x, size in zip(self.body(images), sizes, strict=True)]
        c8, c16, c32 = (norm(x) for norm, x in zip(self.norms, maps, strict=True))
        return c8, c16, c32, self.extra64(c32)

    def complete_network(self) -> nn.Module:
        """timm's own network with its classifier, without values: the one whose weights its files hold."""
        with torch.device("meta"):
            network: nn.Module = _import_timm().create_model(self.name)
        return network


def _fit_map(x: Tensor, size: tuple[int, int], name: str) -> Tensor:
    """``x`` fitted to ``size`` cells; InputError where more than `MOST_ADDED` cells are missing, or half of them."""
    have = tuple(x.shape[2:])
    if have == size:
        return x
    if any(abs(want - found) > MOST_ADDED or 2 * found <= want for want, found in zip(size, have, strict=True)):
        raise InputError(f"timm model {name!r} gives a map of {have} instead of {size} cells; choose another one")
    rows, columns = size[0] - have[0], size[1] - have[1]
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise InputError("a timm backbone needs the package timm: pip install 'refinedet[timm]'") from error
    return timm


def _feature_network(timm: ModuleType, name: str) -> nn.Module:
    if not timm.is_model(name):
        hint = suggestion(name, timm.list_models())
        raise InputError(f"timm has no model {name!r};{hint} list its names with timm.list_models()")
    try:
        with torch.device("meta"):
            whole = timm.create_model(name)
        stages = whole.feature_info
    except Exception as error:  # of any kind: timm's models do as they like
        raise _unusable(name, error) from error
    reductions = [stage["reduction"] for stage in stages]
    if any(stride not in reductions for stride in REDUCTIONS):
        raise InputError(
            f"timm model {name!r} gives strides {sorted(set(reductions))}; choose one that gives 8, 16 and 32"
        )
    if whole.pretrained_cfg.get("fixed_input_size"):
        raise InputError(f"timm model {name!r} works at one input size only; choose a convolutional network")
    last = [max(i for i, stride in enumerate(reductions) if stride == wanted) for wanted in REDUCTIONS]
    try:
        # "getter" keeps timm's parameter names, and with them its weight files.
        network: nn.Module = timm.create_model(name, features_only=True, feature_cls="getter", out_indices=last)
    except Exception as error:
        raise _unusable(name, error) from error
    return network


def _unusable(name: str, error: Exception) -> InputError:
    return InputError(
        f"timm cannot make {name!r} a network of features ({first_line(error)}); choose another convolutional network"
    )


def first_line(error: Exception) -> str:
    """What kind of error it is, and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def _grey_bgr(rgb: tuple[float, float, float]) -> tuple[float, float, float]:
    """RGB in 0..1 to BGR in 0..255."""
    red, green, blue = (255 * value for value in rgb)
    return blue, green, red
