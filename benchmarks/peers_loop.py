"""The loops that people copy from one repository to the next: one image after the other, one class after the other.

That of `detect` is in PyTorch, as the public ports of SSD and RefineDet have it, those of soft-NMS and of box voting in
NumPy.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refinedet.boxes import decode, to_corners

Rows = NDArray[np.float32]

SOFT_IOU, SIGMA, SOFT_FLOOR = 0.3, 0.5, 0.001  # the defaults of ops.soft_nms
CODES = {"linear": 1, "gaussian": 2}  # as ensemble_boxes numbers them
VOTE_IOU, VOTE_FLOOR = 0.45, 0.05  # those of ops.vote


# --- detect and nms ---------------------------------------------------------------------------------------------------


def detect(
    arm_loc: Tensor, arm_conf: Tensor, odm_loc: Tensor, odm_conf: Tensor, anchors: Tensor
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Boxes, scores, labels and anchor indices of each image. All anchors are decoded, and every class of every image
    is masked, sorted and suppressed by itself."""
    found = []
    for image in range(len(odm_loc)):
        boxes = to_corners(decode(decode(anchors, arm_loc[image]), odm_loc[image]))
        scores = odm_conf[image].softmax(-1)
        scores[arm_conf[image].softmax(-1)[:, 1] < 0.01] = 0
        rows, labels = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
        for label in range(1, scores.shape[1]):
            above = (scores[:, label] > 0.01).nonzero().squeeze(1)
            if len(above) == 0:
                continue
            kept = above[nms(boxes[above], scores[above, label], 0.45, top_k=1000)]
            rows.append(kept)
            labels.append(torch.full_like(kept, label))
        kept, classes = torch.cat(rows), torch.cat(labels)
        best = scores[kept, classes].argsort(descending=True, stable=True)[:500]
        kept, classes = kept[best], classes[best]
        found.append((boxes[kept], scores[kept, classes], classes, kept))
    return found


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, top_k: int | None = None) -> Tensor:
    """Kept rows, best first: the best of the rest against all of the rest, until none is left."""
    order = scores.argsort(descending=True, stable=True)[:top_k]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    kept = []
    while len(order) > 0:
        best, order = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[order, :2])
        high = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        order = order[shared / (areas[best] + areas[order] - shared) <= iou_threshold]
    return torch.stack(kept) if kept else order


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    kept = []
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        kept.append(rows[nms(boxes[rows], scores[rows], iou_threshold)])
    rows = torch.cat(kept)
    return rows[scores[rows].argsort(descending=True, stable=True)]


# --- soft_nms ---------------------------------------------------------------------------------------------------------


def _soft_nms_of_class(found: Rows, code: int) -> tuple[NDArray[np.int64], Rows]:
    """Rows that are left and their scores, of rows [N,5], boxes and scores, of one class. The best of the rest is
    swapped to the front, the rest decays."""
    rows, order = found.copy(), np.arange(len(found))
    areas = (rows[:, 2] - rows[:, 0]) * (rows[:, 3] - rows[:, 1])
    for front in range(len(rows)):
        best = front + np.argmax(rows[front:, 4])
        for array in (rows, order, areas):
            array[[front, best]] = array[[best, front]]
        rest = slice(front + 1, None)
        x1, y1 = np.maximum(rows[front, 0], rows[rest, 0]), np.maximum(rows[front, 1], rows[rest, 1])
        x2, y2 = np.minimum(rows[front, 2], rows[rest, 2]), np.minimum(rows[front, 3], rows[rest, 3])
        shared = np.maximum(0.0, x2 - x1) * np.maximum(0.0, y2 - y1)
        iou = shared / (areas[front] + areas[rest] - shared)
        if code == 1:
            weight = np.ones_like(iou)
            weight[iou > SOFT_IOU] -= iou[iou > SOFT_IOU]
        else:
            weight = np.exp(-(iou * iou) / SIGMA)
        rows[rest, 4] *= weight
    left = rows[:, 4] > SOFT_FLOOR
    return order[left], rows[left, 4]


def soft_nms(boxes: Rows, scores: Rows, labels: NDArray[np.int64], code: int) -> tuple[Tensor, Tensor]:
    """Rows of one image and their scores, best first."""
    rows, final = [], []
    for label in np.unique(labels):
        members = np.where(labels == label)[0]
        left, decayed = _soft_nms_of_class(np.concatenate([boxes[members], scores[members, None]], axis=1), code)
        rows.append(members[left])
        final.append(decayed)
    scores = np.concatenate(final)
    order = np.argsort(-scores, kind="stable")
    return torch.from_numpy(np.concatenate(rows)[order]), torch.from_numpy(scores[order])


# --- vote -------------------------------------------------------------------------------------------------------------


def _vote_in_class(found: Rows, soft: bool, last: int) -> Rows:
    """Voted rows [*,5] of rows [N,5], boxes and scores, of one class, column by column, as one finds it in the scripts
    that test with many scales. ``last`` is 1 where a box reaches to the end of its last pixel, else 0."""
    rest = found[found[:, 4].argsort(kind="stable")[::-1]]
    voted = np.zeros((0, 5), np.float32)
    while len(rest) > 0:
        areas = (rest[:, 2] - rest[:, 0] + last) * (rest[:, 3] - rest[:, 1] + last)
        x1, y1 = np.maximum(rest[0, 0], rest[:, 0]), np.maximum(rest[0, 1], rest[:, 1])
        x2, y2 = np.minimum(rest[0, 2], rest[:, 2]), np.minimum(rest[0, 3], rest[:, 3])
        shared = np.maximum(0.0, x2 - x1 + last) * np.maximum(0.0, y2 - y1 + last)
        iou = shared / (areas[0] + areas - shared)
        joins = np.where(iou >= VOTE_IOU)[0]
        cluster, rest = rest[joins], np.delete(rest, joins, 0)
        if len(joins) == 1:
            voted = np.vstack([voted, cluster])
            continue
        mean = np.zeros((1, 5), np.float32)
        mean[0, :4] = (cluster[:, :4] * np.tile(cluster[:, 4:], (1, 4))).sum(axis=0) / cluster[:, 4].sum()
        mean[0, 4] = cluster[:, 4].max()
        if soft:
            cluster[:, 4] *= 1 - iou[joins]
            voted = np.vstack([voted, cluster[cluster[:, 4] >= VOTE_FLOOR]])
        voted = np.vstack([voted, mean])
    return voted


def vote(boxes: Rows, scores: Rows, labels: NDArray[np.int64], soft: bool, official: bool) -> Rows:
    """[*,6] boxes, scores, labels of one image, best first."""
    found = []
    for label in np.unique(labels):
        rows = np.concatenate([boxes, scores[:, None]], axis=1)[labels == label]
        voted = _vote_in_class(rows, soft, int(official))
        found.append(np.concatenate([voted, np.full((len(voted), 1), label, np.float32)], axis=1))
    rows = np.concatenate(found)
    return rows[rows[:, 4].argsort(kind="stable")[::-1]]
