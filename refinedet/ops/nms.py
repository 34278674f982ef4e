"""Greedy non-maximum suppression of one set of boxes, or per class."""

import torch
from torch import Tensor

from refinedet.ops import extension
from refinedet.ops.call import call
from refinedet.ops.checks import Checks


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better kept box overlaps.

    Args:
        boxes: [N,4] corners x1, y1, x2, y2, any unit. An inverted box has area 0: it overlaps nothing and is kept.
        scores: [N]. A box with a NaN score or a coordinate that is not finite is dropped.
        iou_threshold: a box goes when intersection > iou_threshold * union with a kept one; above 1 nothing goes.

    Returns:
        [K] int64 by score descending, equal scores by index ascending.

    Inputs of float16, bfloat16 and float64 are converted to float32.

    Raises:
        InputError: shapes that do not fit, integer boxes, or a negative or NaN ``iou_threshold``.
    """
    kept: Tensor = call("nms", boxes, scores, None, iou_threshold)
    return kept


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms` within each class: boxes of different ``labels`` ([N] int64, any values) never meet.

    Nothing is done to the coordinates, so no precision is lost however many classes there are. The kept indices of all
    classes come in one list, by score descending, equal scores by index ascending.
    """
    kept: Tensor = call("nms", boxes, scores, labels, iou_threshold)
    return kept


@extension.register_fake("nms")
def _(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float) -> Tensor:
    checks = Checks("nms")
    checks.same_device(("boxes", boxes), ("scores", scores), optional=("labels", labels))
    checks.shape("boxes", boxes, (None, 4))
    num_boxes = boxes.shape[0]
    checks.shape("scores", scores, (num_boxes,))
    if labels is not None:
        checks.shape("labels", labels, (num_boxes,))
    checks.at_least(0, iou_threshold=iou_threshold)
    limited = "the number of boxes", num_boxes
    checks.limits(boxes, cpu=[(*limited, 2**32 - 1)], cuda=[(*limited, 2**31 - 1)])
    checks.floats(("boxes", boxes), ("scores", scores))
    checks.int64(("labels", labels))
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)
