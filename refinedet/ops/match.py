"""Anchors to ground truth: greedy bipartite, then per-prediction matching (spec section 7.2)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from refinedet.boxes import VARIANCES, box_iou, encode, to_corners
from refinedet.ops import extension
from refinedet.ops.call import call

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
    """Match anchors to the ground truth of their image (spec section 7.2).

    First greedy and bipartite: of all pairs of a free anchor and a free ground truth the one of largest IoU is matched,
    until no pair is left, so two ground truths with the same best anchor get two anchors (ties: lowest anchor, then
    earliest ground truth). Then each anchor still free takes its best ground truth if their IoU is at least
    ``iou_threshold`` (ties: earliest). Memory is O(B*N + M): no matrix of IoUs is built.

    Args:
        anchors: [N,4], or [B,N,4] for anchors that differ between images; cx, cy, w, h.
        gt_boxes: [M,4] corners in the unit of ``anchors``; image b owns rows ``gt_offsets[b]:gt_offsets[b + 1]``.
        gt_labels: [M] int64, 1 or more.
        gt_offsets: [B+1] int64, ascending from 0 to M.
        iou_threshold: IoU from which an anchor is matched in the second step.
        variances: scales of the encoded targets (spec section 6).

    A pair of IoU at or below 1e-6 does not overlap: its IoU is 0. So is that of a box which is inverted, without area
    or not finite. Inputs of float16, bfloat16 and float64 are converted to float32. Not differentiable: targets are
    constants of the losses.

    Raises:
        InputError: shapes that do not fit, labels or offsets that are not int64, or offsets that do not ascend from 0
            to M.
    """
    outputs = call(
        "match",
        anchors,
        gt_boxes,
        gt_labels,
        gt_offsets,
        iou_threshold,
        tuple(variances),
    )
    return Match(*outputs)


@extension.register_fake("match")
def _(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    gt_offsets: Tensor,
    iou_threshold: float,
    variances: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    size = (gt_offsets.shape[0] - 1, anchors.shape[-2])
    return (
        anchors.new_empty(size, dtype=torch.int64),
        anchors.new_empty((*size, 4), dtype=torch.float32),
        anchors.new_empty(size, dtype=torch.int64),
        anchors.new_empty(size, dtype=torch.float32),
    )


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
    boxes, anchors = gt_boxes.float(), anchors.float()
    if anchors.dim() == 2:
        anchors = anchors.expand(batch, -1, 4)
    labels = torch.zeros(anchors.shape[:2], dtype=torch.int64, device=anchors.device)
    indices = torch.full_like(labels, -1)
    ious = torch.zeros(anchors.shape[:2], device=anchors.device)
    targets = torch.zeros(anchors.shape, device=anchors.device)
    for b, (first, last) in enumerate(pairwise(offsets)):
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
