"""Twin of :func:`refinedet.ops.match`."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from refinedet.boxes import box_iou, encode, to_corners
from refinedet.ops.checks import Checks
from refinedet.ops.match import Match
from refinedet.ops.match import match as face
from refinedet.ops.reference.twin import twin_of

MIN_IOU = 1e-6  # spec section 7.2: a pair at or below it does not overlap at all


@twin_of(face)
def match(given: Any) -> Match:
    """Plain-PyTorch twin of :func:`refinedet.ops.match`; builds the N x M matrix of IoUs of each image."""
    offsets = given.gt_offsets.tolist()
    for i, label in enumerate(given.gt_labels.tolist()):
        Checks("match").require(label >= 1, f"gt_labels[{i}] is {label}, expected 1 or more: 0 is the background")
    batch = len(offsets) - 1
    boxes, anchors = given.gt_boxes.float(), given.anchors.float()
    if anchors.dim() == 2:
        anchors = anchors.expand(batch, -1, 4)
    labels = torch.zeros(anchors.shape[:2], dtype=torch.int64, device=anchors.device)
    indices = torch.full_like(labels, -1)
    ious = torch.zeros(anchors.shape[:2], device=anchors.device)
    targets = torch.zeros(anchors.shape, device=anchors.device)
    for b, (first, last) in enumerate(pairwise(offsets)):
        if first == last:
            continue
        indices[b], ious[b] = _match_image(anchors[b], boxes[first:last], given.iou_threshold)
        matched = indices[b] >= 0
        rows = first + indices[b, matched]
        labels[b, matched] = given.gt_labels[rows]
        targets[b, matched] = encode(boxes[rows], anchors[b, matched], given.variances)
    return Match(labels, targets, indices, ious)


def _match_image(anchors: Tensor, boxes: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    finite = anchors.isfinite().all(1)[:, None] & boxes.isfinite().all(1)
    iou = box_iou(to_corners(anchors), boxes)
    iou = torch.where(finite & (iou > MIN_IOU), iou, 0.0)
    best, indices = iou.max(dim=1)
    indices[(best < iou_threshold) | (best == 0)] = -1
    # The flat argmax is the first maximum: lowest anchor, then earliest ground truth.
    for _ in range(min(iou.shape)):
        anchor, box = divmod(int(iou.argmax()), len(boxes))
        if iou[anchor, box] == 0:
            break
        indices[anchor] = box
        iou[anchor, :] = 0
        iou[:, box] = 0
    return indices, best
