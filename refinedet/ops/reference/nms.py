"""Twins of :func:`refinedet.ops.nms` and :func:`refinedet.ops.batched_nms`."""

from typing import Any

import torch
from torch import Tensor

from refinedet.ops.nms import batched_nms as batched_face
from refinedet.ops.nms import nms as face
from refinedet.ops.reference.twin import twin_of


@twin_of(face)
def nms(given: Any) -> Tensor:
    """Plain-PyTorch twin of :func:`refinedet.ops.nms`."""
    boxes, scores = given.boxes.float(), given.scores.float()
    usable = (boxes.isfinite().all(dim=1) & ~scores.isnan()).nonzero().squeeze(1)
    order = usable[scores[usable].argsort(descending=True, stable=True)]
    kept = []
    while len(order) > 0:
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[~_overlaps(boxes[best], boxes[order], given.iou_threshold)]
    return torch.stack(kept) if kept else order


@twin_of(batched_face)
def batched_nms(given: Any) -> Tensor:
    """Plain-PyTorch twin of :func:`refinedet.ops.batched_nms`."""
    kept = [torch.empty(0, dtype=torch.int64, device=given.boxes.device)]
    for label in given.labels.unique():
        members = (given.labels == label).nonzero().squeeze(1)
        kept.append(members[nms(given.boxes[members], given.scores[members], given.iou_threshold)])
    indices = torch.cat(kept).sort().values
    return indices[given.scores[indices].argsort(descending=True, stable=True)]


def _overlaps(box: Tensor, boxes: Tensor, iou_threshold: float) -> Tensor:
    sides = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
    intersection = sides.clamp(min=0).prod(dim=1)
    return intersection > iou_threshold * (_area(box[None]) + _area(boxes) - intersection)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
