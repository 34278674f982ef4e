"""Anchors to ground truth: greedy bipartite, then per-prediction matching (spec section 7.2)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from refinedet.boxes import VARIANCES, box_iou, encode, to_corners

MIN_IOU = 1e-6  # spec section 7.2: a pair at or below it does not overlap at all


class Match(NamedTuple):
    """What each of the N anchors of B images is to learn."""

    labels: Tensor  # [B,N] int64, 0 = background
    targets: Tensor  # [B,N,4] float32 offsets anchor -> matched box, 0 where unmatched
    indices: Tensor  # [B,N] int64 ground truth within the image, -1 = unmatched
    ious: Tensor  # [B,N] float32 best IoU over the ground truth of the image


def match(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    gt_offsets: Tensor,
    iou_threshold: float = 0.5,
    variances: Sequence[float] = VARIANCES,
) -> Match:
    return match_reference(anchors, gt_boxes, gt_labels, gt_offsets, iou_threshold, variances)


def match_reference(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    gt_offsets: Tensor,
    iou_threshold: float = 0.5,
    variances: Sequence[float] = VARIANCES,
) -> Match:
    """Plain-PyTorch twin of :func:`match`; builds the N x M matrix of IoUs of each image."""
    offsets = gt_offsets.tolist()
    batch = len(offsets) - 1
    boxes = gt_boxes.float()
    anchors = anchors.float().expand(batch, -1, 4) if anchors.dim() == 2 else anchors.float()
    labels = torch.zeros(anchors.shape[:2], dtype=torch.int64, device=anchors.device)
    indices = torch.full_like(labels, -1)
    ious = torch.zeros(anchors.shape[:2], device=anchors.device)
    targets = torch.zeros(anchors.shape, device=anchors.device)
    for b, (first, last) in enumerate(zip(offsets, offsets[1:], strict=False)):
        if first == last:
            continue
        indices[b], ious[b] = _match_image(anchors[b], boxes[first:last], iou_threshold)
        matched = indices[b] >= 0
        rows = first + indices[b, matched]
        labels[b, matched] = gt_labels[rows]
        targets[b, matched] = encode(boxes[rows], anchors[b, matched], variances)
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
