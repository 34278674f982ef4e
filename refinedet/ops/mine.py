"""Hard-negative mining (spec section 7.3)."""

from typing import Any

import torch
from torch import Tensor

from refinedet.ops import extension
from refinedet.ops.call import call
from refinedet.presets import OFFICIAL


def mine(
    losses: Tensor,
    labels: Tensor,
    ious: Tensor,
    objectness: Tensor | None = None,
    *,
    negative_iou: float = OFFICIAL.negative_iou,
    negative_ratio: float = OFFICIAL.negative_ratio,
    objectness_threshold: float = OFFICIAL.objectness_threshold,
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
        InputError: shapes that do not fit, labels that are not int64, a negative ``negative_iou`` or
            ``negative_ratio``, or a threshold that is NaN.
    """
    mask: Tensor = call("mine", losses, labels, ious, objectness, negative_iou, negative_ratio, objectness_threshold)
    return mask


@extension.register_fake("mine")
def _(_losses: Tensor, labels: Tensor, *_others: Any) -> Tensor:
    return labels.new_empty(labels.shape, dtype=torch.bool)
