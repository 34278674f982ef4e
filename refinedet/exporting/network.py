"""The network as it is exported: from pixels to its outputs, in float32 at both ends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refinedet.models import RefineDet
from refinedet.models.folded import fold
from refinedet.preprocessing import Preprocessing


class PixelNetwork(nn.Module):
    """``forward``: pixels, float32 [B,3,H,W] in BGR order, 0..255, to the outputs that the network has, float32
    [B,N,*]: ``arm_loc, arm_conf, odm_loc, odm_conf``, or the last two of a single-step network.

    It is made of ``network``, in float32 and eval mode, by `fold`: mean, deviation and order of the channels are
    inside. Between its ends it computes in ``dtype``.
    """

    def __init__(self, network: RefineDet, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = fold(network, preprocessing).to(dtype)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        raw = self.network(pixels)
        return tuple(output.float() for output in raw if output is not None)
