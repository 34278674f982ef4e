"""Hard-negative mining (spec section 7.3)."""

import math

import torch
from torch import Tensor


def mine(
    losses: Tensor,
    labels: Tensor,
    ious: Tensor,
    objectness: Tensor | None = None,
    *,
    negative_iou: float = 0.5,
    negative_ratio: float = 3.0,
    objectness_threshold: float = 0.01,
) -> Tensor:
    return mine_reference(
        losses,
        labels,
        ious,
        objectness,
        negative_iou=negative_iou,
        negative_ratio=negative_ratio,
        objectness_threshold=objectness_threshold,
    )


def mine_reference(
    losses: Tensor,
    labels: Tensor,
    ious: Tensor,
    objectness: Tensor | None = None,
    *,
    negative_iou: float = 0.5,
    negative_ratio: float = 3.0,
    objectness_threshold: float = 0.01,
) -> Tensor:
    """Plain-PyTorch twin of :func:`mine`; sorts the eligible anchors of each image."""
    hardness = _background_hardness(losses) if losses.dim() == 3 else losses.float()
    eligible = (labels == 0) & (ious.float() < negative_iou) & ~hardness.isnan()
    if objectness is not None:
        eligible &= objectness.float() >= objectness_threshold
    mask = torch.zeros_like(eligible)
    for b, positives in enumerate((labels > 0).sum(dim=1).tolist()):
        candidates = eligible[b].nonzero().squeeze(1)
        order = hardness[b, candidates].argsort(descending=True, stable=True)
        mask[b, candidates[order[: math.floor(negative_ratio * positives)]]] = True
    return mask


def _background_hardness(logits: Tensor) -> Tensor:
    """-max(p0, FLT_MIN): orders anchors as the background loss -ln(max(p0, FLT_MIN)) does, without a logarithm."""
    return -logits.float().softmax(dim=-1)[..., 0].clamp(min=torch.finfo(torch.float32).tiny)
