"""Anchors to ground truth: greedy bipartite, then per-prediction matching (spec section 7.2)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from refinedet.ops import extension
from refinedet.ops.call import call
from refinedet.ops.checks import MAX_BATCH_ON_CUDA, Checks
from refinedet.presets import OFFICIAL


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
    iou_threshold: float = OFFICIAL.match_iou,
    variances: Sequence[float] = OFFICIAL.variances,
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

    On a GPU nobody looks at the values of labels and offsets, which would mean to wait for it. Whatever they are, the
    call ends and touches nothing outside the tensors; images that own the same rows get any of their matches.

    A pair of IoU at or below 1e-6 does not overlap: its IoU is 0. So is that of a box which is inverted, without area
    or not finite. Inputs of float16, bfloat16 and float64 are converted to float32. Not differentiable: targets are
    constants of the losses.

    Raises:
        InputError: shapes or devices that do not fit, labels or offsets that are not int64, a negative or NaN
            ``iou_threshold``, variances that are not four numbers above 0; on the CPU also a label below 1 and offsets
            that do not ascend from 0 to M.
    """
    return Match(*call("match", anchors, gt_boxes, gt_labels, gt_offsets, iou_threshold, tuple(variances)))


@extension.register_fake("match")
def _(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    gt_offsets: Tensor,
    iou_threshold: float,
    variances: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    checks = Checks("match")
    checks.same_device(
        ("anchors", anchors), ("gt_boxes", gt_boxes), ("gt_labels", gt_labels), ("gt_offsets", gt_offsets)
    )
    checks.shape("gt_offsets", gt_offsets, (None,))
    entries = gt_offsets.shape[0]
    checks.require(entries >= 1, "gt_offsets is empty, expected one entry more than images")
    batch = entries - 1
    checks.shape("anchors", anchors, (None, 4) if anchors.dim() == 2 else (batch, None, 4))
    checks.shape("gt_boxes", gt_boxes, (None, 4))
    num_truths = gt_boxes.shape[0]
    checks.shape("gt_labels", gt_labels, (num_truths,))
    checks.at_least(0, iou_threshold=iou_threshold)
    checks.variances(variances)
    limited = "the number of ground truths", num_truths, 2**31 - 1
    size = batch, anchors.shape[-2]
    checks.limits(
        anchors,
        cpu=[limited],
        cuda=[("the batch size", batch, MAX_BATCH_ON_CUDA), ("the number of anchors", size[1], 2**31 - 1), limited],
    )
    checks.floats(("anchors", anchors), ("gt_boxes", gt_boxes))
    checks.int64(("gt_labels", gt_labels), ("gt_offsets", gt_offsets))
    return (
        anchors.new_empty(size, dtype=torch.int64),
        anchors.new_empty((*size, 4), dtype=torch.float32),
        anchors.new_empty(size, dtype=torch.int64),
        anchors.new_empty(size, dtype=torch.float32),
    )
