"""Transfer connection blocks (spec section 4, paper section 3.1): features of the ARM turned into those of the ODM."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from refinedet.models.backbones.base import Features
from refinedet.models.layers import ConvBlock, NormLayer


class TransferConnection(nn.Module):
    """The four blocks, P6 first: two convolutions, the coarser level upsampled twofold and added, one convolution.

    Index k of every list is the level of stride 8 * 2^k, so ``lateral1[0]`` is Caffe's TL3_1 and ``output[0]`` its P3;
    ``up[k]`` brings level k + 1 to level k.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, norm: NormLayer | None) -> None:
        super().__init__()
        top = len(in_channels) - 1
        self.lateral1 = nn.ModuleList(ConvBlock(width, channels, 3, padding=1, norm=norm) for width in in_channels)
        self.lateral2 = nn.ModuleList(
            ConvBlock(channels, channels, 3, padding=1, norm=norm, relu=level == top) for level in range(top + 1)
        )
        self.up = nn.ModuleList(
            ConvBlock(channels, channels, 2, stride=2, norm=norm, relu=False, transposed=True) for _ in range(top)
        )
        self.output = nn.ModuleList(ConvBlock(channels, channels, 3, padding=1, norm=norm) for _ in in_channels)

    def forward(self, features: Features) -> Features:
        """Backbone features at strides 8 to 64 to as many maps of ``channels`` channels and the same sizes."""
        outputs: list[Tensor] = []
        for level in reversed(range(len(self.output))):
            x = self.lateral2[level](self.lateral1[level](features[level]))
            if outputs:
                x = F.relu(x + self.up[level](outputs[-1]))
            outputs.append(self.output[level](x))
        return tuple(reversed(outputs))
