"""Soft non-maximum suppression: boxes that overlap better ones lose score instead of going (spec section 10.2)."""

from typing import Literal

import torch
from torch import Tensor

from refinedet.errors import InputError, show
from refinedet.ops import extension
from refinedet.ops.call import call
from refinedet.ops.checks import MAX_BATCH_ON_CUDA, Checks
from refinedet.ops.detect import Detected
from refinedet.ops.ranked import ranked

METHODS = ("linear", "gaussian")


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    method: Literal["linear", "gaussian"] = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    official: bool = False,
) -> Detected:
    """Decay the scores of boxes that overlap better ones of their class (Bodla et al. 2017; spec section 10.2).

    In each class of each image the box of the highest score is picked, equal scores by row ascending, and what is left
    of the class decays by its IoU with it; then the next one is picked, until none is left.

    Args:
        boxes: [B,N,4] corners x1, y1, x2, y2, any unit.
        scores: [B,N].
        labels: [B,N] int64; boxes of different labels never meet. Rows with a label of 0 or below are padding: what
            `detect` returns, and several of it concatenated along N, goes in as it is.
        method: "linear": score *= 1 - IoU where IoU > ``iou_threshold``; "gaussian": score *= exp(-IoU^2 / sigma).
        iou_threshold: of the linear method alone.
        sigma: of the gaussian method alone; above 0.
        score_threshold: a box goes when its score is below, before the first pick or after a decay.
        official: as the released code has it, for boxes in pixels, clipped to the image: a box reaches to the end of
            its last pixel (sides are x2 - x1 + 1), and the floor is asked only of boxes that a picked one meets. Equal
            scores are still picked by row; the released code picks them as its swaps have left them.

    Returns:
        The rows that are left, with decayed scores: K = N, ``indices`` are the input's rows.

    A row with a NaN score or a coordinate that is not finite is dropped. A box without area overlaps nothing. Inputs of
    float16, bfloat16 and float64 are converted to float32.

    Raises:
        InputError: shapes that do not fit, labels that are not int64, another ``method``, a negative or NaN
            ``iou_threshold``, a ``sigma`` that is not above 0, or a ``score_threshold`` that is NaN.
    """
    check_method(method)
    gaussian = method == "gaussian"
    decayed = call("soft_nms", boxes, scores, labels, gaussian, iou_threshold, sigma, score_threshold, official)
    return ranked(boxes, decayed, labels)


def check_method(method: str) -> None:
    """Raise InputError for what is no method."""
    if method not in METHODS:
        raise InputError(f"refinedet.soft_nms: method is {show(method)}; choose {' or '.join(METHODS)}")


@extension.register_fake("soft_nms")
def _(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    gaussian: bool,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    official: bool,
) -> Tensor:
    checks = Checks("soft_nms")
    checks.same_device(("boxes", boxes), ("scores", scores), ("labels", labels))
    checks.shape("boxes", boxes, (None, None, 4))
    batch, num_boxes, _ = boxes.shape
    checks.shape("scores", scores, (batch, num_boxes))
    checks.shape("labels", labels, (batch, num_boxes))
    checks.at_least(0, iou_threshold=iou_threshold)
    checks.above_0(sigma=sigma)
    checks.number(score_threshold=score_threshold)
    checks.limits(
        boxes,
        cpu=[("the number of boxes", num_boxes, 2**32 - 1)],
        cuda=[("the batch size", batch, MAX_BATCH_ON_CUDA), ("the number of boxes", num_boxes, 2**31 - 1)],
    )
    checks.floats(("boxes", boxes), ("scores", scores))
    checks.int64(("labels", labels))
    return scores.new_empty((batch, num_boxes), dtype=torch.float32)
