"""OpenCV's ``cv2.dnn.NMSBoxes`` and ``NMSBoxesBatched``: peers of nms and batched_nms.

As run with OpenCV 5.0: boxes are x, y, width, height in float64, and so is the IoU. A score has to be above the
threshold; boxes come by score descending, equal ones by index. NMSBoxesBatched moves the boxes of class k by k times
(largest coordinate + 1), in x and y at once, and suppresses them all together. So a box far enough below 0 meets those
of another class: with largest coordinate 1, one of class 1 at (-2, -2) is dropped for an equal one of class 0 at
(0, 0). Boxes of networks are not clipped. It is compared where no coordinate is -1 or below: there no classes meet.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Callable[[], NDArray[np.int32]]:
    """The call for the arguments of `ops.nms`."""
    given, values = _corner_and_size(boxes), scores.numpy()
    return lambda: np.asarray(cv2.dnn.NMSBoxes(given, values, 0.0, iou_threshold))


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Callable[[], NDArray[np.int32]]:
    """The call for the arguments of `ops.batched_nms`."""
    given, values, classes = _corner_and_size(boxes), scores.numpy(), labels.int().numpy()
    return lambda: np.asarray(cv2.dnn.NMSBoxesBatched(given, values, classes, 0.0, iou_threshold))


def keeps_classes_apart(boxes: Tensor) -> bool:
    """Whether no box of a class can meet one of another after the move."""
    return bool(boxes.min() > -1)


def _corner_and_size(boxes: Tensor) -> NDArray[np.float64]:
    corners = boxes.double()
    return np.concatenate([corners[:, :2].numpy(), (corners[:, 2:] - corners[:, :2]).numpy()], axis=1)
