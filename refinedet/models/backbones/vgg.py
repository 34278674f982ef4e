"""VGG-16 reduced (spec section 2): fc6 and fc7 as convolutions, and two layers for stride 64."""

from torch import Tensor, nn

from refinedet.models.backbones.base import Backbone, Features
from refinedet.models.layers import L2Norm, caffe_xavier_, conv_relu, relu_pool

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width and convolutions of conv1 .. conv5
TAPPED = (4, 5)  # blocks whose output is a feature map, too


class VGG16(Backbone):
    """VGG-16 reduced; submodules have the names of the Caffe layers."""

    channels = (512, 512, 1024, 512)

    def __init__(self) -> None:
        super().__init__()
        in_channels = 3
        for block, (width, depth) in enumerate(BLOCKS, start=1):
            for index in range(1, depth + 1):
                self.add_module(f"conv{block}_{index}", nn.Conv2d(in_channels, width, 3, padding=1))
                in_channels = width
        self.conv4_3_norm = L2Norm(512, 10.0)
        self.conv5_3_norm = L2Norm(512, 8.0)
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=3, dilation=3)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.conv6_1 = nn.Conv2d(1024, 256, 1)
        self.conv6_2 = nn.Conv2d(256, 512, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                caffe_xavier_(module)

    def forward(self, images: Tensor) -> Features:
        x = images
        taps = []
        for block, (_, depth) in enumerate(BLOCKS, start=1):
            for index in range(1, depth):
                x = self._conv(f"conv{block}_{index}", x)
            tapped = block in TAPPED
            if tapped:
                x = self._conv(f"conv{block}_{depth}", x)
                taps.append(x)
            else:  # the ReLU comes with the pooling
                x = getattr(self, f"conv{block}_{depth}")(x)
            x = relu_pool(x, rectified=tapped)
        fc7 = self._conv("fc7", self._conv("fc6", x))
        conv6_2 = self._conv("conv6_2", self._conv("conv6_1", fc7))
        return self.conv4_3_norm(taps[0]), self.conv5_3_norm(taps[1]), fc7, conv6_2

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return conv_relu(getattr(self, name), x)


def conv_names() -> list[str]:
    """conv1_1 .. conv5_3, in order."""
    return [f"conv{block}_{index}" for block, (_, depth) in enumerate(BLOCKS, 1) for index in range(1, depth + 1)]
