"""PASCAL VOC average precision, as the evaluator of the released code computes it (spec section 10.5).

Boxes are corners of whole pixels: a box covers x1 to x2 inclusive, so its width is x2 - x1 + 1. The result does not
depend on the origin (0-based or 1-based), as long as ground truth and detections share it. All arithmetic is float64.

Within a class, detections are visited by descending score over all images; equal scores keep the order of the input
(a stable sort). Each looks up the ground truth of its image that it overlaps most (ties: the earlier one), difficult
ones included:

* IoU > threshold and that ground truth is difficult: the detection is ignored, neither true nor false positive;
* IoU > threshold and no earlier detection took it: true positive;
* otherwise false positive, also when it duplicates an earlier true positive and another, less overlapping ground truth
  is still free.

IoU equal to the threshold does not match (the released Python evaluator; the MATLAB devkit has >=). Difficult ground
truth does not count towards recall.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refinedet.errors import InputError

# Kept as the official evaluator has them: in float64 three of these levels (0.3, 0.6, 0.7) lie one rounding above the
# decimal, so a recall of exactly 3/10 does not reach the level 0.3. Published VOC07 figures were computed so.
RECALL_LEVELS = np.arange(0.0, 1.1, 0.1)


class GroundTruth(NamedTuple):
    """Annotated boxes of all images and classes, one row each, in any order; lists will do as well as arrays."""

    images: np.ndarray  # int [G], any numbering shared with the detections
    labels: np.ndarray  # int [G], 1..num_classes-1
    boxes: np.ndarray  # float [G,4] x1,y1,x2,y2 pixels, inclusive
    difficult: np.ndarray  # bool [G]


class ScoredBoxes(NamedTuple):
    """Detections of all images and classes, one row each, in any order; lists will do as well as arrays."""

    images: np.ndarray  # int [D]
    labels: np.ndarray  # int [D], 1..num_classes-1
    boxes: np.ndarray  # float [D,4] x1,y1,x2,y2 pixels, inclusive
    scores: np.ndarray  # float [D]


@dataclass(frozen=True)
class ClassResult:
    """Precision and recall of one class, one entry per detection that is not ignored, by descending score."""

    label: int
    ground_truth: int  # boxes that are not difficult
    detections: int  # all, ignored ones included
    ap: float  # NaN without ground truth
    scores: np.ndarray  # float64 [n]
    precision: np.ndarray  # float64 [n]
    recall: np.ndarray  # float64 [n]; NaN without ground truth


class OperatingPoint(NamedTuple):
    """What a class gives when only detections with score >= ``score`` are kept."""

    score: float
    precision: float
    recall: float
    f1: float


def voc_ap(
    ground_truth: GroundTruth,
    detections: ScoredBoxes,
    num_classes: int,
    *,
    iou_threshold: float = 0.5,
    eleven_points: bool = False,
) -> list[ClassResult]:
    """Precision, recall and average precision of every foreground class 1..num_classes-1, in that order.

    ``eleven_points`` takes the mean precision at 11 recall levels (VOC 2007); otherwise the area under the precision
    envelope (VOC 2010 and later). A class without (non-difficult) ground truth has AP NaN, and 0.0 if it has ground
    truth but no detection. A box with x2 < x1 - 1 or y2 < y1 - 1 has no area and overlaps nothing; as ground truth it
    counts and is never found.

    Raises InputError for arrays whose lengths or shapes disagree, for labels outside 1..num_classes-1 and for
    non-finite boxes or scores.
    """
    check_iou_threshold(iou_threshold)
    truth_images, truth_labels, truth_boxes, difficult = _check("ground truth", ground_truth, num_classes)
    found_images, found_labels, found_boxes, scores = _check("detections", detections, num_classes)
    difficult = difficult.astype(bool)
    results = []
    for label in range(1, num_classes):
        truth = np.flatnonzero(truth_labels == label)
        found = np.flatnonzero(found_labels == label)
        found = found[np.argsort(-scores[found], kind="stable")]
        overlap, best = _best_overlaps(truth_images[truth], truth_boxes[truth], found_images[found], found_boxes[found])
        true_positive, ignored = _judge(overlap > iou_threshold, best, difficult[truth])
        count = int((~difficult[truth]).sum())
        results.append(_class_result(label, count, scores[found], true_positive, ignored, eleven_points=eleven_points))
    return results


def mean_ap(results: list[ClassResult]) -> float:
    """Mean AP over the classes that have ground truth; NaN if none has."""
    values = [result.ap for result in results if result.ground_truth]
    return float(np.mean(values)) if values else float("nan")


def best_f1(result: ClassResult) -> OperatingPoint | None:
    """The score threshold with the highest F1 (ties: the higher threshold); None without ground truth or detections."""
    if not result.ground_truth or not len(result.scores):
        return None
    # A threshold keeps all detections of equal score, so only the last of them is a point that can be chosen.
    reachable = np.flatnonzero(np.append(result.scores[1:] != result.scores[:-1], True))
    precision, recall = result.precision[reachable], result.recall[reachable]
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = int(np.argmax(f1))
    return OperatingPoint(
        float(result.scores[reachable[best]]), float(precision[best]), float(recall[best]), float(f1[best])
    )


def pixel_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU [n,m] of inclusive pixel boxes [n,4] and [m,4]: a width is x2 - x1 + 1; 0 for boxes without area."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.clip(high - low + 1, 0, None).prod(axis=-1)
    union = _pixel_area(first)[:, None] + _pixel_area(second)[None, :] - intersection
    iou: np.ndarray = np.divide(intersection, union, out=np.zeros_like(intersection), where=intersection > 0)
    return iou


def _pixel_area(boxes: np.ndarray) -> np.ndarray:
    area: np.ndarray = np.clip(boxes[:, 2:] - boxes[:, :2] + 1, 0, None).prod(axis=-1)
    return area


def check_iou_threshold(iou_threshold: float) -> None:
    """Raise InputError for a threshold that no IoU, or every IoU, is above."""
    if not 0.0 <= iou_threshold < 1.0:
        raise InputError(f"iou_threshold is {iou_threshold}; give a value from 0 up to, not including, 1")


def _check(what: str, rows: GroundTruth | ScoredBoxes, num_classes: int) -> tuple[np.ndarray, ...]:
    """The four arrays of ``rows`` as int64, int64, float64 [n,4] and float64."""
    images, labels = (np.asarray(values).astype(np.int64) for values in rows[:2])
    boxes, last = (np.asarray(values, dtype=np.float64) for values in rows[2:])
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.shape != (len(images), 4) or labels.shape != images.shape or last.shape != images.shape:
        arrays = zip(rows._fields, (images, labels, boxes, last), strict=True)
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays)
        raise InputError(f"{what}: shapes disagree: {shapes}; give n, n, n x 4 and n")
    if not (np.isfinite(boxes).all() and np.isfinite(last).all()):
        raise InputError(f"{what}: boxes or {rows._fields[3]} hold NaN or infinity; remove those rows")
    if len(labels) and not (labels.min() >= 1 and labels.max() < num_classes):
        raise InputError(
            f"{what}: labels go from {labels.min()} to {labels.max()}; with num_classes={num_classes} they must lie in "
            f"1..{num_classes - 1}"
        )
    return images, labels, boxes, last


def _best_overlaps(
    truth_images: np.ndarray, truth_boxes: np.ndarray, found_images: np.ndarray, found_boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per detection of one class: its highest IoU with the ground truth of its image and that ground truth's row.

    A detection in an image without ground truth has IoU -1 and row -1.
    """
    overlap = np.full(len(found_images), -1.0)
    best = np.full(len(found_images), -1, dtype=np.int64)
    found_order = np.argsort(found_images, kind="stable")
    sorted_images = found_images[found_order]
    truth_order = np.argsort(truth_images, kind="stable")
    images, starts = np.unique(truth_images[truth_order], return_index=True)
    if not len(images):
        return overlap, best
    first = np.searchsorted(sorted_images, images, side="left")
    last = np.searchsorted(sorted_images, images, side="right")
    for truth, begin, end in zip(np.split(truth_order, starts[1:]), first, last, strict=True):
        found = found_order[begin:end]
        iou = pixel_iou(found_boxes[found], truth_boxes[truth])
        choice = iou.argmax(axis=1)
        overlap[found] = iou[np.arange(len(found)), choice]
        best[found] = truth[choice]
    return overlap, best


