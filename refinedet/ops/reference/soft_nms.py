"""Twin of :func:`refinedet.ops.soft_nms`."""

from typing import Any

import torch
from torch import Tensor

from refinedet.ops.detect import Detected
from refinedet.ops.ranked import ranked
from refinedet.ops.reference import portable
from refinedet.ops.reference.twin import twin_of
from refinedet.ops.soft_nms import check_method
from refinedet.ops.soft_nms import soft_nms as face


@twin_of(face)
def soft_nms(given: Any) -> Detected:
    """Plain-PyTorch twin of :func:`refinedet.ops.soft_nms`; looks at one class of one image after the other."""
    check_method(given.method)
    boxes, scores = given.boxes.float(), given.scores.float()
    usable = (given.labels > 0) & boxes.isfinite().all(dim=-1) & ~scores.isnan()
    if not given.official:
        usable &= scores >= given.score_threshold
    decayed = torch.full_like(scores, torch.nan)
    for b in range(len(boxes)):
        for label in given.labels[b, usable[b]].unique():
            members = (usable[b] & (given.labels[b] == label)).nonzero().squeeze(1)
            decayed[b, members] = _decay(boxes[b, members], scores[b, members], given)
    return ranked(given.boxes, decayed, given.labels)


def _decay(boxes: Tensor, scores: Tensor, given: Any) -> Tensor:
    """Scores of one class after all picks; NaN: dropped."""
    decayed, rows = torch.full_like(scores, torch.nan), torch.arange(len(boxes), device=boxes.device)
    while len(rows) > 0:
        best = scores[rows].argmax()  # the first of several
        picked, rows = rows[best], torch.cat([rows[:best], rows[best + 1 :]])
        decayed[picked] = scores[picked]
        iou = portable.iou(boxes[picked], boxes[rows], given.official)
        if given.method == "gaussian":
            weights = portable.exp(-(iou * iou) / torch.tensor(given.sigma, device=iou.device))
        else:
            weights = torch.where(iou > given.iou_threshold, 1.0 - iou, 1.0)
        scores[rows] *= weights
        rows = rows[(scores[rows] >= given.score_threshold) | (iou == 0)]
    return decayed
