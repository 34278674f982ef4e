"""Twin of :func:`refinedet.ops.vote`."""

from typing import Any

import torch
from torch import Tensor

from refinedet.ops.detect import Detected
from refinedet.ops.ranked import ranked
from refinedet.ops.reference import portable
from refinedet.ops.reference.twin import twin_of
from refinedet.ops.vote import vote as face


@twin_of(face)
def vote(given: Any) -> Detected:
    """Plain-PyTorch twin of :func:`refinedet.ops.vote`; looks at one cluster after the other."""
    boxes, scores, labels = given.boxes.float(), given.scores.float(), given.labels
    usable = (labels > 0) & boxes.isfinite().all(dim=-1) & ~scores.isnan()
    voted_boxes, voted_scores = torch.zeros_like(boxes), torch.full_like(scores, torch.nan)
    for b in range(len(boxes)):
        for label in labels[b, usable[b]].unique():
            rest = (usable[b] & (labels[b] == label)).nonzero().squeeze(1)
            rest = rest[scores[b, rest].argsort(descending=True, stable=True)]
            while len(rest) > 0:
                iou = portable.iou(boxes[b, rest[0]], boxes[b, rest], given.official)
                joins = iou >= given.iou_threshold
                joins[0] = True
                cluster, rest = rest[joins], rest[~joins]
                if given.soft:
                    decayed = scores[b, cluster] * (1.0 - iou[joins])
                    voted_boxes[b, cluster] = boxes[b, cluster]
                    voted_scores[b, cluster] = torch.where(decayed >= given.score_threshold, decayed, torch.nan)
                voted_boxes[b, cluster[0]] = _mean(boxes[b, cluster], scores[b, cluster])
                voted_scores[b, cluster[0]] = scores[b, cluster[0]]
    return ranked(voted_boxes, voted_scores, labels)


def _mean(boxes: Tensor, scores: Tensor) -> Tensor:
    """[4] mean of boxes, best first, weighted by score; the best one where it or the sum of scores is not finite."""
    if len(boxes) == 1:
        return boxes[0]
    weights = torch.where(scores > 0, scores, 0.0)
    total, *others = torch.cat([weights[:, None] * boxes, weights[:, None]], dim=1)
    for term in others:
        total = total + term
    mean = total[:4] / total[4]
    return mean if mean.isfinite().all() and total[4].isfinite() else boxes[0]
