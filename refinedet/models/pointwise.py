"""1x1 convolutions (csrc/network/pointwise.h), for inference on the CPU."""

from typing import cast

import torch
from torch import Tensor

from refinedet.models.panels import in_panels


def transform(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights [D,C,1,1] and biases [D] of a convolution as `convolve` takes them."""
    return in_panels(weight.flatten(1), bias)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor, out_channels: int, *, relu: bool = False, other: Tensor | None = None
) -> Tensor:
    """The convolution of x [B,C,H,W], plus ``other`` [B,D,H,W], then ReLU: [B,D,H,W]. All are channels-last."""
    summand = None if other is None else other.permute(0, 2, 3, 1)
    y = torch.ops.refinedet.pointwise(x.permute(0, 2, 3, 1), weight, bias, summand, out_channels, relu)
    return cast(Tensor, y).permute(0, 3, 1, 2)
