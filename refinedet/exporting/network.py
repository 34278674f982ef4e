"""The network as it is exported: from pixels to its outputs, in float32 at both ends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refinedet.models import RefineDet
from refinedet.preprocessing import Preprocessing


class PixelNetwork(nn.Module):
    """``forward``: pixels, float32 [B,3,H,W] in BGR order, 0..255, to the outputs that the network has, float32
    [B,N,*]: ``arm_loc, arm_conf, odm_loc, odm_conf``, or the last two of a single-step network.

    What the network was trained with, mean, deviation and order, is done inside; it computes in its own dtype.
    """

    def __init__(self, network: RefineDet, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)
        self.rgb = preprocessing.order == "rgb"

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        images = (pixels - self.mean) / self.std
        if self.rgb:
            images = images.flip(1)
        raw = self.network(images.to(self.network.dtype))
        return tuple(output.float() for output in raw if output is not None)
