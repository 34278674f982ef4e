"""SqueezeNet 1.1 (Iandola et al., arXiv 1602.07360): the light backbone that trains on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinedet.models.backbones.base import Backbone, Features
from refinedet.models.layers import ConvBlock, L2Norm, caffe_xavier_
from refinedet.preprocessing import Preprocessing


class Fire(nn.Module):
    """1x1 squeeze, then 1x1 and 3x3 expansions side by side, each with ReLU."""

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x), inplace=True)
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1), inplace=True)


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


class SqueezeNet(Backbone):
    """SqueezeNet 1.1 up to fire9, taps at fire5 (stride 8) and fire9 (stride 16), and two new stages.

    Submodules of ``features`` have torchvision's numbers. The first convolution is padded by 1, unlike the original,
    so that 320 pixels become 160 and, with the ceil-mode pools, every map is exactly H/stride; inner values are the
    original's. The taps pass an L2Norm as VGG-16's do (scales 10 and 8), for they have no batch normalisation.
    """

    channels = (256, 512, 512, 256)
    preprocessing = Preprocessing(mean=(103.939, 116.779, 123.68))
    norm = nn.BatchNorm2d

    STRIDE_8, STRIDE_16 = 8, 13  # ends of the two parts of ``features``

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            _pool(),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            _pool(),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            _pool(),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        self.norm8 = L2Norm(256, 10.0)
        self.norm16 = L2Norm(512, 8.0)
        self.extra32 = nn.Sequential(
            ConvBlock(512, 256, 1, norm=self.norm), ConvBlock(256, 512, 3, stride=2, padding=1, norm=self.norm)
        )
        self.extra64 = nn.Sequential(
            ConvBlock(512, 128, 1, norm=self.norm), ConvBlock(128, 256, 3, stride=2, padding=1, norm=self.norm)
        )
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                caffe_xavier_(module)

    def forward(self, images: Tensor) -> Features:
        c8 = c16 = images
        for number, layer in enumerate(self.features, 1):
            c16 = layer(c16)
            if number == self.STRIDE_8:
                c8 = c16
        c32 = self.extra32(c16)
        return self.norm8(c8), self.norm16(c16), c32, self.extra64(c32)
