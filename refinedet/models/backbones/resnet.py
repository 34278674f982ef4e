"""ResNet-101 as in Caffe (spec section 3): stride in the 1x1 convolutions, and a new block res6 for stride 64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from refinedet.models.backbones.base import Backbone, Features
from refinedet.models.layers import Bottleneck, CaffeBatchNorm2d, ConvBlock


def _numbered(stage: int, blocks: int) -> list[str]:
    return [f"res{stage}a"] + [f"res{stage}b{index}" for index in range(1, blocks)]


STAGES = (  # block names, middle and output width, stride of the first block
    (["res2a", "res2b", "res2c"], 64, 256, 1),
    (_numbered(3, 4), 128, 512, 2),
    (_numbered(4, 23), 256, 1024, 2),
    (["res5a", "res5b", "res5c"], 512, 2048, 2),
    (["res6"], 128, 512, 2),
)


class ResNet101(Backbone):
    """ResNet-101; blocks have the names of the Caffe layers, without the branch."""

    channels = (512, 1024, 2048, 512)
    norm = CaffeBatchNorm2d
    head_bottleneck = True
    # No slower here, and PyTorch sums batch statistics in float64 only in this format (float32 in channels-last).
    memory_format = torch.contiguous_format

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBlock(3, 64, 7, stride=2, padding=3, norm=self.norm)
        in_channels = 64
        for names, mid, out, stride in STAGES:
            for index, name in enumerate(names):
                first = index == 0
                block = Bottleneck(in_channels, mid, out, self.norm, stride=stride if first else 1, projection=first)
                self.add_module(name, block)
                in_channels = out

    def forward(self, images: Tensor) -> Features:
        # Caffe's pool1: windows start at pixel 0 and the last one is cut, where torchvision pads by 1.
        x = F.max_pool2d(self.conv1(images), 3, stride=2, ceil_mode=True)
        ends = []
        for names, *_ in STAGES:
            for name in names:
                x = getattr(self, name)(x)
            ends.append(x)
        return tuple(ends[1:])
