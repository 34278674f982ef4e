"""From the raw outputs of the network to detections: the whole inference path after the last convolution."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from refinedet.boxes import VARIANCES, to_corners
from refinedet.ops import extension, portable
from refinedet.ops.call import call
from refinedet.ops.nms import nms_reference
from refinedet.ops.refine import refine_reference


class Detected(NamedTuple):
    """Detections of B images, K rows each; of image b the first ``counts[b]`` rows are real.

    Rows come by score descending, equal scores by anchor ascending, then by class ascending.
    """

    boxes: Tensor  # [B,K,4] float32 corners x1, y1, x2, y2 in units of the image side, not clipped; padding 0
    scores: Tensor  # [B,K] float32 probability of the class; padding 0
    labels: Tensor  # [B,K] int64 class, >= 1; padding 0
    indices: Tensor  # [B,K] int64 anchor the detection comes from; padding -1
    counts: Tensor  # [B] int64


Levels: TypeAlias = Tensor | Sequence[Tensor]
"""An output of the network for all anchors, or a tensor for each level."""


def detect(
    arm_loc: Levels | None,
    arm_conf: Levels | None,
    odm_loc: Levels,
    odm_conf: Levels,
    anchors: Tensor,
    *,
    objectness_threshold: float = 0.01,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    top_k: int = 1000,
    keep_top_k: int = 500,
    variances: Sequence[float] = VARIANCES,
) -> Detected:
    """Filter, decode and suppress, fused (spec section 8).

    An anchor whose P(object) is below ``objectness_threshold`` is dropped before any other work. The others are moved
    twice (ARM, then ODM offsets). Per class, boxes scoring above ``score_threshold`` compete: the best ``top_k`` go
    through non-maximum suppression. The best ``keep_top_k`` of all classes of the image are returned.

    Each output of the network is one tensor [B,N,*], or a sequence of one to four tensors [B,n,*], the levels: outputs
    of consecutive anchors, as many of each level in all four. Levels are read where they lie, so nothing has to be
    concatenated before: give ``conv(x).permute(0, 2, 3, 1).reshape(B, -1, 4)``, a view if the convolution puts out
    channels-last. What is not contiguous is copied once.

    Args:
        arm_loc: [B,N,4] offsets of the refinement stage; None to decode the plain anchors (no cascade).
        arm_conf: [B,N,2] logits (background, object); None to keep every anchor.
        odm_loc: [B,N,4] offsets of the detection stage.
        odm_conf: [B,N,C] logits, class 0 = background.
        anchors: [N,4] cx, cy, w, h in units of the image side.
        objectness_threshold: 1 - theta of the paper.
        score_threshold: a class score must be above it.
        iou_threshold: a box goes when intersection > iou_threshold * union with a kept box of its class.
        top_k: boxes per class that enter suppression.
        keep_top_k: detections per image, and the number K of rows returned.
        variances: scales of the offsets, both stages.

    Inputs of float16, bfloat16 and float64 are converted to float32. A NaN score or objectness and a box with a
    coordinate that is not finite are dropped.

    Raises:
        InputError: shapes that do not fit together, levels that are more than four or differ in number, integers
            instead of floating-point numbers, ``top_k`` or ``keep_top_k`` below 1, or a negative or NaN
            ``iou_threshold``.
    """
    outputs = call(
        "detect",
        *(_to_levels(output) for output in (arm_loc, arm_conf, odm_loc, odm_conf)),
        anchors,
        objectness_threshold,
        score_threshold,
        iou_threshold,
        top_k,
        keep_top_k,
        tuple(variances),
    )
    return Detected(*outputs)


def _to_levels(output: Levels | None) -> Sequence[Tensor]:
    if output is None:
        return []
    return [output] if isinstance(output, Tensor) else output


@extension.register_fake("detect")
def _(
    arm_loc: Sequence[Tensor],
    arm_conf: Sequence[Tensor],
    odm_loc: Sequence[Tensor],
    odm_conf: Sequence[Tensor],
    anchors: Tensor,
    objectness_threshold: float,
    score_threshold: float,
    iou_threshold: float,
    top_k: int,
    keep_top_k: int,
    variances: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch = odm_loc[0].shape[0]
    return (
        anchors.new_empty((batch, keep_top_k, 4), dtype=torch.float32),
        anchors.new_empty((batch, keep_top_k), dtype=torch.float32),
        anchors.new_empty((batch, keep_top_k), dtype=torch.int64),
        anchors.new_empty((batch, keep_top_k), dtype=torch.int64),
        anchors.new_empty((batch,), dtype=torch.int64),
    )


def detect_reference(
    arm_loc: Levels | None,
    arm_conf: Levels | None,
    odm_loc: Levels,
    odm_conf: Levels,
    anchors: Tensor,
    *,
    objectness_threshold: float = 0.01,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    top_k: int = 1000,
    keep_top_k: int = 500,
    variances: Sequence[float] = VARIANCES,
) -> Detected:
    """Plain-PyTorch twin of :func:`detect`."""
    arm_loc, arm_conf, odm_loc, odm_conf = (_concatenate(output) for output in (arm_loc, arm_conf, odm_loc, odm_conf))
    refined = anchors if arm_loc is None else refine_reference(anchors, arm_loc, variances)
    boxes = to_corners(refine_reference(refined, odm_loc, variances))
    usable = boxes.isfinite().all(dim=-1)
    if arm_conf is not None:
        usable &= portable.objectness(arm_conf.float()) >= objectness_threshold
    scores = portable.softmax(odm_conf.float())

    detected = Detected(
        boxes.new_zeros(len(boxes), keep_top_k, 4),
        boxes.new_zeros(len(boxes), keep_top_k),
        torch.zeros(len(boxes), keep_top_k, dtype=torch.int64, device=boxes.device),
        torch.full((len(boxes), keep_top_k), -1, device=boxes.device),
        torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device),
    )
    for b in range(len(boxes)):
        candidates = (scores[b] > score_threshold) & usable[b, :, None]
        indices, labels = _suppress(boxes[b], scores[b], candidates, iou_threshold, top_k)
        best = _order(scores[b, indices, labels], indices, labels)[:keep_top_k]
        indices, labels = indices[best], labels[best]
        detected.boxes[b, : len(best)] = boxes[b, indices]
        detected.scores[b, : len(best)] = scores[b, indices, labels]
        detected.labels[b, : len(best)] = labels
        detected.indices[b, : len(best)] = indices
        detected.counts[b] = len(best)
    return detected


def _concatenate(output: Levels | None) -> Tensor | None:
    return output if output is None or isinstance(output, Tensor) else torch.cat(tuple(output), dim=1)


def _suppress(
    boxes: Tensor, scores: Tensor, candidates: Tensor, iou_threshold: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """Anchor indices and labels of what survives in each foreground class of one image."""
    empty = torch.empty(0, dtype=torch.int64, device=boxes.device)
    indices, labels = [empty], [empty]
    for label in range(1, scores.shape[1]):
        members = candidates[:, label].nonzero().squeeze(1)
        members = members[scores[members, label].argsort(descending=True, stable=True)[:top_k]]
        members = members[nms_reference(boxes[members], scores[members, label], iou_threshold)]
        indices.append(members)
        labels.append(torch.full_like(members, label))
    return torch.cat(indices), torch.cat(labels)


def _order(scores: Tensor, indices: Tensor, labels: Tensor) -> Tensor:
    """Permutation to score descending, then anchor ascending, then class ascending."""
    order = labels.argsort(stable=True)
    order = order[indices[order].argsort(stable=True)]
    return order[scores[order].argsort(descending=True, stable=True)]