def _judge(hit: np.ndarray, best: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True positives and ignored rows among the detections of a class, which come by descending score."""
    true_positive = np.zeros(len(hit), dtype=bool)
    ignored = np.zeros(len(hit), dtype=bool)
    ignored[hit] = difficult[best[hit]]
    counted = np.flatnonzero(hit & ~ignored)
    _, first = np.unique(best[counted], return_index=True)
    true_positive[counted[first]] = True
    return true_positive, ignored


def _class_result(
    label: int,
    ground_truth: int,
    scores: np.ndarray,
    true_positive: np.ndarray,
    ignored: np.ndarray,
    *,
    eleven_points: bool,
) -> ClassResult:
    hits = np.cumsum(true_positive[~ignored])
    precision = hits / np.arange(1, len(hits) + 1)
    if ground_truth:
        recall = hits / ground_truth
        ap = eleven_point_ap(recall, precision) if eleven_points else area_ap(recall, precision)
    else:
        recall, ap = np.full(len(hits), np.nan), float("nan")
    return ClassResult(label, ground_truth, len(scores), ap, scores[~ignored], precision, recall)


def eleven_point_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """Mean over the recall levels 0, 0.1 .. 1 of the best precision at that recall or above (VOC 2007)."""
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(recall, RECALL_LEVELS, side="left")].mean())


def area_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the precision envelope: every recall step times the best precision from there on (VOC 2010)."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())
