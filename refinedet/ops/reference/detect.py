"""Twin of :func:`refinedet.ops.detect`."""

from typing import Any

import torch
from torch import Tensor

from refinedet.boxes import to_corners
from refinedet.ops.detect import Detected, Levels
from refinedet.ops.detect import detect as face
from refinedet.ops.reference import portable
from refinedet.ops.reference.nms import nms
from refinedet.ops.reference.refine import refine
from refinedet.ops.reference.twin import twin_of


@twin_of(face)
def detect(given: Any) -> Detected:
    """Plain-PyTorch twin of :func:`refinedet.ops.detect`; looks at one class of one image after the other."""
    arm_loc = None if given.arm_loc is None else _concatenate(given.arm_loc)
    arm_conf = None if given.arm_conf is None else _concatenate(given.arm_conf)
    odm_loc, odm_conf = _concatenate(given.odm_loc), _concatenate(given.odm_conf)
    refined = given.anchors if arm_loc is None else refine(given.anchors, arm_loc, given.variances)
    boxes = to_corners(refine(refined, odm_loc, given.variances))
    usable = boxes.isfinite().all(dim=-1)
    if arm_conf is not None:
        usable &= portable.objectness(arm_conf.float()) >= given.objectness_threshold
    scores = portable.softmax(odm_conf.float())

    rows = given.keep_top_k
    detected = Detected(
        boxes.new_zeros(len(boxes), rows, 4),
        boxes.new_zeros(len(boxes), rows),
        torch.zeros(len(boxes), rows, dtype=torch.int64, device=boxes.device),
        torch.full((len(boxes), rows), -1, device=boxes.device),
        torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device),
    )
    for b in range(len(boxes)):
        candidates = (scores[b] > given.score_threshold) & usable[b, :, None]
        indices, labels = _suppress(boxes[b], scores[b], candidates, given.iou_threshold, given.top_k)
        best = _order(scores[b, indices, labels], indices, labels)[:rows]
        indices, labels = indices[best], labels[best]
        detected.boxes[b, : len(best)] = boxes[b, indices]
        detected.scores[b, : len(best)] = scores[b, indices, labels]
        detected.labels[b, : len(best)] = labels
        detected.indices[b, : len(best)] = indices
        detected.counts[b] = len(best)
    return detected


def _concatenate(output: Levels) -> Tensor:
    return output if isinstance(output, Tensor) else torch.cat(tuple(output), dim=1)


def _suppress(
    boxes: Tensor, scores: Tensor, candidates: Tensor, iou_threshold: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """Anchor indices and labels of what survives in each foreground class of one image."""
    empty = torch.empty(0, dtype=torch.int64, device=boxes.device)
    indices, labels = [empty], [empty]
    for label in range(1, scores.shape[1]):
        members = candidates[:, label].nonzero().squeeze(1)
        members = members[scores[members, label].argsort(descending=True, stable=True)[:top_k]]
        members = members[nms(boxes[members], scores[members, label], iou_threshold)]
        indices.append(members)
        labels.append(torch.full_like(members, label))
    return torch.cat(indices), torch.cat(labels)


def _order(scores: Tensor, indices: Tensor, labels: Tensor) -> Tensor:
    """Permutation to score descending, then anchor ascending, then class ascending."""
    order = labels.argsort(stable=True)
    order = order[indices[order].argsort(stable=True)]
    return order[scores[order].argsort(descending=True, stable=True)]
