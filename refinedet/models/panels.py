"""Convolutions of the compiled core (csrc/network), for inference on the CPU: 1x1, 3x3 and deconvolutions of 2x2.

Their weights lie by output channels in panels, the last padded by zeros.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from refinedet.ops import extension

PANEL = 16  # output channels that lie together
TILE = 4  # rows and columns of output that Winograd's way computes at once
CHANNELS = 16  # its input channels come in multiples of it
LEAST_TILES = 12  # else reading its weights, four times as many as of the direct way, takes longer
MOST_CHANNELS = 512  # of input, of a pointwise convolution: a panel of the weights stays in the first cache

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


def suits_winograd(x: Tensor) -> bool:
    """Whether a 3x3 convolution of such an input [B,C,H,W] is computed here, and faster than directly."""
    batch, channels, height, width = x.shape
    tiles = batch * -(-height // TILE) * -(-width // TILE)
    return channels % CHANNELS == 0 and tiles >= LEAST_TILES and available()


def suits_pointwise(x: Tensor) -> bool:
    """Whether a 1x1 convolution or a deconvolution of 2x2 and stride 2 is computed here."""
    return x.shape[1] <= MOST_CHANNELS and available()


def available() -> bool:
    """Whether the processor has the instructions (AVX2 and FMA)."""
    extension.require()
    return cast(bool, torch.ops.refinedet.has_convolutions())


def winograd_weights(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights [D,C,3,3] and biases [D] of a convolution as `winograd` takes them: [36,P,C,16] and [16 P]."""
    kernels = torch.kron(_KERNEL, _KERNEL) @ weight.reshape(-1, 9).T
    return _in_panels(kernels.view(36, *weight.shape[:2])), _padded(_biases(weight, bias, len(weight)))


def pointwise_weights(weight: Tensor, bias: Tensor | None, *, transposed: bool = False) -> tuple[Tensor, Tensor]:
    """Those of a 1x1 convolution [D,C,1,1], or of a deconvolution [C,D,2,2], as `pointwise` takes them: of one part,
    or of two, the even and the odd rows of the output."""
    if not transposed:
        return _in_panels(weight[None, :, :, 0, 0]), _padded(_biases(weight, bias, len(weight)))[None]
    biases = _biases(weight, bias, weight.shape[1])
    return _in_panels(weight.permute(2, 3, 1, 0).flatten(1, 2)), _padded(biases.repeat(2)).expand(2, -1).contiguous()


def winograd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_channels: int,
    *,
    relu: bool = False,
    other: Tensor | None = None,
    whole: Tensor | None = None,
) -> Tensor:
    """The 3x3 convolution of x [B,C,H,W] with padding 1, plus ``other`` [B,D,H,W], then ReLU; or without a sum, into
    the last channels of ``whole`` [B,E+D,H,W], which is returned. All are channels-last."""
    rows = x.permute(0, 2, 3, 1)
    if whole is not None:
        torch.ops.refinedet.winograd_into(rows, weight, bias, whole.permute(0, 2, 3, 1), out_channels, relu)
        return whole
    more = None if other is None else other.permute(0, 2, 3, 1)
    return cast(Tensor, torch.ops.refinedet.winograd(rows, weight, bias, more, out_channels, relu)).permute(0, 3, 1, 2)


def pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_channels: int,
    *,
    relu: bool = False,
    other: Tensor | None = None,
    room: int = 0,
) -> Tensor:
    """The 1x1 convolution or the deconvolution, as the weights are, of x [B,C,H,W], plus ``other``, then ReLU. Behind
    its channels come ``room`` more, without values. All are channels-last."""
    more = None if other is None else other.permute(0, 2, 3, 1)
    y = torch.ops.refinedet.pointwise(x.permute(0, 2, 3, 1), weight, bias, more, out_channels, room, relu)
    return cast(Tensor, y).permute(0, 3, 1, 2)


def _biases(weight: Tensor, bias: Tensor | None, count: int) -> Tensor:
    return weight.new_zeros(count) if bias is None else bias


def _padded(biases: Tensor) -> Tensor:
    return F.pad(biases, (0, -len(biases) % PANEL))


def _in_panels(weight: Tensor) -> Tensor:
    """[n,D,C] to [n,P,C,16]."""
    count, out_channels, in_channels = weight.shape
    padded = F.pad(weight, (0, 0, 0, -out_channels % PANEL))
    return padded.view(count, -1, PANEL, in_channels).transpose(2, 3).contiguous()
