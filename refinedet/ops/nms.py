"""Greedy non-maximum suppression of one set of boxes, or per class."""

import torch
from torch import Tensor

from refinedet.ops import extension
from refinedet.ops.call import call


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
    return call("nms", boxes, scores, None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms` within each class: boxes of different ``labels`` ([N] int64, any values) never meet.

    Nothing is done to the coordinates, so no precision is lost however many classes there are. The kept indices of all
    classes come in one list, by score descending, equal scores by index ascending.
    """
    return call("nms", boxes, scores, labels, iou_threshold)


@extension.register_fake("nms")
def _(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)


def nms_reference(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Plain-PyTorch twin of :func:`nms`."""
    boxes, scores = boxes.float(), scores.float()
    usable = (boxes.isfinite().all(dim=1) & ~scores.isnan()).nonzero().squeeze(1)
    order = usable[scores[usable].argsort(descending=True, stable=True)]
    kept = []
    while len(order) > 0:
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[~_overlaps(boxes[best], boxes[order], iou_threshold)]
    return torch.stack(kept) if kept else order


def batched_nms_reference(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Plain-PyTorch twin of :func:`batched_nms`."""
    kept = [torch.empty(0, dtype=torch.int64, device=boxes.device)]
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        kept.append(members[nms_reference(boxes[members], scores[members], iou_threshold)])
    indices = torch.cat(kept).sort().values
    return indices[scores[indices].argsort(descending=True, stable=True)]


def _overlaps(box: Tensor, boxes: Tensor, iou_threshold: float) -> Tensor:
    sides = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
    intersection = sides.clamp(min=0).prod(dim=1)
    return intersection > iou_threshold * (_area(box[None]) + _area(boxes) - intersection)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
