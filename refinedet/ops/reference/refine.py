"""Twin of :func:`refinedet.ops.refine`."""

from typing import Any

import torch
from torch import Tensor

from refinedet.ops.reference import portable
from refinedet.ops.reference.twin import twin_of
from refinedet.ops.refine import refine as face


@twin_of(face)
def refine(given: Any) -> Tensor:
    """Plain-PyTorch twin of :func:`refinedet.ops.refine`."""
    offsets = given.offsets.float()
    anchors, scaled = given.anchors.float(), offsets * torch.tensor(given.variances, device=offsets.device)
    centers = scaled[..., :2] * anchors[..., 2:] + anchors[..., :2]
    sizes = portable.exp(scaled[..., 2:]) * anchors[..., 2:]
    return torch.cat([centers, sizes], dim=-1)
