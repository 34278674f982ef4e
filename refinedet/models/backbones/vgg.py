"""VGG-16 reduced (spec section 2): fc6 and fc7 as convolutions, and two layers for stride 64."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinedet.errors import CheckpointError
from refinedet.models.backbones.base import Backbone, Features, StateDict, load_checked, read_state_dict, require
from refinedet.models.layers import L2Norm, caffe_xavier_
from refinedet.models.pretrained import fold_input
from refinedet.preprocessing import Preprocessing

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width and convolutions of conv1 .. conv5
TORCHVISION_CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # positions in torchvision's ``features``
FC_TAPS = (0, 3, 6)  # of fc6's 7x7 kernel: dilation 3
FC_CHANNEL_STEP = 4  # 1024 of fc6's and fc7's 4096 channels


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
        ends = []
        for block, (_, depth) in enumerate(BLOCKS, start=1):
            for index in range(1, depth + 1):
                x = self._conv(f"conv{block}_{index}", x)
            ends.append(x)
            x = F.max_pool2d(x, 2, ceil_mode=True)
        fc7 = self._conv("fc7", self._conv("fc6", x))
        conv6_2 = self._conv("conv6_2", self._conv("conv6_1", fc7))
        return self.conv4_3_norm(ends[3]), self.conv5_3_norm(ends[4]), fc7, conv6_2

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return F.relu(getattr(self, name)(x), inplace=True)

    def load_pretrained(self, path: str | Path, weights_input: str = "torchvision") -> None:
        """Load a VGG-16 file with torchvision's names (:func:`reduce_torchvision`); the L2Norms, conv6_1 and conv6_2
        stay."""
        state = reduce_torchvision(read_state_dict(path), self.preprocessing, path, weights_input)
        load_checked(self, state, path, new=("conv4_3_norm", "conv5_3_norm", "conv6_"))


def conv_names() -> list[str]:
    """conv1_1 .. conv5_3, in order."""
    return [f"conv{block}_{index}" for block, (_, depth) in enumerate(BLOCKS, 1) for index in range(1, depth + 1)]


def reduce_torchvision(
    state: StateDict, preprocessing: Preprocessing, path: str | Path, weights_input: str = "torchvision"
) -> StateDict:
    """Turn torchvision's VGG-16 weights, read from ``path``, into those of VGG-16 reduced.

    fc6 and fc7 are subsampled: taps 0, 3, 6 of fc6's 7x7 kernel in each direction and every 4th of the 4096 channels
    (spec section 2; which channels the official file kept is not published). conv1_1 takes over the file's input
    (:func:`fold_input`).
    """
    pairs = {f"features.{position}": name for position, name in zip(TORCHVISION_CONVS, conv_names(), strict=True)}
    pairs |= {"classifier.0": "fc6", "classifier.3": "fc7"}
    shapes = {"classifier.0.weight": (4096, 512 * 7 * 7), "classifier.3.weight": (4096, 4096)}
    names = {f"{old}.{kind}": f"{new}.{kind}" for old, new in pairs.items() for kind in ("weight", "bias")}
    require(state, names, path, "torchvision's VGG-16")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise CheckpointError(
                f"{path}: {name} is {list(state[name].shape)} instead of {list(shape)}; use torchvision's VGG-16 file"
            )
    reduced = {new: state[old] for old, new in names.items()}
    reduced["conv1_1.weight"], shift = fold_input(reduced["conv1_1.weight"], weights_input, preprocessing)
    reduced["conv1_1.bias"] = reduced["conv1_1.bias"] + shift
    step, taps = FC_CHANNEL_STEP, torch.tensor(FC_TAPS)
    reduced["fc6.weight"] = reduced["fc6.weight"].view(4096, 512, 7, 7)[::step, :, taps][..., taps]
    reduced["fc7.weight"] = reduced["fc7.weight"][::step, ::step, None, None]
    for name in ("fc6.bias", "fc7.bias"):
        reduced[name] = reduced[name][::step]
    return reduced
