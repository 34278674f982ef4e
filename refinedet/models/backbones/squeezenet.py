"""SqueezeNet 1.1 (Iandola et al., arXiv 1602.07360): the light backbone that trains on a CPU."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinedet.errors import CheckpointError
from refinedet.models.backbones.base import Backbone, Features, load_checked, read_state_dict
from refinedet.models.layers import ConvBlock, L2Norm, caffe_xavier_
from refinedet.models.pretrained import fold_input
from refinedet.preprocessing import Preprocessing

_GREY_DEVIATION = 60.0  # of photographs, in grey levels: 1 in torchvision's units
# A trained classifier's scores differ between an image and plain grey by a few units (DeepScale's: 4.3), and by many
# times that when the weights are for values 58 times smaller (the same weights times 58: 150).
_LARGEST_RESPONSE = 20.0


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
        c8 = self.features[: self.STRIDE_8](images)
        c16 = self.features[self.STRIDE_8 :](c8)
        c32 = self.extra32(c16)
        return self.norm8(c8), self.norm16(c16), c32, self.extra64(c32)

    @torch.no_grad()
    def load_pretrained(self, path: str | Path, weights_input: str = "torchvision") -> None:
        """Load a file with torchvision's names; the new stages keep their initialisation.

        The classifier is not needed, but where the file has one it tells which input the weights are for: of files
        with the same names, torchvision's reads RGB in 0..1 and DeepScale's, the original, BGR in 0..255.
        """
        state = read_state_dict(path)
        load_checked(self, state, path, new=("norm", "extra"), ignored=("classifier.",))
        first = self.features[0]
        kernel, shift = fold_input(first.weight, weights_input, self.preprocessing)
        if "classifier.1.weight" in state:
            self._check_input(state["classifier.1.weight"], weights_input, path)
        first.weight.copy_(kernel)
        first.bias.add_(shift)

    def _check_input(self, classifier: Tensor, weights_input: str, path: str | Path) -> None:
        """Raise CheckpointError unless the file's weights, loaded as they are, were trained for ``weights_input``."""
        noise = torch.randn(1, 3, 7, 7, generator=torch.Generator().manual_seed(0))
        image = F.interpolate(_GREY_DEVIATION * noise, size=(224, 224), mode="bilinear")
        features = self.features(torch.cat([image, torch.zeros_like(image)]))
        scores = F.conv2d(features, classifier).mean(dim=(2, 3))
        response = (scores[0] - scores[1]).std()
        found = "torchvision" if response > _LARGEST_RESPONSE else "caffe"
        if found != weights_input:
            raise CheckpointError(
                f"{path}: its weights are for {found}'s input, not {weights_input}'s (an image in 0..255 moves the "
                f"classifier's scores by {response:.1f}); set model.weights_input = {found!r} (--weights-input {found})"
            )
