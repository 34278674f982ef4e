"""Building blocks the networks share, with Caffe's initialisation (spec sections 2 to 4)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinedet.models import fused

NormLayer = Callable[[int], nn.Module]
"""Makes the normalisation of a convolution with that many output channels."""


def caffe_xavier_(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Initialise as Caffe's "xavier" filler: weights U(-a, a), a = sqrt(3 / fan_in); bias 0."""
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def conv_relu(conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A convolution and its ReLU."""
    if isinstance(conv, nn.Conv2d) and fused.fusible_convolution(conv, x):
        return fused.conv_relu(conv, x)
    return F.relu(conv(x), inplace=True)


def relu_pool(x: Tensor, *, rectified: bool = False) -> Tensor:
    """ReLU, unless ``x`` has passed one, then the largest of every 2 x 2 pixels, as Caffe cuts them off at the border.

    Without a gradient the ReLU overwrites ``x``.
    """
    if fused.fusible(x):
        return fused.relu_pool(x)
    return F.max_pool2d(x if rectified else F.relu(x, inplace=True), 2, ceil_mode=True)


class L2Norm(nn.Module):
    """Scale every position's channel vector to length 1, then each channel by a learned factor (spec section 2).

    The gradient is the exact one (autograd); the official layer's differs once the factors do (spec 0, row 25a).
    """

    EPS = 1e-10  # inside the root: a zero vector stays zero and its gradient finite

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        if fused.fusible(x) and self.weight.dtype == torch.float32:
            return fused.l2norm(x, self.weight, self.EPS)
        wide = x.float()  # the squares overflow float16
        inverse = (wide.square().sum(dim=1, keepdim=True) + self.EPS).rsqrt()
        return (wide * inverse * self.weight.float().view(1, -1, 1, 1)).to(x.dtype)


class CaffeBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose running statistics are Caffe's (spec section 3).

    Caffe keeps sums that decay by 0.999 and, in ``factor``, the sum of their weights; the statistics are the
    quotients, so they are free of start-up bias. Here ``running_mean`` and ``running_var`` are the quotients
    themselves. The variance entering them is the unbiased one. Before the first update they are 0 and 1 (PyTorch's
    start), where Caffe's variance would be 0.
    """

    DECAY = 0.999
    FULL_HISTORY = 1 / (1 - DECAY)  # the factor after endless training

    running_mean: Tensor
    running_var: Tensor
    factor: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-5)
        self.num_batches_tracked = None  # ``factor`` takes its place
        self.register_buffer("factor", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = F.batch_norm(x, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
        self.factor.mul_(self.DECAY).add_(1)
        weight = self.factor.reciprocal()
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(var, weight)
        return y

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Statistics of a file without ``factor`` count as those of a long training."""
        if f"{prefix}running_mean" in state_dict:
            state_dict.setdefault(f"{prefix}factor", torch.tensor(self.FULL_HISTORY))
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)  # the parent's would ask for that counter


class ConvBlock(nn.Module):
    """Convolution (or 2x2 stride-2 deconvolution), optional normalisation, optional ReLU.

    With a normalisation the convolution has no bias and starts as N(0, 0.01); without, it has one and starts as
    Caffe's xavier (spec sections 2 and 3).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        norm: NormLayer | None = None,
        relu: bool = True,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.conv = kind(
            in_channels, out_channels, kernel, stride=stride, padding=padding, dilation=dilation, bias=norm is None
        )
        self.norm = norm(out_channels) if norm else None
        self.relu = relu
        if norm and not self.conv.weight.is_meta:  # where torch would first import its compiler, for seconds
            nn.init.normal_(self.conv.weight, std=0.01)
        elif not norm:
            caffe_xavier_(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None and self.relu:
            return conv_relu(self.conv, x)
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.relu(x, inplace=True) if self.relu else x


class Bottleneck(nn.Module):
    """ResNet bottleneck, version 1: the stride sits in the 1x1 convolutions (spec section 3).

    ``branch1`` projects the shortcut; without projection the shortcut is the identity.
    """

    def __init__(
        self, in_channels: int, mid_channels: int, out_channels: int, norm: NormLayer, *, stride: int = 1,
        projection: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.branch1 = (
            ConvBlock(in_channels, out_channels, 1, stride=stride, norm=norm, relu=False) if projection else None
        )
        self.branch2a = ConvBlock(in_channels, mid_channels, 1, stride=stride, norm=norm)
        self.branch2b = ConvBlock(mid_channels, mid_channels, 3, padding=1, norm=norm)
        self.branch2c = ConvBlock(mid_channels, out_channels, 1, norm=norm, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.branch1 is None else self.branch1(x)
        return F.relu(shortcut + self.branch2c(self.branch2b(self.branch2a(x))))
