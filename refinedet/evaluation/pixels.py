"""Boxes in the frames of the metrics: 0-based pixels, and COCO's documents made from them.

From network output to metric, as the released evaluation scripts do (spec sections 1.2, 1.3, 7.1, 10.5):

1. The image is warped to the input size; ``ops.detect`` gives boxes in units of the image side.
2. Detections: x times W, clipped to [0, W-1]; y likewise. These are 0-based pixels, the last one inclusive, so a box is
   x2 - x1 + 1 wide. The VOC scripts add 1 to get VOC's 1-based frame; the COCO scripts write [x1, y1, width, height].
3. Ground truth, brought into the same 0-based inclusive frame: VOC's 1-based corners minus 1; COCO's x, y, x + w - 1,
   y + h - 1. (IoU does not depend on the origin, so comparing here equals comparing in VOC's frame.)

Which frame a box is in says its sample, so that data sets may be joined, shortened and wrapped. Either metric works on
either kind; a VOC difficult object is to COCO's metric a crowd, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refinedet.evaluation.coco_ap import id_order
from refinedet.evaluation.voc_ap import GroundTruth, ScoredBoxes
from refinedet.interchange.coco import coco_rows
from refinedet.records import Sample

# Boxes travel as float32 fractions of the image side; annotation files hold at most a few decimals of a pixel.
ANNOTATION_DECIMALS = 3


class EvaluatedImage(NamedTuple):
    """What is kept of an image after it was run."""

    image_id: int | str
    height: int
    width: int


class Collected(NamedTuple):
    """Boxes of all images in 0-based inclusive pixels; images are numbered in the data set's order."""

    truth: GroundTruth
    areas: np.ndarray  # float64 [G] pixels of the objects' outlines, NaN where unknown
    found: ScoredBoxes
    images: list[EvaluatedImage]


def truth_to_pixels(sample: Sample) -> np.ndarray:
    """Ground truth [n,4] of ``sample`` in 0-based inclusive pixels, float64 (step 3 above)."""
    height, width = sample.image.shape[:2]
    corners = np.round(sample.boxes.astype(np.float64) * (width, height, width, height), ANNOTATION_DECIMALS)
    return corners - (1.0 if sample.one_based else (0.0, 0.0, 1.0, 1.0))


def coco_results(
    found: ScoredBoxes, image_ids: Sequence[int | str], category_ids: Mapping[int, int | str]
) -> Iterator[dict[str, Any]]:
    """The detections in COCO's results format, one by one; those of a class without a category are left out."""
    rows = [row for row, label in enumerate(found.labels) if label in category_ids]
    images, categories = (
        [ids[n] for n in numbers[rows]] for ids, numbers in ((image_ids, found.images), (category_ids, found.labels))
    )
    return coco_rows(images, categories, found.boxes[rows], found.scores[rows])


def image_ranks(images: Sequence[EvaluatedImage]) -> list[int]:
    """By image number the image's id in COCO's metric: its rank by its own id, which joined data sets may share."""
    order = sorted(range(len(images)), key=lambda number: (id_order(images[number].image_id), number))
    return sorted(range(len(images)), key=order.__getitem__)


def coco_ground_truth(classes: Sequence[str], collected: Collected) -> dict[str, Any]:
    """The boxes as COCO's annotations: an image's id is that of `image_ranks`, a category's its label.

    The areas are those of the objects' outlines, by which COCO tells small from large, or else the boxes'.
    """
    truth = collected.truth
    sizes = truth.boxes[:, 2:] - truth.boxes[:, :2] + 1
    boxes = np.round(np.concatenate([truth.boxes[:, :2], sizes], axis=1), ANNOTATION_DECIMALS)
    areas = np.where(np.isnan(collected.areas), boxes[:, 2:].prod(axis=1), collected.areas)
    ranks = np.array(image_ranks(collected.images))
    columns = (ranks[truth.images], truth.labels, boxes, truth.difficult, areas)
    return {
        "images": [{"id": rank} for rank in range(len(ranks))],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, start=1)],
        "annotations": [
            {"image_id": image, "category_id": label, "bbox": box, "iscrowd": int(difficult), "area": area}
            for image, label, box, difficult, area in zip(*(column.tolist() for column in columns), strict=True)
        ],
    }
