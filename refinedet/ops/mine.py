"""Hard-negative mining (spec section 7.3)."""

import math

import torch
from torch import Tensor

from refinedet.ops import extension, portable
from refinedet.ops.call import call


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
    """Select the hard negatives of each image (spec section 7.3).

    An anchor is eligible if it is unmatched (label 0), its best IoU is below ``negative_iou`` and its objectness at
    least ``objectness_threshold``. In an image with P positive labels, the floor(``negative_ratio`` * P) eligible
    anchors of largest background loss are selected, or all of them if there are fewer; ties: lowest anchor.

    Args:
        losses: [B,N] background loss of each anchor, or [B,N,C] logits with class 0 = background. Logits stand for the
            loss -ln(max(p0, FLT_MIN)) of their softmax; only those of eligible anchors are looked at.
        labels: [B,N] int64; 0 = unmatched, positive = matched, negative = neither (never selected, not counted).
        ious: [B,N] best IoU with the ground truth.
        objectness: [B,N] probability of an object, or None for no such condition.
        negative_iou: see above; exclusive.
        negative_ratio: negatives per positive, at least 0.
        objectness_threshold: 1 - theta of the paper; inclusive.

    Returns:
        [B,N] bool, True = selected negative.

    A NaN loss, NaN logits or a NaN objectness is never selected. Inputs of float16, bfloat16 and float64 are converted
    to float32.

    Raises:
        InputError: shapes that do not fit, labels that are not int64, or a negative or NaN ``negative_ratio``.
    """
    return call(
        "mine",
        losses,
        labels,
        ious,
        objectness,
        negative_iou,
        negative_ratio,
        objectness_threshold,
    )


@extension.register_fake("mine")
def _(
    losses: Tensor,
    labels: Tensor,
    ious: Tensor,
    objectness: Tensor | None,
    negative_iou: float,
    negative_ratio: float,
    objectness_threshold: float,
) -> Tensor:
    return labels.new_empty(labels.shape, dtype=torch.bool)


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
    return -portable.softmax(logits.float())[..., 0].clamp(min=torch.finfo(torch.float32).tiny)
