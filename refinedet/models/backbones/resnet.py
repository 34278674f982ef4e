"""ResNet-101 as in Caffe (spec section 3): stride in the 1x1 convolutions, and a new block res6 for stride 64."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from refinedet.models.backbones.base import Backbone, Features, StateDict, load_checked, read_state_dict, require
from refinedet.models.layers import Bottleneck, CaffeBatchNorm2d, ConvBlock
from refinedet.models.pretrained import fold_input
from refinedet.preprocessing import Preprocessing


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

    def load_pretrained(self, path: str | Path, weights_input: str = "torchvision") -> None:
        """Load a ResNet-101 file with torchvision's names (:func:`rename_torchvision`); res6 keeps its initialisation.

        Torchvision's network has the stride in the 3x3 convolutions and pads pool1, so with its weights this one is
        an approximation that training has to settle.
        """
        state = rename_torchvision(read_state_dict(path), self.preprocessing, path, weights_input)
        load_checked(self, state, path, new=("res6.",), ignored=("fc.",))


def rename_torchvision(
    state: StateDict, preprocessing: Preprocessing, path: str | Path, weights_input: str = "torchvision"
) -> StateDict:
    """Give torchvision's ResNet-101 weights, read from ``path``, our names; conv1 takes over the file's input."""
    require(state, ("conv1.weight", "bn1.running_mean", "layer3.22.conv3.weight"), path, "torchvision's ResNet-101")
    prefixes = {"conv1.": "conv1.conv.", "bn1.": "conv1.norm."}
    for layer, (names, *_) in enumerate(STAGES[:-1], start=1):
        for index, name in enumerate(names):
            old = f"layer{layer}.{index}."
            for number, branch in enumerate(("branch2a", "branch2b", "branch2c"), start=1):
                prefixes[f"{old}conv{number}."] = f"{name}.{branch}.conv."
                prefixes[f"{old}bn{number}."] = f"{name}.{branch}.norm."
            prefixes |= {f"{old}downsample.0.": f"{name}.branch1.conv.", f"{old}downsample.1.": f"{name}.branch1.norm."}
    renamed = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        renamed[prefixes.get(f"{module}.", f"{module}.") + kind] = value
    renamed["conv1.conv.weight"], shift = fold_input(renamed["conv1.conv.weight"], weights_input, preprocessing)
    renamed["conv1.norm.running_mean"] = renamed["conv1.norm.running_mean"] - shift
    return renamed
