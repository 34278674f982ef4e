"""``ops.soft_nms`` beside the loop over classes that users have, and beside ``ensemble_boxes``."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from problems import crowd, image_of
from torch import Tensor

from refinedet import ops

IOU, SIGMA, FLOOR = 0.3, 0.5, 0.001
CODES = {"linear": 1, "gaussian": 2}  # of both peers


def soft_nms_of_class(found: np.ndarray, code: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are left and their scores, of rows [N,5], boxes and scores, of one class: the loop in NumPy that was
    copied from one repository to the next. The best of the rest is swapped to the front, the rest decays."""
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
            weight[iou > IOU] -= iou[iou > IOU]
        else:
            weight = np.exp(-(iou * iou) / SIGMA)
        rows[rest, 4] *= weight
    left = rows[:, 4] > FLOOR
    return order[left], rows[left, 4]


def soft_nms_in_loop(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, code: int) -> tuple[Tensor, Tensor]:
    """Rows and scores, best first."""
    rows, final = [], []
    for label in np.unique(labels):
        members = np.where(labels == label)[0]
        left, decayed = soft_nms_of_class(np.concatenate([boxes[members], scores[members, None]], axis=1), code)
        rows.append(members[left])
        final.append(decayed)
    scores = np.concatenate(final)
    order = np.argsort(-scores, kind="stable")
    return torch.from_numpy(np.concatenate(rows)[order]), torch.from_numpy(scores[order])


def problem(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes within the unit square, each with an area: ``ensemble_boxes`` changes others."""
    boxes, scores, labels = crowd(count)
    return image_of(boxes / 2 + 0.25, scores, labels)


@pytest.mark.parametrize("method", CODES)
@pytest.mark.parametrize("count", [1000, 6375])
def test_loop(count: int, method: str, compare: Callable[..., None]) -> None:
    arguments = problem(count)
    arrays = [tensor[0].numpy() for tensor in arguments]
    ours, (rows, scores) = ops.soft_nms(*arguments, method=method), soft_nms_in_loop(*arrays, CODES[method])
    left = int(ours.counts[0])
    assert ours.indices[0, :left].sort().values.equal(rows.sort().values)
    torch.testing.assert_close(ours.scores[0, :left], scores, rtol=1e-4, atol=1e-6)
    assert (ours.indices[0, :left] == rows).float().mean() > 0.99  # scores that differ by rounding alone change places
    at_least, rounds = (50, 10) if count == 1000 else (25, 2)
    loop = partial(soft_nms_in_loop, *arrays, CODES[method])
    compare(lambda: ops.soft_nms(*arguments, method=method), loop, at_least, rounds)


@pytest.mark.parametrize("method", CODES)
def test_ensemble_boxes(method: str, compare: Callable[..., None]) -> None:
    """Its boxes come class by class in the order of their decayed scores; the scores are those that went in."""
    from ensemble_boxes import soft_nms

    arguments = problem(1000)
    arrays = [[tensor[0].numpy()] for tensor in arguments]
    options = {"method": CODES[method], "iou_thr": IOU, "sigma": SIGMA, "thresh": FLOOR}
    boxes, _, labels = map(torch.from_numpy, soft_nms(*arrays, **options))
    ours = ops.soft_nms(*arguments, method=method)
    assert ours.counts.tolist() == [len(boxes)]
    for label in labels.unique():
        assert torch.equal(ours.boxes[ours.labels == label], boxes[labels == label])
    compare(lambda: ops.soft_nms(*arguments, method=method), lambda: soft_nms(*arrays, **options), 10, rounds=10)
