"""From the raw output of a network to the boxes that count, with limits or without (spec section 8)."""

from __future__ import annotations

import torch
from torch import Tensor

from refinedet import ops
from refinedet.boxes import to_corners
from refinedet.ops import Detected
from refinedet.ops.detect import KEEP_TOP_K_ON_CUDA, TOP_K_ON_CUDA
from refinedet.ops.reference import portable
from refinedet.presets import Preset
from refinedet.protocols import Thresholds
from refinedet.records import LevelOutput, RawOutput

NOTHING_GOES = 2.0  # as an IoU threshold


def select(
    raw: RawOutput | LevelOutput,
    anchors: Tensor,
    preset: Preset,
    thresholds: Thresholds,
    score_threshold: float | None = None,
) -> Detected:
    """Decode and suppress: :func:`refinedet.ops.detect` with the objectness threshold, variances and cascade of
    ``preset``, and ``thresholds``, which may set no limit. ``score_threshold``: in place of theirs, where given.

    Where both limits are set, and within the operator's own on CUDA, it does it, in room for as many rows as may be
    kept. Else, as when each pair of anchor and class may be a row, the rows are selected here: the same ones, bit for
    bit, in room for as many as the image with most has.
    """
    score_threshold = thresholds.score_threshold if score_threshold is None else score_threshold
    arm_loc = raw.arm_loc if preset.cascade else None
    top_k, keep_top_k = thresholds.top_k, thresholds.keep_top_k
    if top_k is None or keep_top_k is None or (anchors.is_cuda and beyond_cuda(top_k, keep_top_k)):
        output = raw.concatenate()
        return _select_unlimited(output, anchors, preset, thresholds, score_threshold)
    return ops.detect(
        arm_loc,
        raw.arm_conf,
        raw.odm_loc,
        raw.odm_conf,
        anchors,
        objectness_threshold=preset.objectness_threshold,
        score_threshold=score_threshold,
        iou_threshold=NOTHING_GOES if thresholds.nms_iou is None else thresholds.nms_iou,
        top_k=top_k,
        keep_top_k=keep_top_k,
        variances=preset.variances,
    )


def beyond_cuda(top_k: int, keep_top_k: int) -> bool:
    """Whether these are more than the operator takes on CUDA."""
    return top_k > TOP_K_ON_CUDA or keep_top_k > KEEP_TOP_K_ON_CUDA


def _select_unlimited(
    raw: RawOutput, anchors: Tensor, preset: Preset, thresholds: Thresholds, score_threshold: float
) -> Detected:
    refined = (
        anchors if raw.arm_loc is None or not preset.cascade else ops.refine(anchors, raw.arm_loc, preset.variances)
    )
    boxes = to_corners(ops.refine(refined, raw.odm_loc, preset.variances))
    usable = boxes.isfinite().all(dim=-1)
    if raw.arm_conf is not None:
        usable &= portable.objectness(raw.arm_conf.float()) >= preset.objectness_threshold
    image, anchor = usable.nonzero(as_tuple=True)
    # Of the anchors that count, few, and not of all: the softmax takes some twenty times the memory of its input.
    probability = portable.softmax(raw.odm_conf[image, anchor].float())[:, 1:]
    row, label = (probability > score_threshold).nonzero(as_tuple=True)
    image, anchor, score, label = image[row], anchor[row], probability[row, label], label + 1
    # The rows come by image, anchor and class, so that stable sorts give the order of the operator.
    order = score.argsort(descending=True, stable=True)
    order = order[image[order].argsort(stable=True)]
    group = image * raw.odm_conf.shape[-1] + label  # one class of one image
    if thresholds.top_k is not None:
        order = order[_ranks(group[order]) < thresholds.top_k]
    if thresholds.nms_iou is not None:
        kept = ops.batched_nms(boxes[image[order], anchor[order]], score[order], group[order], thresholds.nms_iou)
        order = order[kept.sort().values]
    if thresholds.keep_top_k is not None:
        order = order[_ranks(image[order]) < thresholds.keep_top_k]
    image, anchor, score, label = image[order], anchor[order], score[order], label[order]
    return _pack(boxes[image, anchor], score, label, anchor, image, len(boxes))


def _ranks(groups: Tensor) -> Tensor:
    """How many rows of its own group come before each row."""
    order = groups.argsort(stable=True)
    _, group, sizes = groups[order].unique_consecutive(return_inverse=True, return_counts=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[group]
    return ranks


def _pack(boxes: Tensor, scores: Tensor, labels: Tensor, indices: Tensor, image: Tensor, batch: int) -> Detected:
    """Rows of the images one after the other as `Detected`, in room for those of the image with most."""
    counts = image.bincount(minlength=batch)
    shape = batch, int(counts.max()) if batch else 0
    place = image, _ranks(image)
    packed = Detected(
        boxes.new_zeros(*shape, 4), scores.new_zeros(shape), labels.new_zeros(shape), labels.new_full(shape, -1), counts
    )
    for padded, rows in zip(packed, (boxes, scores, labels, indices), strict=False):
        padded[place] = rows
    return packed
