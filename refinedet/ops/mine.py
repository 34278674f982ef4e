"""Hard-negative mining (spec section 7.3)."""

import torch
from torch import Tensor

from refinedet.ops import extension
from refinedet.ops.call import call
from refinedet.ops.checks import MAX_BATCH_ON_CUDA, Checks
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
def _(
    losses: Tensor,
    labels: Tensor,
    ious: Tensor,
    objectness: Tensor | None,
    negative_iou: float,
    negative_ratio: float,
    objectness_threshold: float,
) -> Tensor:
    checks = Checks("mine")
    checks.same_device(("losses", losses), ("labels", labels), ("ious", ious), optional=("objectness", objectness))
    checks.shape("labels", labels, (None, None))
    batch, num_anchors = labels.shape
    num_classes = 0
    if losses.dim() == 3:
        checks.shape("losses", losses, (batch, num_anchors, None))
        num_classes = losses.shape[2]
        checks.require(num_classes > 0, "losses are logits of 0 classes, expected at least 1")
    else:
        checks.shape("losses", losses, (batch, num_anchors))
    checks.shape("ious", ious, (batch, num_anchors))
    if objectness is not None:
        checks.shape("objectness", objectness, (batch, num_anchors))
    checks.at_least(0, negative_iou=negative_iou, negative_ratio=negative_ratio)
    checks.number(objectness_threshold=objectness_threshold)
    checks.limits(
        losses,
        cuda=[
            ("the batch size", batch, MAX_BATCH_ON_CUDA),
            ("the number of anchors", num_anchors, 2**31 - 1),
            ("the number of classes", num_classes, 4095),
        ],
    )
    checks.floats(("losses", losses))
    checks.int64(("labels", labels))
    checks.floats(("ious", ious), ("objectness", objectness))
    return labels.new_empty(labels.shape, dtype=torch.bool)
