"""Twin of :func:`refinedet.ops.mine`."""

import math
from typing import Any

import torch
from torch import Tensor

from refinedet.ops.mine import mine as face
from refinedet.ops.reference import portable
from refinedet.ops.reference.twin import twin_of


@twin_of(face)
def mine(given: Any) -> Tensor:
    """Plain-PyTorch twin of :func:`refinedet.ops.mine`; sorts the eligible anchors of each image."""
    hardness = _background_hardness(given.losses) if given.losses.dim() == 3 else given.losses.float()
    eligible = (given.labels == 0) & (given.ious.float() < given.negative_iou) & ~hardness.isnan()
    if given.objectness is not None:
        eligible &= given.objectness.float() >= given.objectness_threshold
    mask = torch.zeros_like(eligible)
    for b, positives in enumerate((given.labels > 0).sum(dim=1).tolist()):
        candidates = eligible[b].nonzero().squeeze(1)
        order = hardness[b, candidates].argsort(descending=True, stable=True)
        wanted = min(given.negative_ratio * positives, len(candidates)) if positives else 0  # the ratio may be infinity
        mask[b, candidates[order[: math.floor(wanted)]]] = True
    return mask


def _background_hardness(logits: Tensor) -> Tensor:
    """-max(p0, FLT_MIN): orders anchors as the background loss -ln(max(p0, FLT_MIN)) does, without a logarithm."""
    return -portable.softmax(logits.float())[..., 0].clamp(min=torch.finfo(torch.float32).tiny)
