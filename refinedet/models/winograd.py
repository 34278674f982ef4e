"""3x3 convolutions with a quarter of the products (csrc/network/winograd.h), for inference on the CPU."""

from typing import cast

import torch
from torch import Tensor

from refinedet.models.panels import available, in_panels

TILE = 4  # rows and columns of output that are computed at once
CHANNELS = 16  # input channels come in multiples of it
LEAST_TILES = 12  # else reading the weights, four times as many as of the direct way, takes longer

# G of Lavin and Gray, arXiv 1509.09308, for F(4x4, 3x3)
_KERNEL = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float32,
    device="cpu",
)


def suits(x: Tensor) -> bool:
    """Whether a convolution of such an input [B,C,H,W] is computed here, and faster than directly."""
    batch, channels, height, width = x.shape
    tiles = batch * -(-height // TILE) * -(-width // TILE)
    return channels % CHANNELS == 0 and tiles >= LEAST_TILES and available()


def transform(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights [D,C,3,3] and biases [D] of a convolution as `convolve` takes them."""
    kernels = torch.kron(_KERNEL, _KERNEL) @ weight.reshape(-1, 9).T
    return in_panels(kernels.view(36, *weight.shape[:2]), bias)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_channels: int,
    *,
    relu: bool = False,
    other: Tensor | None = None,
    beside: Tensor | None = None,
) -> Tensor:
    """The convolution of x [B,C,H,W] with padding 1, plus ``other`` [B,D,H,W], then ReLU; behind the channels of
    ``beside`` [B,E,H,W], where given: [B,E+D,H,W]. All are channels-last."""
    maps = (None if given is None else given.permute(0, 2, 3, 1) for given in (other, beside))
    y = torch.ops.refinedet.winograd(x.permute(0, 2, 3, 1), weight, bias, *maps, out_channels, relu)
    return cast(Tensor, y).permute(0, 3, 1, 2)
