"""``ops.vote`` beside the loop that users have, and beside ``ensemble_boxes``.

The package has no box voting. Its `non_maximum_weighted` is the nearest thing: the same tops with the same scores, but
a box joins the top that it overlaps most, and weighs score * IoU. So tops and scores are compared, and the boxes of
tops that stay alone. (`weighted_boxes_fusion` moves its clusters while it fills them: other tops.)
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from problems import crowd, image_of
from torch import Tensor
from torchvision.ops import box_iou

from refinedet import ops

IOU, FLOOR = 0.45, 0.05


def problem(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """One image of 20 classes around 40 objects, in pixels of 500."""
    boxes, scores, labels = crowd(count)
    return image_of(boxes * 500, scores, labels)


def vote_in_class(found: np.ndarray, soft: bool) -> np.ndarray:
    """Voted rows [*,5] of rows [N,5], boxes and scores, of one class, column by column, as one finds it in the scripts
    that test with many scales."""
    rest = found[found[:, 4].argsort(kind="stable")[::-1]]
    voted = np.zeros((0, 5), np.float32)
    while len(rest) > 0:
        areas = (rest[:, 2] - rest[:, 0] + 1) * (rest[:, 3] - rest[:, 1] + 1)
        x1, y1 = np.maximum(rest[0, 0], rest[:, 0]), np.maximum(rest[0, 1], rest[:, 1])
        x2, y2 = np.minimum(rest[0, 2], rest[:, 2]), np.minimum(rest[0, 3], rest[:, 3])
        shared = np.maximum(0.0, x2 - x1 + 1) * np.maximum(0.0, y2 - y1 + 1)
        iou = shared / (areas[0] + areas - shared)
        joins = np.where(iou >= IOU)[0]
        cluster, rest = rest[joins], np.delete(rest, joins, 0)
        if len(joins) == 1:
            voted = np.vstack([voted, cluster])
            continue
        mean = np.zeros((1, 5), np.float32)
        mean[0, :4] = (cluster[:, :4] * np.tile(cluster[:, 4:], (1, 4))).sum(axis=0) / cluster[:, 4].sum()
        mean[0, 4] = cluster[:, 4].max()
        if soft:
            cluster[:, 4] *= 1 - iou[joins]
            voted = np.vstack([voted, cluster[cluster[:, 4] >= FLOOR]])
        voted = np.vstack([voted, mean])
    return voted


def vote_in_loop(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, soft: bool) -> np.ndarray:
    """[*,6] boxes, scores, labels, best first: one class after the other, one top after the other."""
    found = []
    for label in np.unique(labels):
        rows = np.concatenate([boxes, scores[:, None]], axis=1)[labels == label]
        voted = vote_in_class(rows, soft)
        found.append(np.concatenate([voted, np.full((len(voted), 1), label, np.float32)], axis=1))
    rows = np.concatenate(found)
    return rows[rows[:, 4].argsort(kind="stable")[::-1]]


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("count", [1000, 10_000])
def test_loop(count: int, soft: bool, compare: Callable[..., None]) -> None:
    inputs = problem(count)
    arrays = [tensor[0].numpy() for tensor in inputs]
    ours = ops.vote(*inputs, soft=soft, official=True)
    peer = torch.from_numpy(vote_in_loop(*arrays, soft))
    assert ours.counts.tolist() == [len(peer)]
    torch.testing.assert_close(ours.scores[0, : len(peer)], peer[:, 4], rtol=1e-4, atol=1e-6)
    order, peer_order = (
        torch.from_numpy(np.lexsort((boxes[:, 0], labels, scores.round(decimals=4))))
        for boxes, scores, labels in (
            (ours.boxes[0, : len(peer)], ours.scores[0, : len(peer)], ours.labels[0, : len(peer)]),
            (peer[:, :4], peer[:, 4], peer[:, 5]),
        )
    )
    torch.testing.assert_close(ours.boxes[0, order], peer[peer_order, :4], rtol=1e-4, atol=1e-3)
    at_least, rounds = (50, 10) if count == 1000 else (25, 3)
    loop = partial(vote_in_loop, *arrays, soft)
    compare(lambda: ops.vote(*inputs, soft=soft, official=True), loop, at_least, rounds)


def test_ensemble_boxes(compare: Callable[..., None]) -> None:
    from ensemble_boxes import non_maximum_weighted

    boxes, scores, labels = problem(1000)
    boxes = (boxes / 1000 + 0.25).clamp(0, 1)  # it takes no others, and none without area
    arrays = [[tensor[0].numpy()] for tensor in (boxes, scores, labels)]

    def peer() -> tuple[np.ndarray, ...]:
        return non_maximum_weighted(*arrays, iou_thr=IOU)

    ours = ops.vote(boxes, scores, labels)
    peer_boxes, peer_scores, peer_labels = map(torch.from_numpy, peer())
    count = len(peer_scores)
    assert ours.counts.tolist() == [count]
    assert torch.equal(ours.scores[0, :count], peer_scores)
    assert torch.equal(ours.labels[0, :count], peer_labels.long())
    meets = (box_iou(boxes[0], boxes[0]) > IOU) & (labels[0, :, None] == labels[0])
    alone = (meets.sum(dim=1) == 1)[ours.indices[0, :count]]
    assert alone.sum() > 300
    torch.testing.assert_close(ours.boxes[0, :count][alone], peer_boxes[alone], rtol=1e-6, atol=0)
    compare(lambda: ops.vote(boxes, scores, labels), peer, 10, rounds=10)
