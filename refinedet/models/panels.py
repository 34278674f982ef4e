"""How the convolutions of csrc/network, for inference on the CPU, read their weights."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from refinedet.ops import extension

PANEL = 16  # output channels that lie together


def available() -> bool:
    """Whether the processor has the instructions (AVX2 and FMA)."""
    extension.require()
    return cast(bool, torch.ops.refinedet.has_convolutions())


def in_panels(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights [...,D,C] as [...,P,C,PANEL], biases [D] (None = zeros) as [P * PANEL]: the last panel ends in zeros."""
    out_channels = weight.shape[-2]
    padding = -out_channels % PANEL
    if bias is None:
        bias = weight.new_zeros(out_channels)
    rows = F.pad(weight, (0, 0, 0, padding)).unflatten(-2, (-1, PANEL))
    return rows.transpose(-1, -2).contiguous(), F.pad(bias, (0, padding))
