"""What RefineDet asks of a backbone."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from refinedet.models.layers import NormLayer
from refinedet.preprocessing import Preprocessing

Features = tuple[Tensor, ...]
"""Four feature maps, at strides 8, 16, 32 and 64."""


class Backbone(nn.Module, ABC):
    """Image to four feature maps, of exactly H/8, H/16, H/32 and H/64 rows (columns alike).

    ``channels``: widths of the four maps. ``norm``: what follows the convolutions that RefineDet adds (None: nothing,
    they have biases). ``head_bottleneck``: whether the official variant has a bottleneck before each head.
    ``memory_format``: that of the whole network's weights; oneDNN's channels-last convolutions are the faster ones.
    """

    channels: tuple[int, int, int, int]
    preprocessing: Preprocessing = Preprocessing()
    norm: NormLayer | None = None
    head_bottleneck: bool = False
    memory_format: torch.memory_format = torch.channels_last

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Features of preprocessed images [B,3,H,W] (``preprocessing``); H and W are multiples of 64."""
